//! Gates: hits on hooks that are being put on or taken off do not count.
//!
//! The governor keeps hooks off for most of the time where they would cost too much. Attaching many
//! places takes a while, and in that while some of them are hit already: so that it is known exactly
//! in which time hits count, the hooks of a file are behind gates that user space opens and closes.
//! A hit at a closed gate costs the trap and nothing else. It is counted apart, because the budget
//! pays for it too.

use agent_ebpf::cookie::{Cookie, GATES as COUNT, GATES_OF_FILE, SWITCHES};
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;

use crate::atomic;

/// By gate: when it was opened or closed, and closed if that is odd. 0 is open, as it is for every hook
/// that the governor leaves alone.
#[map]
static GATES: Array<u64> = Array::with_max_entries(COUNT, 0);

/// By gate: hits that found it closed, since the object was loaded.
#[map]
static REFUSED: Array<u64> = Array::with_max_entries(COUNT, 0);

/// What the gate of context switches in the hook's library file holds. While it is the same, and even, no
/// switch was missed. No `Option`: the compiler would compare what is not there.
#[inline(always)]
pub(crate) fn switches(cookie: Cookie) -> u64 {
    match GATES.get_ptr(cookie.file() * GATES_OF_FILE + SWITCHES) {
        // SAFETY: as in `is_closed`.
        Some(held) => unsafe { held.read_volatile() },
        None => 1,
    }
}

/// Whether the hook must not count now.
#[inline(always)]
pub(crate) fn is_closed(cookie: Cookie) -> bool {
    let Some(gate) = cookie.gate() else { return false };
    let Some(closed) = GATES.get_ptr(gate) else { return false };
    // SAFETY: `closed` is a map value; user space writes it in one piece.
    if unsafe { closed.read_volatile() } & 1 == 0 {
        return false;
    }
    if let Some(refused) = REFUSED.get_ptr_mut(gate) {
        // SAFETY: map values are aligned to 8 bytes.
        unsafe { atomic::add(refused, 1) };
    }
    true
}
