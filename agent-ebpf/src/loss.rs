//! Counting what could not be attributed, and saying so: each kind at most once in ten seconds.

use agent_ebpf::Loss;
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_log_ebpf::warn;

use crate::atomic;
use crate::maps::{LOST, WARNED};

const QUIET_NS: u64 = 10_000_000_000;

/// Off the hot path: it runs only where a bound has been reached.
#[inline(never)]
pub(crate) fn count<C: EbpfContext>(ctx: &C, loss: Loss, tgid: u32) {
    if let Some(lost) = LOST.get_ptr_mut(loss as u32) {
        // SAFETY: an array's values live as long as the map and are aligned to 8 bytes.
        unsafe { atomic::add(lost, 1) };
    }
    if !may_speak(loss) {
        return;
    }
    match loss {
        Loss::Calls => warn!(
            ctx,
            "process {}: no row is free, its CUDA calls count without an owner; raise cuda.max_processes",
            tgid
        ),
        Loss::Records => {
            warn!(ctx, "process {}: the ring is full, its event is seen at the next tick", tgid)
        }
        Loss::Results => {
            warn!(ctx, "process {}: too many calls under way, one counts as successful", tgid)
        }
        Loss::Processes => {
            warn!(ctx, "process {}: the counts of its predecessor have no owner", tgid)
        }
        Loss::Cgroups => {
            warn!(ctx, "process {}: the path of its control group was not kept", tgid)
        }
        Loss::Allocations => warn!(
            ctx,
            "process {}: an allocation is not remembered, its live memory is more than is shown; raise cuda.max_allocations",
            tgid
        ),
        Loss::Contexts => warn!(
            ctx,
            "process {}: no room for what it does on which device; raise cuda.max_processes", tgid
        ),
        Loss::Sizes => {
            warn!(
                ctx,
                "process {}: a batch of copies is too long, some bytes are not counted", tgid
            )
        }
    }
}

fn may_speak(loss: Loss) -> bool {
    let Some(last) = WARNED.get_ptr_mut(loss as u32) else { return false };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // SAFETY: as in `count`. Two CPUs may both find it old, and both speak.
    let before = unsafe { last.read_volatile() };
    if before != 0 && now < before + QUIET_NS {
        return false;
    }
    // SAFETY: as in `count`.
    unsafe { last.write_volatile(now) };
    true
}
