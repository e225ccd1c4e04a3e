//! What is kept for a thread between two of its calls: the calls under way, and its contexts.

use agent_ebpf::keys::{self, CALLS, CONTEXTS, Call, Seat, Thread};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_NOEXIST, pt_regs};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;

use crate::atomic;
use crate::maps::{SEATS, THREADS, ZERO_THREAD};

/// Where the stack pointer is among the registers, and by how much a return moves it: it is
/// 168 bytes of registers on x86-64, whose return takes the address off the stack.
const ON_X86: bool = size_of::<pt_regs>() == 168;
const STACK_AT: usize = if ON_X86 { 152 } else { 248 };
const RETURN_ADDRESS: u64 = if ON_X86 { 8 } else { 0 };

/// The calling thread, where something is kept for it.
#[inline(always)]
pub(crate) fn known() -> Option<*mut Thread> {
    let id = bpf_get_current_pid_tgid();
    match seat(id) {
        // SAFETY: it is a map value.
        Some(seat) if is_of(seat, id) => Some(unsafe { &raw mut (*seat).thread }),
        _ => THREADS.get_ptr_mut(id),
    }
}

/// The calling thread; `None` where there is no room.
#[inline(always)]
pub(crate) fn current() -> Option<*mut Thread> {
    known().or_else(|| {
        admit();
        known()
    })
}

#[inline(never)]
fn admit() {
    let id = bpf_get_current_pid_tgid();
    if let Some(seat) = seat(id)
        && sit(seat, id)
    {
        return;
    }
    let Some(zero) = ZERO_THREAD.get_ptr(0) else { return };
    // SAFETY: nobody writes to it. An error shows when the thread is looked up.
    let _ = THREADS.insert(id, unsafe { &*zero }, u64::from(BPF_NOEXIST));
}

/// Where a thread may sit. Ids are given one after the other: threads of one process get in each
/// other's way only where there are more than there are seats.
#[inline(always)]
fn seat(id: u64) -> Option<*mut Seat> {
    SEATS.get_ptr_mut(id as u32 & (keys::SEATS - 1))
}

#[inline(always)]
fn is_of(seat: *const Seat, id: u64) -> bool {
    // SAFETY: it is a map value.
    unsafe { (&raw const (*seat).holder).read_volatile() == id }
}

/// Takes a seat that is nobody's.
#[inline(always)]
fn sit(seat: *mut Seat, id: u64) -> bool {
    // SAFETY: it is a map value.
    let is_mine = unsafe { atomic::replace(&raw mut (*seat).holder, 0, id) };
    if is_mine {
        // SAFETY: as above, and only this thread writes to it from now on.
        unsafe {
            (&raw mut (*seat).thread.under_way).write(0);
            (&raw mut (*seat).thread.depth).write(0);
        }
    }
    is_mine
}

/// Nothing is kept for a thread that is gone. An error means that nothing was.
#[inline(always)]
pub(crate) fn forget(id: u64) {
    match seat(id) {
        // SAFETY: it is a map value.
        Some(seat) if is_of(seat, id) => unsafe { (&raw mut (*seat).holder).write_volatile(0) },
        _ => drop(THREADS.remove(id)),
    }
}

/// Remembers a call until it returns. `false` where there is no room.
#[inline(always)]
pub(crate) fn begin<C: EbpfContext>(ctx: &C, kept: [u64; 3], start_ns: u64) -> bool {
    let Some(thread) = current() else { return false };
    let stack = stack(ctx) + RETURN_ADDRESS;
    let under_way = drop_left(thread, stack);
    if under_way >= CALLS {
        return false;
    }
    let call = call_at(thread, under_way);
    // SAFETY: `call` is part of a map value that only this thread writes.
    unsafe {
        (&raw mut (*call).stack).write(stack);
        (&raw mut (*call).start_ns).write(start_ns);
        (&raw mut (*call).kept).write(kept);
        (&raw mut (*thread).under_way).write(under_way as u32 + 1);
    }
    true
}

/// The call that returns now. `None` for one that began before it was hooked.
#[inline(always)]
pub(crate) fn finish<C: EbpfContext>(ctx: &C) -> Option<Call> {
    let thread = known()?;
    let stack = stack(ctx);
    // SAFETY: `thread` is a map value that only this thread writes.
    let under_way = unsafe { (&raw const (*thread).under_way).read_volatile() } as usize;
    for back in 1..=CALLS {
        let index = CALLS - back;
        let call = call_at(thread, index);
        // SAFETY: as above.
        if index < under_way && unsafe { (&raw const (*call).stack).read_volatile() } == stack {
            // SAFETY: as above. Calls inside this one were left without a return.
            unsafe { (&raw mut (*thread).under_way).write(index as u32) };
            // SAFETY: as above.
            return Some(unsafe { call.read_volatile() });
        }
    }
    None
}

/// How many calls are still under way, now that another one begins with its frame at `stack`. Those
/// with a frame below it were left by a jump, or their return was not hooked any more.
#[inline(always)]
fn drop_left(thread: *mut Thread, stack: u64) -> usize {
    // SAFETY: `thread` is a map value that only this thread writes.
    let mut under_way = unsafe { (&raw const (*thread).under_way).read_volatile() } as usize;
    for back in 1..=CALLS {
        let index = CALLS - back;
        let call = call_at(thread, index);
        // SAFETY: as above.
        if index < under_way && unsafe { (&raw const (*call).stack).read_volatile() } <= stack {
            under_way = index;
        }
    }
    under_way
}

#[inline(always)]
fn call_at(thread: *mut Thread, index: usize) -> *mut Call {
    // SAFETY: the index is cut to what there is.
    unsafe { (&raw mut (*thread).calls).cast::<Call>().add(index & (CALLS - 1)) }
}

/// Handle of the current context; `None` = none, or not known. `sight`: what the gate of context switches
/// holds.
#[inline(always)]
pub(crate) fn context(thread: *const Thread, sight: u64) -> Option<u64> {
    // SAFETY: `thread` is a map value that only this thread writes.
    if sight & 1 == 1 || sight != unsafe { (&raw const (*thread).sight).read_volatile() } {
        return None;
    }
    // SAFETY: `thread` is a map value that only this thread writes.
    let depth = unsafe { (&raw const (*thread).depth).read_volatile() } as usize;
    if depth == 0 || depth > CONTEXTS {
        return None;
    }
    // SAFETY: as above.
    Some(unsafe { context_at(thread.cast_mut(), depth - 1).read_volatile() })
}

/// What is known of the thread's contexts says nothing where a switch may have been missed since.
#[inline(always)]
pub(crate) fn look_at_contexts(thread: *mut Thread, sight: u64) {
    // SAFETY: `thread` is a map value that only this thread writes.
    let before = unsafe { &raw mut (*thread).sight };
    // SAFETY: as above.
    if unsafe { before.read_volatile() } != sight {
        // SAFETY: as above.
        unsafe { before.write(sight) };
        // SAFETY: as above.
        unsafe { (&raw mut (*thread).depth).write(0) };
    }
}

/// Another context is current, until it is popped.
#[inline(always)]
pub(crate) fn push_context(thread: *mut Thread, context: u64) {
    // SAFETY: `thread` is a map value that only this thread writes.
    let depth = unsafe { (&raw const (*thread).depth).read_volatile() };
    if (depth as usize) < CONTEXTS {
        // SAFETY: as above.
        unsafe { context_at(thread, depth as usize).write(context) };
    }
    // SAFETY: as above.
    unsafe { (&raw mut (*thread).depth).write(depth.saturating_add(1)) };
}

/// Returns whether there was one.
#[inline(always)]
pub(crate) fn pop_context(thread: *mut Thread) {
    // SAFETY: `thread` is a map value that only this thread writes.
    let depth = unsafe { (&raw const (*thread).depth).read_volatile() };
    // SAFETY: as above.
    unsafe { (&raw mut (*thread).depth).write(depth.saturating_sub(1)) };
}

#[inline(always)]
fn context_at(thread: *mut Thread, index: usize) -> *mut u64 {
    // SAFETY: the index is cut to what there is.
    unsafe { (&raw mut (*thread).contexts).cast::<u64>().add(index & (CONTEXTS - 1)) }
}

#[inline(always)]
fn stack<C: EbpfContext>(ctx: &C) -> u64 {
    // SAFETY: the context of a uprobe is the registers, and the stack pointer is among them.
    unsafe { ctx.as_ptr().cast::<u64>().byte_add(STACK_AT).read_volatile() }
}
