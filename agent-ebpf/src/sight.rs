//! Whether all work of a process was seen.
//!
//! A process may have made streams and contexts, and launched, before hooks were on, or while they were
//! off. Nothing that it waits for then ends all work: from that time on it may be busy until its end.

use agent_ebpf::cookie::{Cookie, Op};
use agent_ebpf::{Row, flag};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::helpers::generated::bpf_get_attach_cookie;

use crate::maps::SIGHTS;
use crate::{rows, spans};

/// Marks a row of whose work not all was seen. To be asked before anything is concluded from what was.
#[inline(never)]
pub(crate) fn check<C: EbpfContext>(ctx: &C, row: *mut Row) {
    if rows::has(row, flag::UNSEEN) || rows::has(row, flag::SHARED) {
        return;
    }
    if let Some(from) = blind_from(ctx, row) {
        rows::set(row, flag::UNSEEN);
        spans::open_from(row, from);
    }
}

/// A row is made for a process. At any call but the first it comes late: others had taken all rows, or
/// hooks were not on.
#[inline(always)]
pub(crate) fn begin<C: EbpfContext>(ctx: &C, row: *mut Row) {
    check(ctx, row);
    if !cookie(ctx).is(Op::Begin) && !rows::has(row, flag::UNSEEN) {
        rows::set(row, flag::UNSEEN);
        rows::set(row, flag::UNCLEAR_MEMORY);
        // SAFETY: the helper has no preconditions.
        spans::open_from(row, unsafe { bpf_ktime_get_boot_ns() });
    }
}

#[inline(always)]
fn cookie<C: EbpfContext>(ctx: &C) -> Cookie {
    // SAFETY: the context is the one that the kernel gave the program.
    Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) })
}

/// From when on the calling process may have work of which nothing is known; `None` = all was seen.
#[inline(always)]
fn blind_from<C: EbpfContext>(ctx: &C, row: *const Row) -> Option<u64> {
    let sight = SIGHTS.get_ptr(cookie(ctx).file())?;
    // SAFETY: `sight` and `row` are map values. User space writes the time of blindness first.
    let (since, blind, start) = unsafe {
        let since = (&raw const (*sight).since_ns).read_volatile();
        let blind = (&raw const (*sight).blind_ns).read_volatile();
        (since, blind, (&raw const (*row).start_boottime_ns).read_volatile())
    };
    // A row that is being made says nothing yet.
    if start == 0 || since != 0 && start >= since {
        return None;
    }
    if since == 0 {
        // SAFETY: the helper has no preconditions.
        return Some(unsafe { bpf_ktime_get_boot_ns() });
    }
    Some(if blind > start { blind } else { start })
}
