//! How long a process may have had work on a device: from the first launch of a span until a wait
//! that no launch can have outlived. An upper bound, loose where such a wait never comes.

use agent_ebpf::{Counter, Row, flag};
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;

use crate::maps::CLOSING;
use crate::{atomic, rows};

/// Launches of every kind.
#[inline(always)]
pub(crate) fn launches(row: *const Row) -> u64 {
    rows::count(row, Counter::KernelLaunches)
        .wrapping_add(rows::count(row, Counter::CooperativeLaunches))
        .wrapping_add(rows::count(row, Counter::GraphLaunches))
}

/// A launch at `now` begins a span where none is open.
#[inline(always)]
pub(crate) fn open(row: *mut Row, now: u64) {
    if rows::has(row, flag::SHARED) {
        return;
    }
    // SAFETY: `row` is a map value.
    let pending = unsafe { &raw mut (*row).pending_since_ns };
    // SAFETY: as above.
    if unsafe { pending.read_volatile() } == 0 {
        // SAFETY: as above. Of two threads that come at once either is right to within the time
        // between its clock and this line.
        unsafe { pending.write_volatile(now) };
    }
}

/// Work may have been under way since `from`.
#[inline(always)]
pub(crate) fn open_from(row: *mut Row, from: u64) {
    // SAFETY: `row` is a map value.
    let since = unsafe { &raw mut (*row).pending_since_ns };
    // SAFETY: as above.
    let before = unsafe { since.read_volatile() };
    if before == 0 || before > from {
        // SAFETY: as above.
        unsafe { since.write_volatile(from) };
    }
}

/// All work of the context was waited for; `before` launches had been made when the wait began. More
/// than one context, or a launch since, and there may be work still.
#[inline(never)]
pub(crate) fn close(row: *mut Row, tgid: u32, before: u64) {
    if rows::has(row, flag::UNSEEN) || rows::has(row, flag::SEVERAL_CONTEXTS) {
        return;
    }
    if pending(row) == 0 || launches(row) != before {
        return;
    }
    // One thread at a time: two would count the span twice.
    if CLOSING.insert(tgid, 0, u64::from(BPF_NOEXIST)).is_err() {
        return;
    }
    let since = pending(row);
    if since != 0 && launches(row) == before {
        let now = end_at(row, since);
        // A launch that came since then found the span open. It goes on, without a gap.
        if launches(row) != before {
            open(row, now);
        }
    }
    let _ = CLOSING.remove(tgid);
}

/// The program makes no further call.
#[inline(always)]
pub(crate) fn end(row: *mut Row) {
    let since = pending(row);
    if since != 0 {
        end_at(row, since);
    }
}

/// Returns the end of the span.
#[inline(always)]
fn end_at(row: *mut Row, since: u64) -> u64 {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // SAFETY: `row` is a map value. The next launch looks at the span whatever the tick is.
    unsafe { (&raw mut (*row).last_launch_tick).write_volatile(0) };
    // SAFETY: as above. To zero by an addition, because that orders what is read afterwards.
    unsafe { atomic::add(&raw mut (*row).pending_since_ns, since.wrapping_neg()) };
    rows::add(row, Counter::BusyUpperNs as usize, now.saturating_sub(since));
    now
}

#[inline(always)]
fn pending(row: *const Row) -> u64 {
    // SAFETY: `row` is a map value.
    unsafe { (&raw const (*row).pending_since_ns).read_volatile() }
}
