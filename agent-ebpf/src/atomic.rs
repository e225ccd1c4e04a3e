//! Atomic addition. The core library offers read-modify-write only where the target has
//! compare-and-swap, which the oldest eBPF instruction set lacks; the plain add it always had.

use core::arch::asm;

/// Adds without ordering anything.
///
/// # Safety
///
/// `to` points to a map value that is aligned to 8 bytes.
#[inline(always)]
pub(crate) unsafe fn add(to: *mut u64, amount: u64) {
    // SAFETY: the instruction reads and writes the eight bytes at `to`, which the caller vouches for.
    unsafe {
        asm!("lock *(u64 *)({to} + 0) += {amount}", to = in(reg) to, amount = in(reg) amount, options(nostack));
    }
}

/// Puts `new` where `old` is, and orders what is read and written before and after. Returns whether it
/// was there.
///
/// # Safety
///
/// `to` points to a map value that is aligned to 8 bytes.
#[inline(always)]
pub(crate) unsafe fn replace(to: *mut u64, old: u64, new: u64) -> bool {
    let found: u64;
    // SAFETY: the instruction reads and writes the eight bytes at `to`, which the caller vouches for.
    unsafe {
        asm!("r0 = cmpxchg_64({to} + 0, r0, {new})", to = in(reg) to, new = in(reg) new, inout("r0") old => found, options(nostack));
    }
    found == old
}
