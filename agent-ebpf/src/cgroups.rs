//! Names of control groups: who a process works for, also when it is gone before anyone could look.
//!
//! Only of the unified hierarchy, and only when a process makes its first call.

use agent_ebpf::{CGROUP_LEVELS, CGROUP_NAME, Cgroup, Loss};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;

use crate::maps::{CGROUPS, NO_CGROUP, OFFSETS};
use crate::{loss, task};

/// Id of the root, which says nothing about anybody.
const ROOT: u64 = 1;

/// Keeps the names of the calling process's group for user space. A path that is deeper or has
/// longer names than there is room for is left out: a part of it could be somebody else's.
#[inline(never)]
pub(crate) fn remember<C: EbpfContext>(ctx: &C, id: u64, tgid: u32) {
    if id <= ROOT || CGROUPS.get_ptr(id).is_some() {
        return;
    }
    let Some(none) = NO_CGROUP.get_ptr(0) else { return };
    // SAFETY: `none` is a map value that nobody writes.
    let none = unsafe { &*none };
    if CGROUPS.insert(id, none, u64::from(BPF_NOEXIST)).is_err() {
        if CGROUPS.get_ptr(id).is_none() {
            loss::count(ctx, Loss::Cgroups, tgid);
        }
        return;
    }
    let Some(group) = CGROUPS.get_ptr_mut(id) else { return };
    if !read(group) {
        let _ = CGROUPS.remove(id);
    }
}

/// From the group up to the one below the root.
#[inline(always)]
fn read(group: *mut Cgroup) -> bool {
    let offsets = OFFSETS.load();
    let mut node = task::current_cgroup();
    for level in 0..CGROUP_LEVELS {
        let Some(parent) = task::read::<u64>(node, offsets.node_parent) else { return false };
        if parent == 0 {
            // SAFETY: `group` is a map value.
            unsafe { (&raw mut (*group).levels).write(level as u64) };
            return level > 0;
        }
        let name = task::read::<u64>(node, offsets.node_name).unwrap_or(0);
        // SAFETY: `group` is a map value, and the level is within it.
        let to = unsafe { (&raw mut (*group).names).cast::<[u8; CGROUP_NAME]>().add(level) };
        // SAFETY: there is room for as many bytes; the helper checks the address that it reads.
        let length = unsafe {
            bpf_probe_read_kernel_str(
                to.cast::<c_void>(),
                CGROUP_NAME as u32,
                name as *const c_void,
            )
        };
        // With its zero byte; one that fills the room may have been cut.
        if length <= 1 || length >= CGROUP_NAME as i64 {
            return false;
        }
        node = parent;
    }
    false
}
