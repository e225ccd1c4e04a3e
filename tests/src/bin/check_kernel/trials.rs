//! The agent on a node with stand-ins, step by step: what it hooks, counts, says and leaves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::counted::{memory_equals, work_equals};
use tests::node::{Node, Setup};
use tests::program;
use tests::tenant::{Tenant, Truth};
use tests::text::changed_bytes;
use tests::wait::{check as holds, eventually, now};

use crate::check;
use crate::kernel::Kernel;

/// An emulated machine is some twenty times slower than a real one.
const SOON: Duration = Duration::from_secs(120);
/// What a stop may take here.
const STOP: Duration = Duration::from_secs(60);

/// The tenant of what is in no group: the user.
const ROOT: &str = "0";

const NOBODY: u32 = 65_532;
const LAUNCHES: &str = "gleaner_tenant_cuda_launches_total";
const PIN_ROOT: &str = "/sys/fs/bpf/gleaner";

pub(crate) fn as_root(kernel: &Kernel) {
    let mut node = node(PIN_ROOT);
    let said = |what: &str| format!("root: {what}");
    let is_on = check(&said("every function is hooked"), || {
        let begun = now();
        node.start_agent_unready();
        hooked(&node, kernel, begun.elapsed())
    });
    if is_on {
        check(&said("every call counts once"), || counts(&node));
        check(&said("what is allocated is known while it is"), || live(&node));
        check(&said("short lives, forks and programs are counted"), || lives(&node));
        check(&said("what outlives the agent is said"), || pinned(&node, kernel));
        check(&said("SIGTERM takes every hook off"), || stop(&mut node));
        check(&said("after SIGKILL the next start counts"), || killed(&mut node, kernel));
    }
    check(&said("doctor names what this kernel lacks"), || doctor(&node, kernel));
}

pub(crate) fn as_user(kernel: &Kernel) {
    let mut node = node("");
    let said = |what: &str| format!("user with {}: {what}", kernel.capabilities());
    let is_on = check(&said("every function is hooked"), || {
        let begun = now();
        node.start_agent_as(NOBODY, kernel.capabilities());
        hooked(&node, kernel, begun.elapsed())
    });
    if is_on {
        check(&said("every call counts once"), || counts(&node));
        check(&said("SIGTERM takes every hook off"), || stop(&mut node));
    }
}

/// The agent goes on without tracing, and says what it would need.
pub(crate) fn too_old() {
    let mut node = node("");
    check("the agent meters without tracing, and says why", || {
        node.start_agent();
        node.until_part(SOON, "nvml", "active");
        let why = node.until_part(SOON, "tracing", "failed");
        assert!(why.contains("Linux 5.15"), "it says {why}");
        node.stop_agent();
        why
    });
    check("doctor says what is missing", || {
        let said = program::run_within(SOON, &node.agent_command(&["doctor"]));
        assert_eq!(said.code, Some(69), "{}", said.output);
        let tracing = said.output.lines().find(|it| it.starts_with("MISSING")).unwrap_or_default();
        assert!(tracing.contains("Linux 5.15"), "{}", said.output);
        tracing.to_owned()
    });
}

fn node(pin_root: &str) -> Node {
    let setup = Setup::gpus(2).with(|it| it.config.cuda.pin_root = PathBuf::from(pin_root));
    setup.make()
}

/// Waits for the agent, and says what it has hooked, how, and after how long.
fn hooked(node: &Node, kernel: &Kernel, started: Duration) -> String {
    let begun = now();
    let said = node.until_part(SOON, "tracing", "active");
    let library = &node.status()["libraries"][0];
    let (attached, wanted) = (&library["attached"], &library["wanted"]);
    assert!(attached == wanted && attached.as_u64() > Some(50), "{attached} of {wanted}: {said}");
    let way = if kernel.has_multi() { "many at a time" } else { "one by one" };
    assert_eq!(said.contains("one by one"), !kernel.has_multi(), "{said}");
    let took = started + begun.elapsed();
    format!("{attached} of {wanted}, {way}, {:.1} s after the start", took.as_secs_f64())
}

/// Workloads whose sizes are primes, against the metrics.
fn counts(node: &Node) -> String {
    let plain = node.tenant("plain", &["--rounds=13", "--threads=3"]);
    let variants = ["--rounds=7", "--per-thread", "--proc-address", "--device=1"];
    let variants = node.tenant("variants", &variants).finish();
    let plain = plain.finish();
    for (tenant, truth) in [("plain", &plain), ("variants", &variants)] {
        node.until(SOON, "the agent has every call", |it| {
            work_equals(it, tenant, truth)?;
            memory_equals(it, tenant, truth)
        });
    }
    no_losses(node);
    let (calls, bytes) =
        (called(&plain) + called(&variants), plain.copied_bytes() + variants.copied_bytes());
    format!("{calls} calls of two workloads, {bytes} bytes copied")
}

fn live(node: &Node) -> String {
    let tenant = node.tenant("holder", &["--memory-mib=3", "--hold"]);
    let held = tenant.truth().of("cuMemAlloc_v2").bytes;
    let counted = node.until(SOON, "the agent knows what is held", |it| {
        let live = it.count("gleaner_tenant_cuda_live_bytes", &[("tenant", "holder")]);
        holds(live == Some(held), || format!("{live:?} of {held}")).map(|()| held)
    });
    tenant.stop();
    node.until(SOON, "it holds nothing any more", |it| {
        let left = it.count("gleaner_tenant_cuda_live_bytes", &[("tenant", "holder")]);
        holds(left.is_none(), || format!("{left:?}"))
    });
    format!("{counted} bytes, and none after the end of the process")
}

fn lives(node: &Node) -> String {
    const LIVES: u64 = 61;
    let churn = ["--churn=61", "--at-a-time=4", "--launches=7"];
    let truth = node.tenant("churn", &churn).finish();
    assert_eq!(truth.launches(), LIVES * 7);
    node.until(SOON, "every short life is counted", |it| {
        it.counts(LAUNCHES, &[("tenant", "churn"), ("kind", "kernel")], truth.kernels())
    });
    let then = format!("--library {} --launches=11", node.cuda_library().display());
    program::run_within(SOON, &node.workload(&["--launches=13", "--fork", "--then", &then]));
    node.until(SOON, "parent, child and what they became are counted", |it| {
        it.counts(LAUNCHES, &[("tenant", ROOT), ("kind", "kernel")], 2 * (13 + 11))
    });
    no_losses(node);
    format!("{LIVES} processes of a moment; a parent and its child, and what both became")
}

fn pinned(node: &Node, kernel: &Kernel) -> String {
    let said = node.until_part(SOON, "tracing", "active");
    let pins = files_below(Path::new(PIN_ROOT));
    if kernel.has_multi() {
        assert!(pins > 0 && !said.contains("not counted"), "{pins} pins: {said}");
        return "hooks and counts are pinned".to_owned();
    }
    assert!(pins == 0 && said.contains("Linux 6.6"), "{pins} pins: {said}");
    "nothing is pinned, and the status says so".to_owned()
}

/// A process that runs on has its library as it is in the file.
fn stop(node: &mut Node) -> String {
    let tenant = node.tenant("witness", &["--launches-per-second=200"]);
    let hooks = hooks_in(node, &tenant);
    assert!(hooks > 50, "{hooks} hooks");
    let begun = now();
    end(node);
    let took = begun.elapsed();
    assert_eq!(hooks_in(node, &tenant), 0, "hooks are left");
    assert_eq!(files_below(Path::new(PIN_ROOT)), 0, "pins are left");
    tenant.stop();
    assert!(took < STOP, "it took {took:?}");
    format!("{hooks} hooks in {:.1} s", took.as_secs_f64())
}

fn killed(node: &mut Node, kernel: &Kernel) -> String {
    start(node);
    let tenant = node.tenant("survivor", &["--launches-per-second=200"]);
    node.kill_agent();
    let hooks = if kernel.has_multi() {
        assert!(hooks_in(node, &tenant) > 50, "hooks are pinned");
        "stay"
    } else {
        eventually(SOON, "the hooks go with the agent", || {
            let hooks = hooks_in(node, &tenant);
            holds(hooks == 0, || format!("{hooks} are there"))
        });
        "go"
    };
    tenant.stop();
    start(node);
    let truth = node.tenant("after", &["--launches=17"]).finish();
    node.until(SOON, "the next agent counts", |it| {
        it.counts(LAUNCHES, &[("tenant", "after"), ("kind", "kernel")], truth.kernels())
    });
    end(node);
    format!("the hooks of the dead one {hooks}")
}

fn start(node: &mut Node) {
    node.start_agent_unready();
    node.until_part(SOON, "tracing", "active");
}

fn end(node: &mut Node) {
    let mut agent = node.take_agent();
    agent.send(Signal::SIGTERM);
    let status = agent.wait(SOON);
    assert!(status.success(), "{status}: {}", node.agent_log());
}

fn doctor(node: &Node, kernel: &Kernel) -> String {
    let said = program::run_within(SOON, &node.agent_command(&["doctor"]));
    assert_eq!(said.code, Some(0), "{}", said.output);
    assert_eq!(said.output.contains("Linux 6.6"), !kernel.has_multi(), "{}", said.output);
    let findings = said.output.lines().filter(|it| it.starts_with("this kernel"));
    findings.collect::<Vec<_>>().join("; ")
}

/// Bytes of the library that are others in the memory of a tenant: one for each hook.
fn hooks_in(node: &Node, tenant: &Tenant) -> usize {
    changed_bytes(tenant.pid(), &node.cuda_library())
}

fn no_losses(node: &Node) {
    let lost = node.metrics().sum("gleaner_tracing_lost_total", &[]);
    assert!(lost.is_none_or(|it| it == 0.0), "{lost:?} were lost");
}

fn called(truth: &Truth) -> u64 {
    truth.0.values().map(|it| it.calls).sum()
}

/// Files below a folder; none where it is not there.
fn files_below(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let count = |path: PathBuf| if path.is_dir() { files_below(&path) } else { 1 };
    entries.map(|it| count(it.path())).sum()
}
