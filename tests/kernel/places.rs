//! Where a hook is in its function makes a call cheap or dear, and changes no count.

use std::path::Path;
use std::process::Command;

use agent::clock;
use agent::config::{self, AttachAt};
use agent::samplers::cuda::Tracer;
use agent::samplers::cuda::library::coverage::HookState;

use crate::rig::{Build, Node, exited, without_wait};

fn tracer(node: &Node, attach_at: AttachAt) -> Tracer {
    let libraries = vec![node.library()];
    let config = config::Cuda { libraries, attach_at, pin_root: None, ..config::Cuda::default() };
    let mut tracer = Tracer::start(&config, Path::new("/proc"));
    let tracing = tracer.read(clock::boot()).tracing;
    assert!(tracing.on, "this test needs to trace: {}", tracing.reason);
    tracer
}

#[test]
fn entry_and_offset_count_the_same() {
    let check = |build, attach_at| {
        let node = Node::new(build);
        let mut tracer = tracer(&node, attach_at);
        let truth = node.run("--rounds 50 --threads 2");
        let (_, process) = exited(&mut tracer, truth.tgid);
        let counts = without_wait(process.counts);
        assert_eq!(counts, truth.counts(), "{build:?} {attach_at:?}");
        counts
    };
    for build in Build::ALL {
        assert_eq!(check(build, AttachAt::Entry), check(build, AttachAt::Cheapest), "{build:?}");
    }
}

#[test]
fn the_check_of_a_driver_finds_nothing_wrong_in_stand_ins() {
    for build in Build::ALL {
        let node = Node::new(build);
        let check = Command::new(env!("CARGO_BIN_EXE_check_driver")).arg(node.library()).output();
        let check = check.expect("it is built with this test");
        let said = String::from_utf8_lossy(&check.stdout);
        assert!(check.status.success() && !said.contains("WRONG"), "{build:?}\n{said}");
        assert_eq!(said.matches("\nok ").count(), 4, "{build:?}\n{said}");
    }
}

#[test]
fn each_place_has_its_reason() {
    let check = |build, attach_at, expected: &str, expected_slow| {
        let node = Node::new(build);
        for hook in &tracer(&node, attach_at).coverage()[0].hooks {
            let HookState::Attached { slow, reason, .. } = hook.state else { continue };
            assert_eq!(reason.to_string(), expected, "{build:?} {}", hook.symbol);
            assert_eq!(slow, expected_slow, "{build:?} {}", hook.symbol);
        }
    };
    let stepped = |form: &str| {
        format!("entry: {form}, which must be single-stepped; cuda.attach_at is \"entry\"")
    };
    check(Build::Cmp, AttachAt::Cheapest, "je rel8 at +10, after cmp (10 bytes)", false);
    check(Build::Cmp, AttachAt::Entry, &stepped("cmp [memory]"), true);
    check(Build::Endbr64, AttachAt::Cheapest, "push rbx at +4, after endbr64 (4 bytes)", false);
    check(Build::Endbr64, AttachAt::Entry, &stepped("endbr64"), true);
    check(Build::Push, AttachAt::Cheapest, "push rbp at the entry", false);
    check(Build::Push, AttachAt::Entry, "entry: push rbp; cuda.attach_at is \"entry\"", false);
}
