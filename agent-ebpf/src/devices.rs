//! Which device a call is for. Almost every program uses one, and then nothing is looked up.

use agent_ebpf::cookie::Cookie;
use agent_ebpf::keys::{Context, ContextKey, DeviceKey, Part, by};
use agent_ebpf::{Counter, Loss, NO_DEVICE, Row, UNKNOWN_DEVICE, flag};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_get_attach_cookie;

use crate::maps::{CONTEXTS, DEVICES, UUIDS, ZERO};
use crate::{atomic, gate, live, loss, rows, sight, spans, threads};

/// Where the call of a thread counts: in its row, and apart where it is for another device than the
/// program's first.
#[derive(Clone, Copy)]
pub(crate) struct Account {
    row: *mut Row,
    /// [`NO_DEVICE`] = nowhere apart.
    device: u32,
}

impl Account {
    #[inline(always)]
    pub(crate) fn current<C: EbpfContext>(ctx: &C, row: *mut Row) -> Self {
        let several = rows::has(row, flag::SEVERAL_DEVICES);
        Self { row, device: if several { elsewhere(ctx, row) } else { NO_DEVICE } }
    }

    /// For a call that names its device.
    #[inline(always)]
    pub(crate) fn on(row: *mut Row, ordinal: u32) -> Self {
        let device = ordinal.saturating_add(1);
        let several = rows::has(row, flag::SEVERAL_DEVICES);
        let apart = several && device != home(row);
        Self { row, device: if apart { device } else { NO_DEVICE } }
    }

    #[inline(always)]
    pub(crate) fn add<C: EbpfContext>(self, ctx: &C, counter: usize, amount: u64) {
        rows::add(self.row, counter, amount);
        if self.device != NO_DEVICE {
            add_apart(ctx, self.row, self.device, counter as u64, amount);
        }
    }
}

/// What was counted for the row of a program with several devices counts apart too, where it was for
/// another one than its first.
#[inline(never)]
pub(crate) fn also<C: EbpfContext>(ctx: &C, row: *mut Row, counter: u64, amount: u64) {
    let device = elsewhere(ctx, row);
    if device != NO_DEVICE {
        add_apart(ctx, row, device, counter, amount);
    }
}

/// Device of the thread's context where it is not the program's first.
#[inline(never)]
fn elsewhere<C: EbpfContext>(ctx: &C, row: *mut Row) -> u32 {
    let device = match current_context(ctx) {
        Some(context) => device_of(row, context),
        None => UNKNOWN_DEVICE,
    };
    if device == home(row) { NO_DEVICE } else { device }
}

#[inline(always)]
fn device_of(row: *const Row, context: u64) -> u32 {
    match CONTEXTS.get_ptr(context_key(row, context)) {
        // SAFETY: it is a map value.
        Some(it) => unsafe { (&raw const (*it).device).read_volatile() },
        None => UNKNOWN_DEVICE,
    }
}

#[inline(never)]
fn add_apart<C: EbpfContext>(ctx: &C, row: *mut Row, device: u32, counter: u64, amount: u64) {
    let key = DeviceKey { program: rows::program(row), tgid: rows::current_tgid(), device };
    if DEVICES.get_ptr(key).is_none()
        && let Some(zero) = ZERO.get_ptr(0)
    {
        // SAFETY: nobody writes to it. A part is what the counts of a row are. An error shows below.
        let zero = unsafe { &*(&raw const (*zero).counts).cast::<Part>() };
        let _ = DEVICES.insert(key, zero, u64::from(BPF_NOEXIST));
    }
    let Some(part) = DEVICES.get_ptr_mut(key) else {
        loss::count(ctx, Loss::Contexts, key.tgid);
        return;
    };
    if let Some(index) = rows::index_of(counter as usize) {
        // SAFETY: `part` is a map value, and the index was checked.
        let count = unsafe { (&raw mut (*part).counts).cast::<u64>().add(index) };
        // SAFETY: map values are aligned to 8 bytes and outlive the program's run.
        unsafe { atomic::add(count, amount) };
    }
}

/// A program has, or uses, a context on a device: its ordinal plus 1, or [`UNKNOWN_DEVICE`].
#[inline(never)]
pub(crate) fn note<C: EbpfContext>(ctx: &C, row: *mut Row, context: u64, device: u32) {
    // Who has no row of its own has no devices of its own either.
    if context == 0 || rows::has(row, flag::SHARED) {
        return;
    }
    let key = context_key(row, context);
    if let Some(known) = CONTEXTS.get_ptr_mut(key) {
        // SAFETY: `known` is a map value.
        let known = unsafe { &raw mut (*known).device };
        // SAFETY: as above.
        if device != UNKNOWN_DEVICE && unsafe { known.read_volatile() } != device {
            // SAFETY: as above.
            unsafe { known.write_volatile(device) };
            settle_home(row, context, device);
        }
        return;
    }
    let made = Context { device, ..Context::default() };
    match CONTEXTS.insert(key, made, u64::from(BPF_NOEXIST)) {
        Ok(()) => count_context(row, context, device),
        // Another thread was first, or there is no room.
        Err(_) if CONTEXTS.get_ptr(key).is_some() => {}
        Err(_) => {
            loss::count(ctx, Loss::Contexts, key.tgid);
            count_context(row, context, UNKNOWN_DEVICE);
        }
    }
}

#[inline(always)]
fn count_context(row: *mut Row, context: u64, device: u32) {
    // SAFETY: `row` is a map value.
    let alive = unsafe { add_contexts(row, 1) };
    if alive == 1 {
        // SAFETY: as above.
        unsafe { (&raw mut (*row).context).write_volatile(context) };
    } else if !rows::has(row, flag::SEVERAL_CONTEXTS) {
        // Until now nobody has noted in which context memory was allocated.
        // SAFETY: as above.
        mark_memory(row, unsafe { (&raw const (*row).context).read_volatile() });
        rows::set(row, flag::SEVERAL_CONTEXTS);
    }
    let home = home(row);
    if home == NO_DEVICE {
        set_home(row, device);
    } else if home != device {
        rows::set(row, flag::SEVERAL_DEVICES);
    }
}

/// Returns how many there are now.
///
/// # Safety
///
/// `row` is a map value.
#[inline(always)]
unsafe fn add_contexts(row: *mut Row, more: u64) -> u64 {
    // SAFETY: by the contract above.
    let contexts = unsafe { &raw mut (*row).contexts };
    // SAFETY: map values are aligned to 8 bytes.
    unsafe { atomic::add(contexts, more) };
    // SAFETY: as above.
    unsafe { contexts.read_volatile() }
}

/// Memory was allocated, which goes with the thread's context.
#[inline(never)]
pub(crate) fn take_memory<C: EbpfContext>(ctx: &C, row: *mut Row) {
    if !current_context(ctx).is_some_and(|it| mark_memory(row, it)) {
        rows::set(row, flag::SCATTERED_MEMORY);
    }
}

/// Returns whether the context is known.
#[inline(always)]
fn mark_memory(row: *const Row, context: u64) -> bool {
    let Some(known) = CONTEXTS.get_ptr_mut(context_key(row, context)) else { return false };
    // SAFETY: `known` is a map value.
    unsafe { (&raw mut (*known).memory).write_volatile(1) };
    true
}

/// Handle of the thread's current context; `None` = none, or not known.
#[inline(always)]
fn current_context<C: EbpfContext>(ctx: &C) -> Option<u64> {
    // SAFETY: the context is the one that the kernel gave the program.
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    let sight = gate::switches(cookie);
    threads::known().and_then(|it| threads::context(it, sight))
}

/// The device of a context that was used before anyone said where it is.
#[inline(always)]
fn settle_home(row: *mut Row, context: u64, device: u32) {
    // SAFETY: `row` is a map value.
    let (only, contexts) = unsafe {
        let only = (&raw const (*row).context).read_volatile();
        (only, (&raw const (*row).contexts).read_volatile())
    };
    if contexts == 1 && only == context && home(row) == UNKNOWN_DEVICE {
        set_home(row, device);
    } else if home(row) != device {
        rows::set(row, flag::SEVERAL_DEVICES);
    }
}

/// The primary context of a device is retained once more.
#[inline(never)]
pub(crate) fn retain<C: EbpfContext>(ctx: &C, row: *mut Row, context: u64, device: u32) {
    note(ctx, row, context, device);
    if rows::has(row, flag::SHARED) {
        return;
    }
    let key = primary_key(row, device);
    if CONTEXTS.get_ptr(key).is_none() {
        let none = Context { handle: context, device, ..Context::default() };
        // Another thread may be first; no room shows below.
        let _ = CONTEXTS.insert(key, none, u64::from(BPF_NOEXIST));
    }
    let Some(primary) = CONTEXTS.get_ptr_mut(key) else {
        loss::count(ctx, Loss::Contexts, key.tgid);
        return;
    };
    // SAFETY: `primary` is a map value.
    unsafe {
        (&raw mut (*primary).handle).write_volatile(context);
        atomic::add(&raw mut (*primary).retained, 1);
    }
}

/// It is not needed any more by one who retained it. With the last one it goes.
#[inline(never)]
pub(crate) fn release<C: EbpfContext>(ctx: &C, row: *mut Row, device: u32) {
    if rows::has(row, flag::SHARED) {
        return;
    }
    if rows::has(row, flag::UNSEEN) {
        return live::lose_sight(row);
    }
    let Some(primary) = CONTEXTS.get_ptr_mut(primary_key(row, device)) else {
        return live::lose_sight(row);
    };
    // SAFETY: `primary` is a map value.
    let (handle, retained) = unsafe { ((*primary).handle, &raw mut (*primary).retained) };
    // SAFETY: as above.
    if unsafe { retained.read_volatile() } == 0 {
        // Somebody retained it unseen: when it goes is not known.
        return live::lose_sight(row);
    }
    // SAFETY: as above, aligned to 8 bytes.
    unsafe { atomic::add(retained, 1_u64.wrapping_neg()) };
    // SAFETY: as above. Of two threads that come at once one finds it gone.
    if unsafe { retained.read_volatile() } == 0 && forget(ctx, row, handle) {
        rows::add(row, Counter::ContextsDestroyed as usize, 1);
    }
}

/// The primary context of a device was reset. Who retained it still does.
#[inline(never)]
pub(crate) fn reset<C: EbpfContext>(ctx: &C, row: *mut Row, device: u32) {
    rows::add(row, Counter::ContextsDestroyed as usize, 1);
    match CONTEXTS.get_ptr(primary_key(row, device)) {
        Some(primary) => {
            // SAFETY: `primary` is a map value.
            let handle = unsafe { (&raw const (*primary).handle).read_volatile() };
            forget(ctx, row, handle);
        }
        None => live::lose_sight(row),
    }
}

/// A context is gone. With the only one goes all memory and all work; how much goes with one of several
/// is not known, where it may have any. Returns whether it was there.
#[inline(never)]
pub(crate) fn forget<C: EbpfContext>(ctx: &C, row: *mut Row, context: u64) -> bool {
    let key = context_key(row, context);
    let Some(known) = CONTEXTS.get_ptr(key) else { return false };
    // SAFETY: `known` is a map value.
    let had_memory = unsafe { (&raw const (*known).memory).read_volatile() } != 0;
    // Of two threads that come at once one removes it.
    if CONTEXTS.remove(key).is_err() || rows::has(row, flag::SHARED) {
        return false;
    }
    sight::check(ctx, row);
    // SAFETY: `row` is a map value.
    let alive = unsafe { add_contexts(row, 1_u64.wrapping_neg()) };
    // There may be contexts that nobody has seen.
    if alive != 0 || rows::has(row, flag::UNSEEN) {
        if had_memory || rows::has(row, flag::SCATTERED_MEMORY) || rows::has(row, flag::UNSEEN) {
            live::lose_sight(row);
        }
        return true;
    }
    live::reset(row);
    spans::end(row);
    true
}

/// The program has asked which device an ordinal names.
#[inline(always)]
pub(crate) fn identify<C: EbpfContext>(ctx: &C, row: *mut Row, device: u32, uuid: &[u8; 16]) {
    let key = DeviceKey { program: rows::program(row), tgid: rows::current_tgid(), device };
    if UUIDS.insert(key, uuid, 0).is_err() {
        loss::count(ctx, Loss::Contexts, key.tgid);
    }
}

#[inline(always)]
fn context_key(row: *const Row, context: u64) -> ContextKey {
    let (program, tgid) = (rows::program(row), rows::current_tgid());
    ContextKey { program, tgid, by: by::HANDLE, name: context }
}

#[inline(always)]
fn primary_key(row: *const Row, device: u32) -> ContextKey {
    let (program, tgid) = (rows::program(row), rows::current_tgid());
    ContextKey { program, tgid, by: by::DEVICE, name: u64::from(device) }
}

#[inline(always)]
fn home(row: *const Row) -> u32 {
    // SAFETY: `row` is a map value.
    unsafe { (&raw const (*row).home).read_volatile() }
}

#[inline(always)]
fn set_home(row: *mut Row, device: u32) {
    // SAFETY: `row` is a map value.
    unsafe { (&raw mut (*row).home).write_volatile(device) };
}
