//! The rows of `COUNTERS` from birth to retirement, and the records that tell user space about them.

use core::arch::asm;

use agent_ebpf::keys::{ContextKey, by};
use agent_ebpf::{COUNTERS as COUNTS, Counter, Event, Loss, Record, Row, flag};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_get_current_cgroup_id;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid};
use aya_ebpf::maps::Array;

use crate::maps::{CLOSING, CONTEXTS, COUNTERS, EVENTS, OVERFLOW, RETIRED, TRACKED, ZERO};
use crate::{atomic, cgroups, loss, sight, spans, task};

/// Where the calling process counts: its own row, made on its first call, or the overflow row.
#[inline(always)]
pub(crate) fn current<C: EbpfContext>(ctx: &C) -> Option<*mut Row> {
    let tgid = current_tgid();
    if let Some(row) = own(ctx, tgid) {
        return Some(row);
    }
    loss::count(ctx, Loss::Calls, tgid);
    shared()
}

/// The same for a call that will ask again when it returns: it is lost once.
#[inline(always)]
pub(crate) fn expected<C: EbpfContext>(ctx: &C) -> Option<*mut Row> {
    own(ctx, current_tgid()).or_else(shared)
}

#[inline(always)]
fn own<C: EbpfContext>(ctx: &C, tgid: u32) -> Option<*mut Row> {
    if let Some(row) = COUNTERS.get_ptr_mut(tgid) {
        return Some(row);
    }
    admit(ctx, tgid);
    COUNTERS.get_ptr_mut(tgid)
}

#[inline(never)]
fn shared() -> Option<*mut Row> {
    let row = OVERFLOW.get_ptr_mut(0)?;
    set(row, flag::SHARED);
    Some(row)
}

#[inline(always)]
pub(crate) fn current_tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Adds to one counter. A plain atomic add: nobody orders anything by it.
#[inline(always)]
pub(crate) fn add(row: *mut Row, counter: usize, amount: u64) {
    if let Some(index) = index_of(counter) {
        // SAFETY: `row` is a map value, and the index was checked.
        let count = unsafe { (&raw mut (*row).counts).cast::<u64>().add(index) };
        // SAFETY: map values are aligned to 8 bytes and outlive the program's run.
        unsafe { atomic::add(count, amount) };
    }
}

/// The index of a counter, checked so that the verifiers of old kernels see it too. Left alone, the
/// compiler checks a number and adds to it later, or adds first and checks what it was before: of the
/// sum they then know nothing, and refuse the program.
#[inline(always)]
pub(crate) fn index_of(counter: usize) -> Option<usize> {
    let mut index = counter;
    // SAFETY: it changes nothing but the register.
    unsafe { asm!("{0} &= 63", inout(reg) index, options(pure, nomem, nostack)) };
    if index < COUNTS { Some(index) } else { None }
}

const _: () = assert!(COUNTS <= 64);

#[inline(always)]
pub(crate) fn count(row: *const Row, counter: Counter) -> u64 {
    // SAFETY: `row` is a map value, and every counter is within it.
    unsafe { (&raw const (*row).counts).cast::<u64>().add(counter as usize).read_volatile() }
}

#[inline(always)]
pub(crate) fn has(row: *const Row, flag: usize) -> bool {
    // SAFETY: `row` is a map value, and every flag is within it.
    unsafe { (&raw const (*row).flags).cast::<u8>().add(flag).read_volatile() != 0 }
}

#[inline(always)]
pub(crate) fn set(row: *mut Row, flag: usize) {
    // SAFETY: `row` is a map value, and every flag is within it.
    unsafe { (&raw mut (*row).flags).cast::<u8>().add(flag).write_volatile(1) };
}

#[inline(always)]
pub(crate) fn clear(row: *mut Row, flag: usize) {
    // SAFETY: `row` is a map value, and every flag is within it.
    unsafe { (&raw mut (*row).flags).cast::<u8>().add(flag).write_volatile(0) };
}

/// The program that a row belongs to: of the calling process where the row does not say.
#[inline(always)]
pub(crate) fn program(row: *const Row) -> u64 {
    // SAFETY: `row` is a map value.
    match unsafe { (&raw const (*row).program).read_volatile() } {
        0 => task::current_program(),
        program => program,
    }
}

/// Makes the row of a process and announces it. Two threads may come at once: one of them does it,
/// the other one may count before the row says whose it is.
#[inline(never)]
fn admit<C: EbpfContext>(ctx: &C, tgid: u32) {
    let Some(zero) = ZERO.get_ptr(0) else { return };
    // SAFETY: nobody writes to it.
    if COUNTERS.insert(tgid, unsafe { &*zero }, u64::from(BPF_NOEXIST)).is_err() {
        return;
    }
    if let Some(row) = COUNTERS.get_ptr_mut(tgid) {
        identify(row);
        sight::begin(ctx, row);
        // SAFETY: `row` is a map value.
        cgroups::remember(ctx, unsafe { (*row).cgroup_id }, tgid);
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

/// Takes the row of a process that will make no further call out of the kernel. Two threads that end
/// at once both find that no other is left: one of them does it.
#[inline(always)]
pub(crate) fn retire<C: EbpfContext>(ctx: &C, tgid: u32) {
    let is_mine = CLOSING.insert(tgid, 0, u64::from(BPF_NOEXIST)).is_ok();
    if !is_mine && CLOSING.get_ptr(tgid).is_some() {
        return;
    }
    if is_left(tgid) {
        retire_one(ctx, tgid);
    }
    if is_mine {
        let _ = CLOSING.remove(tgid);
    }
}

/// Whether the end of a process is still to be told.
#[inline(always)]
fn is_left(tgid: u32) -> bool {
    match COUNTERS.get_ptr(tgid) {
        Some(row) => !has(row, flag::DEAD),
        None => TRACKED.get_ptr(tgid).is_some(),
    }
}

/// Where the ring is full the row stays, marked dead.
#[inline(never)]
fn retire_one<C: EbpfContext>(ctx: &C, tgid: u32) {
    finish(tgid);
    if announce(ctx, Event::Exited, tgid) {
        forget(tgid);
    } else if let Some(row) = COUNTERS.get_ptr_mut(tgid) {
        set(row, flag::DEAD);
    }
}

/// Takes the row of a program that its process has left out of the kernel: the next call makes a
/// new one.
#[inline(never)]
pub(crate) fn replace<C: EbpfContext>(ctx: &C, tgid: u32) {
    finish(tgid);
    if !announce(ctx, Event::Executed, tgid) {
        abandon(ctx, tgid);
    }
    let _ = COUNTERS.remove(tgid);
}

/// Makes sure that a new process with this tgid starts clean. A row can be left only when the
/// record of its owner's exit found no room, or the exit was missed.
#[inline(never)]
pub(crate) fn make_way<C: EbpfContext>(ctx: &C, tgid: u32) {
    let Some(row) = COUNTERS.get_ptr(tgid) else { return };
    if !has(row, flag::DEAD) {
        finish(tgid);
    }
    if !announce(ctx, Event::Exited, tgid) {
        abandon(ctx, tgid);
    }
    forget(tgid);
}

/// Closes the account of a program: its row changes no more.
#[inline(never)]
fn finish(tgid: u32) {
    let Some(row) = COUNTERS.get_ptr_mut(tgid) else { return };
    spans::end(row);
    fold(row, &RETIRED, false);
    // SAFETY: `row` is a map value.
    let (contexts, program, context) = unsafe { ((*row).contexts, (*row).program, (*row).context) };
    if contexts == 1 {
        let _ = CONTEXTS.remove(ContextKey { program, tgid, by: by::HANDLE, name: context });
    }
    // SAFETY: as above.
    let home = u64::from(unsafe { (*row).home });
    let _ = CONTEXTS.remove(ContextKey { program, tgid, by: by::DEVICE, name: home });
}

/// Nobody will read this row: its counts lose their owner.
#[inline(never)]
fn abandon<C: EbpfContext>(ctx: &C, tgid: u32) {
    let Some(row) = COUNTERS.get_ptr_mut(tgid) else { return };
    set(row, flag::ABANDONED);
    fold(row, &OVERFLOW, false);
    fold(row, &RETIRED, true);
    loss::count(ctx, Loss::Processes, tgid);
}

/// An error means that it was not there, which is what is wanted.
fn forget(tgid: u32) {
    let _ = COUNTERS.remove(tgid);
    let _ = TRACKED.remove(tgid);
}

/// Adds the counts of a row to the one of `to`, or takes them out again.
#[inline(always)]
fn fold(row: *const Row, to: &Array<Row>, out: bool) {
    let Some(sum) = to.get_ptr_mut(0) else { return };
    for counter in 0..COUNTS {
        // SAFETY: `row` is a map value, and the index is within it.
        let count =
            unsafe { (&raw const (*row).counts).cast::<u64>().add(counter).read_volatile() };
        add(sum, counter, if out { count.wrapping_neg() } else { count });
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
    identify(to);
}

/// Says whose row it is. The start comes last: with it the row is whole.
#[inline(always)]
fn identify(row: *mut Row) {
    // SAFETY: the row is whole and aligned to 8 bytes, as in `copy`.
    unsafe {
        (&raw mut (*row).program).write_volatile(task::current_program());
        (&raw mut (*row).cgroup_id).write_volatile(bpf_get_current_cgroup_id());
        (&raw mut (*row).uid).write_volatile(bpf_get_current_uid_gid() as u32);
        (&raw mut (*row).start_boottime_ns).write_volatile(task::current_start_ns());
    }
}
