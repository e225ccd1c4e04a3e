//! The rows of `COUNTERS` from birth to retirement, and the records that tell user space about them.

use agent_ebpf::{COUNTERS as COUNTS, Counter, Event, Loss, Record, Row, flag};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_get_current_cgroup_id;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid};

use crate::maps::{BLANK, COUNTERS, EVENTS, OVERFLOW, RETIRED, TRACKED};
use crate::{atomic, cgroups, loss, task};
use aya_ebpf::maps::Array;

/// Where the calling process counts: its own row, made on its first call, or the overflow row.
#[inline(always)]
pub(crate) fn current<C: EbpfContext>(ctx: &C) -> Option<*mut Row> {
    let tgid = current_tgid();
    if let Some(row) = COUNTERS.get_ptr_mut(tgid) {
        return Some(row);
    }
    admit(ctx, tgid);
    if let Some(row) = COUNTERS.get_ptr_mut(tgid) {
        return Some(row);
    }
    loss::count(ctx, Loss::Calls, tgid);
    OVERFLOW.get_ptr_mut(0)
}

#[inline(always)]
pub(crate) fn current_tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Adds to one counter. A plain atomic add: nobody orders anything by it.
#[inline(always)]
pub(crate) fn add(row: *mut Row, counter: usize, amount: u64) {
    if counter < COUNTS {
        // SAFETY: `row` is a map value, and the index was checked.
        let count = unsafe { (&raw mut (*row).counts).cast::<u64>().add(counter) };
        // SAFETY: map values are aligned to 8 bytes and outlive the program's run.
        unsafe { atomic::add(count, amount) };
    }
}

#[inline(always)]
pub(crate) fn add_one(row: *mut Row, counter: Counter) {
    add(row, counter as usize, 1);
}

/// Makes the row of a process and announces it. Two threads may come at once: one of them does it.
#[inline(never)]
fn admit<C: EbpfContext>(ctx: &C, tgid: u32) {
    let Some(row) = BLANK.get_ptr_mut(0) else { return };
    blank(row);
    // SAFETY: `row` is a map value of this CPU, which the program keeps until it is done.
    let row = unsafe { &*row };
    if COUNTERS.insert(tgid, row, u64::from(BPF_NOEXIST)).is_ok() {
        cgroups::remember(ctx, row.cgroup_id, tgid);
        announce(ctx, Event::Appeared, tgid);
    }
}

/// Sends a record about a process that user space knows; its row goes along where it has one.
#[inline(never)]
pub(crate) fn announce<C: EbpfContext>(ctx: &C, event: Event, tgid: u32) -> bool {
    let Some(mut entry) = EVENTS.reserve::<Record>(0) else {
        loss::count(ctx, Loss::Records, tgid);
        return false;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: `record` points to a whole record in the ring, which is ours until it is submitted.
    unsafe {
        (&raw mut (*record).event).write(event as u32);
        (&raw mut (*record).tgid).write(tgid);
    }
    // SAFETY: as above.
    let to = unsafe { &raw mut (*record).row };
    match COUNTERS.get_ptr(tgid) {
        Some(row) => copy(row, to),
        None => blank(to),
    }
    entry.submit(0);
    true
}

/// Takes the row of a process that will make no further call out of the kernel. Where the ring is
/// full it stays, marked dead.
#[inline(never)]
pub(crate) fn retire<C: EbpfContext>(ctx: &C, tgid: u32) {
    if let Some(row) = COUNTERS.get_ptr(tgid) {
        fold(row, &RETIRED);
    }
    if announce(ctx, Event::Exited, tgid) {
        forget(tgid);
    } else if let Some(row) = COUNTERS.get_ptr_mut(tgid) {
        // SAFETY: `row` is a map value.
        unsafe { (&raw mut (*row).flags).write(flag::DEAD) };
    }
}

/// Makes sure that a new process with this tgid starts clean. A row can be left only when the
/// record of its owner's exit found no room, or the exit was missed.
#[inline(never)]
pub(crate) fn make_way<C: EbpfContext>(ctx: &C, tgid: u32) {
    let Some(row) = COUNTERS.get_ptr(tgid) else { return };
    if !announce(ctx, Event::Exited, tgid) {
        fold(row, &OVERFLOW);
        loss::count(ctx, Loss::Processes, tgid);
    }
    forget(tgid);
}

/// An error means that it was not there, which is what is wanted.
fn forget(tgid: u32) {
    let _ = COUNTERS.remove(tgid);
    let _ = TRACKED.remove(tgid);
}

/// Adds the counts of a row to the one of a map.
#[inline(always)]
fn fold(row: *const Row, to: &Array<Row>) {
    let Some(overflow) = to.get_ptr_mut(0) else { return };
    for counter in 0..COUNTS {
        // SAFETY: `row` is a map value, and the index is within it.
        let count =
            unsafe { (&raw const (*row).counts).cast::<u64>().add(counter).read_volatile() };
        add(overflow, counter, count);
    }
}

const WORDS: usize = size_of::<Row>() / size_of::<u64>();

/// Word by word: the compiler would turn a plain copy into a call byte by byte.
#[inline(always)]
fn copy(from: *const Row, to: *mut Row) {
    for word in 0..WORDS {
        // SAFETY: both rows are whole and aligned to 8 bytes.
        unsafe {
            let value = from.cast::<u64>().add(word).read_volatile();
            to.cast::<u64>().add(word).write_volatile(value);
        }
    }
}

/// The row of a process that made no call: its identity and nothing else.
#[inline(always)]
fn blank(to: *mut Row) {
    for word in 0..WORDS {
        // SAFETY: as in `copy`.
        unsafe { to.cast::<u64>().add(word).write_volatile(0) };
    }
    // SAFETY: as in `copy`.
    unsafe {
        (&raw mut (*to).start_boottime_ns).write(task::current_start_ns());
        (&raw mut (*to).cgroup_id).write(bpf_get_current_cgroup_id());
        (&raw mut (*to).uid).write(bpf_get_current_uid_gid() as u32);
    }
}
