//! Places for allocations that are not freed. Threads of all processes share them without a lock: who
//! puts a name where there is none has the slot, who takes it away has what was in it.

use agent_ebpf::keys::{Live, LiveKey, Slot, WAYS, first_slot};

use crate::atomic;
use crate::maps::{NAMES, SLOTS};

/// `false` where there is no room. What has this key must have been taken before.
#[inline(always)]
pub(crate) fn put(key: &LiveKey, live: &Live) -> bool {
    let name = key.name();
    // It would look like none.
    if name == 0 {
        return false;
    }
    for way in 0..WAYS {
        let index = first_slot(name) + way;
        let (Some(at), Some(slot)) = (NAMES.get_ptr_mut(index), SLOTS.get_ptr_mut(index)) else {
            return false;
        };
        if read(at) == 0 && replace(at, 0, name) {
            // SAFETY: `slot` is a map value. Who looks for this key does so after the call that is
            // put here has returned; who looks for another one finds its name elsewhere.
            unsafe { slot.write(Slot { key: *key, live: *live }) };
            return true;
        }
    }
    false
}

#[inline(always)]
pub(crate) fn take(key: &LiveKey) -> Option<Live> {
    let name = key.name();
    for way in 0..WAYS {
        let index = first_slot(name) + way;
        let at = NAMES.get_ptr_mut(index)?;
        if read(at) == name {
            // SAFETY: it is a map value. It changes only after its name is gone.
            let slot = unsafe { SLOTS.get_ptr(index)?.read() };
            if slot.key == *key {
                return replace(at, name, 0).then_some(slot.live);
            }
        }
    }
    None
}

#[inline(always)]
fn read(name: *const u64) -> u64 {
    // SAFETY: it is a map value.
    unsafe { name.read_volatile() }
}

#[inline(always)]
fn replace(name: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: it is a map value, which is aligned to 8 bytes.
    unsafe { atomic::replace(name, old, new) }
}
