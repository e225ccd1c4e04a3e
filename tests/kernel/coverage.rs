//! Libraries come, are replaced and go, and hooks with them; what cannot be hooked is explained.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use agent::clock;
use agent::config;
use agent::model::units::BootNs;
use agent::samplers::cuda::Tracer;
use agent::samplers::cuda::library::coverage::HookState;
use tests::text::{BREAKPOINT, byte_in_memory};

use crate::rig::{Build, Node, exited, now, only, without_wait};

/// Later than the tracer's next look at the paths.
pub(crate) fn later() -> BootNs {
    clock::boot() + 6_000_000_000
}

#[test]
fn hooks_are_placed_where_they_are_cheap() {
    for (build, skip) in [(Build::Cmp, 10), (Build::Push, 0), (Build::Endbr64, 4)] {
        let node = Node::new(build);
        let mut tracer = node.tracer();
        let tracing = tracer.read(clock::boot()).tracing;
        assert_eq!((tracing.hooks_attached, tracing.hooks_slow), (tracing.hooks_wanted, 0));
        let coverage = tracer.coverage();
        assert_eq!(coverage.len(), 1);
        for hook in &coverage[0].hooks {
            match hook.state {
                HookState::Attached { skip: found, slow, .. } => {
                    assert_eq!((found, slow), (skip, false), "{build:?} {}", hook.symbol);
                }
                ref state => assert_eq!(*state, HookState::Missing, "{build:?} {}", hook.symbol),
            }
        }
    }
}

#[test]
fn a_library_that_appears_later_is_hooked() {
    let node = Node::without_driver();
    let mut tracer = node.idle_tracer(64);
    let tracing = tracer.read(clock::boot()).tracing;
    assert!(!tracing.on && tracing.reason.starts_with("no libcuda.so.1"), "{tracing:?}");
    node.install(Build::Push);
    assert!(tracer.read(later()).tracing.on);
    let truth = node.run("--rounds 4");
    assert_eq!(without_wait(exited(&mut tracer, truth.tgid).1.counts), truth.counts());
}

#[test]
fn after_an_upgrade_old_and_new_processes_count() {
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let mut old = node.start("--launches-per-second 200 --hold");
    let attached = tracer.read(clock::boot()).tracing.hooks_attached;
    node.install(Build::Push);
    assert_eq!(tracer.read(later()).tracing.hooks_attached, 2 * attached);
    let new = node.run("--rounds 4");
    assert_eq!(without_wait(exited(&mut tracer, new.tgid).1.counts), new.counts());
    let before = old.truth().called("cuLaunchKernel");
    std::thread::sleep(Duration::from_millis(200));
    let (_, process) = only(&tracer.read(clock::boot()), old.tgid());
    assert!(process.counts.launches() > before && process.fully_hooked, "{process:?}");
}

#[test]
fn two_paths_to_one_file_are_hooked_once() {
    let node = Node::new(Build::Cmp);
    let other = node.folder().join("libcuda.so");
    std::os::unix::fs::symlink(node.library(), &other).unwrap();
    let libraries = vec![other, node.library()];
    let config = config::Cuda { libraries, max_processes: 64, ..config::Cuda::default() };
    let mut tracer = Tracer::start(&config, Path::new("/proc"));
    assert_eq!(tracer.coverage().len(), 1);
    let truth = node.run("--rounds 4");
    assert_eq!(without_wait(exited(&mut tracer, truth.tgid).1.counts), truth.counts());
}

#[test]
fn a_copy_that_is_not_hooked_makes_silence_no_evidence() {
    let node = Node::new(Build::Cmp);
    let elsewhere = Node::new(Build::Cmp);
    let config = config::Cuda { max_libraries_per_tenant: 0, ..node.config(64, None) };
    let mut tracer = Tracer::start(&config, Path::new("/proc"));
    let hooked = node.start("--hold");
    let unhooked = elsewhere.start("--rounds 3 --hold");
    tracer.track(&[hooked.tgid(), unhooked.tgid()].into());
    tracer.read(clock::boot());
    let readings = tracer.read(later());
    assert!(only(&readings, hooked.tgid()).1.fully_hooked);
    let (_, silent) = only(&readings, unhooked.tgid());
    assert!(!silent.fully_hooked && silent.counts.is_zero(), "{silent:?}");
}

#[test]
fn what_is_not_the_driver_is_refused_with_a_reason() {
    let node = Node::without_driver();
    let check = |content: &[u8], expected: &str| {
        std::fs::write(node.library(), content).unwrap();
        let tracing = node.idle_tracer(64).read(clock::boot()).tracing;
        assert!(!tracing.on && tracing.reason.contains(expected), "{expected}: {tracing:?}");
    };
    check(b"not a library", "is not a 64-bit ELF file");
    let program = std::fs::read("/proc/self/exe").unwrap();
    check(&program, "its SONAME is \"\"");
}

#[test]
fn detaching_is_quick_and_leaves_the_code_as_it_was() {
    let node = Node::new(Build::Cmp);
    let mut workload = node.start("--rounds 1 --hold");
    let tracer = node.tracer();
    let hooks = tracer.coverage().remove(0).hooks;
    let offsets: Vec<u64> = hooks
        .iter()
        .filter_map(|it| match it.state {
            HookState::Attached { offset, .. } => Some(offset),
            _ => None,
        })
        .collect();
    let instructions = || -> Vec<u8> {
        offsets.iter().map(|it| byte_in_memory(workload.tgid(), &node.library(), *it)).collect()
    };
    assert!(instructions().iter().all(|it| *it == BREAKPOINT), "{:x?}", instructions());
    let begun = now();
    tracer.stop();
    assert!(begun.elapsed() < Duration::from_secs(1), "took {:?}", begun.elapsed());
    let file = std::fs::read(node.library()).unwrap();
    let original: Vec<u8> = offsets.iter().map(|it| file[usize::try_from(*it).unwrap()]).collect();
    assert_eq!(instructions(), original);
    workload.truth();
}

#[test]
fn without_privilege_the_reason_says_what_to_do() {
    if is_privileged() {
        return again("coverage::without_privilege_the_reason_says_what_to_do", "-all");
    }
    let node = Node::new(Build::Cmp);
    let mut tracer = node.idle_tracer(64);
    tracer.track(&[1].into());
    let tracing = tracer.read(clock::boot()).tracing;
    assert!(!tracing.on);
    assert!(tracing.reason.contains("needs CAP_BPF and CAP_PERFMON"), "{}", tracing.reason);
}

#[test]
fn two_capabilities_are_enough() {
    if is_privileged() {
        return again("coverage::two_capabilities_are_enough", "-all,+bpf,+perfmon");
    }
    let node = Node::new(Build::Cmp);
    let mut tracer = node.tracer();
    let truth = node.run("--rounds 4");
    assert_eq!(without_wait(exited(&mut tracer, truth.tgid).1.counts), truth.counts());
}

/// Whether this process has CAP_SYS_ADMIN.
pub(crate) fn is_privileged() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("every process has one");
    let mut lines = status.lines();
    let mask = lines.find_map(|it| it.strip_prefix("CapEff:")).expect("the kernel writes it");
    let mask = u64::from_str_radix(mask.trim(), 16).expect("the kernel writes numbers");
    mask >> 21 & 1 == 1
}

/// Runs one test of this program with fewer capabilities.
pub(crate) fn again(test: &str, capabilities: &str) {
    let status = Command::new("setpriv")
        .args(["--inh-caps=-all", "--ambient-caps=-all"])
        .arg(format!("--bounding-set={capabilities}"))
        .arg(std::env::current_exe().expect("a test knows where it is"))
        .args(["--exact", test, "--test-threads=1"])
        .status()
        .expect("`setpriv` of util-linux can be started");
    assert!(status.success(), "{test} with {capabilities}: {status}");
}
