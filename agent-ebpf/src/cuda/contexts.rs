//! Contexts and streams: which device a thread's calls are for, and what may run side by side.

use agent_ebpf::cookie::{Cookie, Op};
use agent_ebpf::keys::Thread;
use agent_ebpf::{Counter, Loss, Row, UNKNOWN_DEVICE, flag};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};

use super::{argument, cookie};
use crate::{devices, gate, loss, rows, threads};

/// A call about contexts begins.
#[uprobe]
pub(crate) fn cuda_context(ctx: ProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    if gate::is_closed(cookie) {
        return 0;
    }
    let Some(row) = rows::expected(&ctx) else { return 0 };
    if cookie.counter() == Counter::ContextSwitches as usize {
        rows::add(row, Counter::ContextSwitches as usize, 1);
    }
    if cookie.is(Op::CreateStream) {
        // At once: other threads may see it before the call has returned.
        rows::set(row, flag::STREAMS);
    }
    let first: u64 = ctx.arg(0).unwrap_or(0);
    if !threads::begin(&ctx, [first, argument(&ctx, cookie), 0], 0) {
        loss::count(&ctx, Loss::Contexts, rows::current_tgid());
    }
    0
}

/// It returns; where it failed, nothing has changed.
#[uretprobe]
pub(crate) fn cuda_context_set(ctx: RetProbeContext) -> u32 {
    let Some(call) = threads::finish(&ctx) else { return 0 };
    if ctx.ret::<i32>() != 0 {
        return 0;
    }
    let Some(row) = rows::current(&ctx) else { return 0 };
    let [first, ordinal, _] = call.kept;
    // The driver has ordinals of 32 bits; the register may hold more.
    let device = (ordinal as u32).saturating_add(1);
    let cookie = cookie(&ctx);
    if cookie.is(Op::CreateStream) {
        rows::add(row, Counter::Streams as usize, 1);
    } else if cookie.is(Op::Identify) {
        identified(&ctx, row, first, device);
    } else if cookie.is(Op::ResetContext) {
        devices::reset(&ctx, row, (first as u32).saturating_add(1));
    } else if cookie.is(Op::ReleaseContext) {
        devices::release(&ctx, row, (first as u32).saturating_add(1));
    } else {
        changed(&ctx, row, cookie, first, device);
    }
    0
}

#[inline(always)]
fn identified<C: EbpfContext>(ctx: &C, row: *mut Row, at: u64, device: u32) {
    // SAFETY: the helper checks the address and fails where it cannot be read.
    if let Ok(uuid) = unsafe { bpf_probe_read_user(at as *const [u8; 16]) } {
        devices::identify(ctx, row, device, &uuid);
    }
}

/// The program has another context, or the thread another current one.
#[inline(always)]
fn changed<C: EbpfContext>(ctx: &C, row: *mut Row, cookie: Cookie, first: u64, device: u32) {
    let made = cookie.is(Op::CreateContext) || cookie.is(Op::RetainContext);
    // SAFETY: the helper checks the address and fails where it cannot be read.
    let written = || unsafe { bpf_probe_read_user(first as *const u64) }.unwrap_or(0);
    let context = if made { written() } else { first };
    if made {
        rows::add(row, Counter::Contexts as usize, 1);
    }
    if cookie.is(Op::RetainContext) {
        devices::retain(ctx, row, context, device);
        return;
    }
    if cookie.is(Op::CreateContext) {
        devices::note(ctx, row, context, device);
    } else if cookie.is(Op::SetContext) || cookie.is(Op::PushContext) {
        devices::note(ctx, row, context, UNKNOWN_DEVICE);
    } else if cookie.is(Op::DestroyContext) {
        rows::add(row, Counter::ContextsDestroyed as usize, 1);
        devices::forget(ctx, row, context);
    }
    match threads::known() {
        Some(thread) => switch(thread, cookie, context),
        None => loss::count(ctx, Loss::Contexts, rows::current_tgid()),
    }
}

/// As the driver does with its own stack of the thread.
#[inline(always)]
fn switch(thread: *mut Thread, cookie: Cookie, context: u64) {
    let sight = gate::switches(cookie);
    threads::look_at_contexts(thread, sight);
    if cookie.is(Op::CreateContext) || cookie.is(Op::PushContext) {
        threads::push_context(thread, context);
    } else if cookie.is(Op::PopContext) {
        threads::pop_context(thread);
    } else if cookie.is(Op::SetContext) {
        threads::pop_context(thread);
        if context != 0 {
            threads::push_context(thread, context);
        }
    } else if cookie.is(Op::DestroyContext) && threads::context(thread, sight) == Some(context) {
        threads::pop_context(thread);
    }
}
