//! Virtual memory management. Physical memory lives while a handle of it is held, or it is mapped
//! anywhere: it can outlive the release of its handle by far.

use agent_ebpf::cookie::{Cookie, Op};
use agent_ebpf::keys::{Live, LiveKey, space};
use agent_ebpf::{Allocation, Counter, Loss, Row, flag};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};

use super::{OUT_OF_MEMORY, add, add_sized, cookie};
use crate::devices::Account;
use crate::maps::LIVE;
use crate::{atomic, live, loss, rows, threads};

const VIRTUAL: usize = Counter::VirtualAllocations as usize;
/// Where `CUmemAllocationProp` says what kind of place its memory is at, and which one.
const LOCATION_KIND: u64 = 8;
const LOCATION_ID: u64 = 12;
const ON_A_DEVICE: u32 = 1;

/// In [`Live::holds`]: once for each time that the memory was handed out to others, who may keep it.
const EXPORTED: u64 = 1 << 32;
const HELD: u64 = EXPORTED - 1;

/// Mappings that one call may end and that are looked up: the verifier wants an end.
const MOST: usize = 16;

/// A call begins. What gives something up does so now: once the driver has it back, another thread may
/// get the same handle.
#[uprobe]
pub(crate) fn cuda_virtual(ctx: ProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    let first: u64 = ctx.arg(0).unwrap_or(0);
    let second: u64 = ctx.arg(1).unwrap_or(0);
    let third: u64 = ctx.arg(2).unwrap_or(0);
    let fourth: u64 = ctx.arg(3).unwrap_or(0);
    let Some(row) = rows::expected(&ctx) else { return 0 };
    let kept = if cookie.is(Op::ReleaseHandle) {
        let key = live::key_in(row, space::HANDLE, first);
        let (was_held, given_back) = let_go(row, &key);
        [first, given_back, u64::from(was_held)]
    } else if cookie.is(Op::Unmap) {
        let (was_mapped, given_back) = unmap(row, first, second);
        [u64::from(was_mapped), second, given_back]
    } else {
        [first, second, if cookie.is(Op::Map) { fourth } else { third }]
    };
    if !threads::begin(&ctx, kept, 0) {
        loss::count(&ctx, Loss::Results, rows::current_tgid());
        done(&ctx, cookie, kept, None);
    }
    0
}

/// It returns. One that began before it was hooked is not counted.
#[uretprobe]
pub(crate) fn cuda_virtual_done(ctx: RetProbeContext) -> u32 {
    let Some(call) = threads::finish(&ctx) else { return 0 };
    done(&ctx, cookie(&ctx), call.kept, Some(ctx.ret::<i32>()));
    0
}

/// `None` = its result was not awaited, and its success is assumed.
#[inline(always)]
fn done<C: EbpfContext>(ctx: &C, cookie: Cookie, kept: [u64; 3], result: Option<i32>) {
    let Some(row) = rows::current(ctx) else { return };
    let failed = result.is_some_and(|it| it != 0);
    if cookie.is(Op::CreateHandle) {
        created(ctx, row, kept, result);
    } else if failed {
        failed_to_give_up(ctx, row, cookie, kept);
    } else if cookie.is(Op::ReleaseHandle) {
        add(ctx, row, VIRTUAL + Allocation::Frees as usize, 1);
        gave_back(ctx, row, kept[1]);
    } else if cookie.is(Op::Unmap) {
        add_sized(ctx, row, cookie.counter(), kept[1]);
        gave_back(ctx, row, kept[2]);
    } else if cookie.is(Op::Map) {
        add_sized(ctx, row, cookie.counter(), kept[1]);
        map(ctx, row, kept);
    } else {
        add(ctx, row, cookie.counter(), 1);
        kept_longer(row, cookie, kept, result.is_some());
    }
}

#[inline(always)]
fn created<C: EbpfContext>(ctx: &C, row: *mut Row, kept: [u64; 3], result: Option<i32>) {
    let account = account(ctx, row, kept[2]);
    let code = result.unwrap_or(0);
    if code != 0 {
        account.add(ctx, VIRTUAL + Allocation::Failed as usize, 1);
        if code == OUT_OF_MEMORY {
            account.add(ctx, VIRTUAL + Allocation::OutOfMemory as usize, 1);
        }
        return;
    }
    account.add(ctx, VIRTUAL + Allocation::Calls as usize, 1);
    account.add(ctx, VIRTUAL + Allocation::Bytes as usize, kept[1]);
    match pointed(kept[0]) {
        Some(handle) if result.is_some() => {
            let key = live::key_in(row, space::HANDLE, handle);
            let live = Live { bytes: kept[1], kind: VIRTUAL as u64, holds: 1 };
            live::remember_held(ctx, row, &key, &live);
        }
        _ => live::lost(ctx, row),
    }
}

/// Its properties say on which device the memory is.
#[inline(always)]
fn account<C: EbpfContext>(ctx: &C, row: *mut Row, properties: u64) -> Account {
    // SAFETY: the helper checks the address and fails where it cannot be read.
    let kind = unsafe { bpf_probe_read_user((properties + LOCATION_KIND) as *const u32) };
    // SAFETY: as above.
    let ordinal = unsafe { bpf_probe_read_user((properties + LOCATION_ID) as *const u32) };
    match (kind, ordinal) {
        (Ok(ON_A_DEVICE), Ok(ordinal)) => Account::on(row, ordinal),
        _ => Account::current(ctx, row),
    }
}

/// A handle, or a mapping, of this memory is gone. Returns whether it was known, and the bytes of the
/// memory where that was the last.
#[inline(always)]
fn let_go(row: *mut Row, key: &LiveKey) -> (bool, u64) {
    let Some(known) = LIVE.get_ptr_mut(key) else { return (false, 0) };
    // SAFETY: `known` is a map value.
    let (bytes, holds) = unsafe { ((*known).bytes, &raw mut (*known).holds) };
    // SAFETY: map values are aligned to 8 bytes.
    unsafe { atomic::add(holds, 1_u64.wrapping_neg()) };
    // SAFETY: as above.
    let left = unsafe { holds.read_volatile() };
    // Of two threads that come at once one removes it.
    if left & HELD != 0 || LIVE.remove(key).is_err() {
        return (true, 0);
    }
    if left != 0 {
        // Others may keep it, and then it is still this process's.
        rows::set(row, flag::UNTRACKED);
    }
    (true, bytes)
}

/// Ends the mappings from one address to another. Returns whether any was known, and the bytes of the
/// memory of which that was the last hold.
#[inline(never)]
fn unmap(row: *mut Row, from: u64, bytes: u64) -> (bool, u64) {
    let (mut at, end) = (from, from.wrapping_add(bytes));
    let mut given_back = 0_u64;
    for _ in 0..MOST {
        if at >= end {
            break;
        }
        let Some(mapping) = live::take_held(&live::key_in(row, space::MAPPING, at)) else { break };
        let (_, gone) = let_go(row, &live::key_in(row, space::HANDLE, mapping.kind));
        given_back = given_back.wrapping_add(gone);
        at = at.wrapping_add(mapping.bytes);
    }
    let any = at != from;
    if any && at < end {
        // What else was mapped there, if anything, is not known.
        live::lose_sight(row);
    }
    (any, given_back)
}

/// What is mapped keeps its memory, whether it is this process's or somebody else's.
#[inline(always)]
fn map<C: EbpfContext>(ctx: &C, row: *mut Row, [address, bytes, handle]: [u64; 3]) {
    let key = live::key_in(row, space::MAPPING, address);
    let mapping = Live { bytes, kind: handle, holds: 0 };
    if LIVE.insert(&key, &mapping, 0).is_err() {
        live::lost(ctx, row);
        return;
    }
    hold(row, handle, 1);
}

#[inline(always)]
fn hold(row: *mut Row, handle: u64, holds: u64) {
    if let Some(known) = LIVE.get_ptr_mut(live::key_in(row, space::HANDLE, handle)) {
        // SAFETY: map values are aligned to 8 bytes.
        unsafe { atomic::add(&raw mut (*known).holds, holds) };
    }
}

/// Memory is held once more, or in a way that cannot be followed.
#[inline(always)]
fn kept_longer(row: *mut Row, cookie: Cookie, kept: [u64; 3], is_known: bool) {
    if cookie.is(Op::ExportHandle) {
        hold(row, kept[1], EXPORTED);
    } else if let (true, true, Some(handle)) =
        (cookie.is(Op::RetainHandle), is_known, pointed(kept[0]))
    {
        hold(row, handle, 1);
    } else {
        rows::set(row, flag::UNTRACKED);
    }
}

/// It was taken for given up.
#[inline(always)]
fn failed_to_give_up<C: EbpfContext>(ctx: &C, row: *mut Row, cookie: Cookie, kept: [u64; 3]) {
    if cookie.is(Op::ReleaseHandle) && kept[2] != 0 {
        let key = live::key_in(row, space::HANDLE, kept[0]);
        if kept[1] == 0 {
            hold(row, kept[0], 1);
        } else {
            let live = Live { bytes: kept[1], kind: VIRTUAL as u64, holds: 1 };
            live::put_back_held(ctx, row, &key, &live);
        }
    } else if cookie.is(Op::Unmap) && kept[0] != 0 {
        live::lose_sight(row);
    }
}

#[inline(always)]
fn gave_back<C: EbpfContext>(ctx: &C, row: *mut Row, bytes: u64) {
    if bytes != 0 {
        add(ctx, row, VIRTUAL + Allocation::FreedBytes as usize, bytes);
        live::subtract(row, VIRTUAL as u64, bytes);
    }
}

/// The driver has written the handle to where the caller asked for it.
#[inline(always)]
fn pointed(at: u64) -> Option<u64> {
    // SAFETY: the helper checks the address and fails where it cannot be read.
    unsafe { bpf_probe_read_user(at as *const u64) }.ok()
}
