//! Memory that is allocated now: what was taken and not given back, as far as it was seen.

use agent_ebpf::keys::{Live, LiveKey, space};
use agent_ebpf::{Counter, Loss, Row, flag};
use aya_ebpf::EbpfContext;

use crate::maps::LIVE;
use crate::{atomic, loss, rows, slots};

const HOST: u64 = Counter::HostAllocations as u64;

/// Names an allocation of this kind of memory.
#[inline(always)]
pub(crate) fn key(row: *const Row, kind: u64, address: u64) -> LiveKey {
    key_in(row, if kind == HOST { space::HOST } else { space::DEVICE }, address)
}

#[inline(always)]
pub(crate) fn key_in(row: *const Row, space: u16, address: u64) -> LiveKey {
    // SAFETY: `row` is a map value.
    let resets = unsafe { (&raw const (*row).resets).read_volatile() } as u16;
    LiveKey { program: rows::program(row), tgid: rows::current_tgid(), resets, space, address }
}

/// An allocation was made. One that is known at this address was freed unseen.
#[inline(never)]
pub(crate) fn remember<C: EbpfContext>(ctx: &C, row: *mut Row, key: &LiveKey, live: &Live) {
    if let Some(old) = take(row, key) {
        subtract(row, old.kind, old.bytes);
    }
    if !put(row, key, live) {
        lost(ctx, row);
        return;
    }
    taken(row, live);
}

/// The same for what is held by more than one name: in `LIVE`, where it can be counted how often.
#[inline(never)]
pub(crate) fn remember_held<C: EbpfContext>(ctx: &C, row: *mut Row, key: &LiveKey, live: &Live) {
    if let Some(old) = take_held(key) {
        // By another name it is still held, and cannot be found any more.
        rows::set(row, flag::UNTRACKED);
        subtract(row, old.kind, old.bytes);
    }
    if LIVE.insert(key, live, 0).is_err() {
        lost(ctx, row);
        return;
    }
    taken(row, live);
}

#[inline(always)]
fn taken(row: *mut Row, live: &Live) {
    if live.kind == HOST {
        // SAFETY: `row` is a map value.
        unsafe { atomic::add(&raw mut (*row).host_bytes, live.bytes) };
        return;
    }
    // SAFETY: as above.
    unsafe { atomic::add(&raw mut (*row).live_bytes, live.bytes) };
    raise_peak(row);
}

/// Live memory is more than is known.
#[inline(always)]
pub(crate) fn lost<C: EbpfContext>(ctx: &C, row: *mut Row) {
    rows::set(row, flag::UNTRACKED);
    loss::count(ctx, Loss::Allocations, rows::current_tgid());
}

/// Forgets an allocation that is about to be freed: once the driver has it back, another thread may
/// get the same address.
#[inline(always)]
pub(crate) fn take(row: *const Row, key: &LiveKey) -> Option<Live> {
    // SAFETY: `row` is a map value.
    let is_spilled = || unsafe { (&raw const (*row).spilled).read_volatile() } != 0;
    slots::take(key).or_else(|| if is_spilled() { take_held(key) } else { None })
}

/// The same where it is in `LIVE`.
#[inline(always)]
pub(crate) fn take_held(key: &LiveKey) -> Option<Live> {
    let live = LIVE.get_ptr(key)?;
    // SAFETY: `live` is a map value, and two threads do not free one address.
    let live = unsafe { live.read_volatile() };
    LIVE.remove(key).ok()?;
    Some(live)
}

/// `false` where there is no room.
#[inline(always)]
fn put(row: *mut Row, key: &LiveKey, live: &Live) -> bool {
    if slots::put(key, live) {
        return true;
    }
    // SAFETY: `row` is a map value.
    unsafe { (&raw mut (*row).spilled).write_volatile(1) };
    LIVE.insert(key, live, 0).is_ok()
}

/// It was not freed after all.
#[inline(always)]
pub(crate) fn put_back<C: EbpfContext>(ctx: &C, row: *mut Row, key: &LiveKey, live: &Live) {
    if !put(row, key, live) {
        subtract(row, live.kind, live.bytes);
        lost(ctx, row);
    }
}

/// The same where it was in `LIVE`.
#[inline(always)]
pub(crate) fn put_back_held<C: EbpfContext>(ctx: &C, row: *mut Row, key: &LiveKey, live: &Live) {
    if LIVE.insert(key, live, 0).is_err() {
        subtract(row, live.kind, live.bytes);
        lost(ctx, row);
    }
}

/// It was freed.
#[inline(always)]
pub(crate) fn subtract(row: *mut Row, kind: u64, bytes: u64) {
    // SAFETY: `row` is a map value.
    let sum = unsafe {
        if kind == HOST { &raw mut (*row).host_bytes } else { &raw mut (*row).live_bytes }
    };
    // SAFETY: as above.
    unsafe { atomic::add(sum, bytes.wrapping_neg()) };
}

/// Something may have taken memory along, and nobody knows how much of it.
#[inline(always)]
pub(crate) fn lose_sight(row: *mut Row) {
    // SAFETY: `row` is a map value.
    let (live, host) = unsafe {
        let live = (&raw const (*row).live_bytes).read_volatile();
        (live, (&raw const (*row).host_bytes).read_volatile())
    };
    if live | host != 0 {
        rows::set(row, flag::UNCLEAR_MEMORY);
    }
}

/// All memory went with the context. What was remembered has other keys from now on. Whether physical
/// memory goes too is not written anywhere: it belongs to no context.
#[inline(always)]
pub(crate) fn reset(row: *mut Row) {
    rows::clear(row, flag::SCATTERED_MEMORY);
    let taken = rows::count(row, Counter::VirtualAllocatedBytes);
    if taken == rows::count(row, Counter::VirtualFreedBytes) {
        rows::clear(row, flag::UNCLEAR_MEMORY);
    } else {
        rows::set(row, flag::UNCLEAR_MEMORY);
    }
    // SAFETY: `row` is a map value.
    unsafe {
        let resets = &raw mut (*row).resets;
        resets.write_volatile(resets.read_volatile().wrapping_add(1));
        (&raw mut (*row).live_bytes).write_volatile(0);
        (&raw mut (*row).host_bytes).write_volatile(0);
    }
}

/// Several threads may come at once: who wrote the smaller one finds that out, and tries again.
#[inline(always)]
fn raise_peak(row: *mut Row) {
    for _ in 0..4 {
        // SAFETY: `row` is a map value.
        let (live, peak) = unsafe {
            let live = (&raw const (*row).live_bytes).read_volatile();
            (live, (&raw const (*row).peak_bytes).read_volatile())
        };
        // Below zero while a free is seen before its allocation.
        if live <= peak || live > i64::MAX as u64 {
            return;
        }
        // SAFETY: as above.
        unsafe { (&raw mut (*row).peak_bytes).write_volatile(live) };
    }
}
