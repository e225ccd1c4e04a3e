//! What the agent looks at, and how little it needs to be allowed.
#![expect(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tests::artefacts::installed;
use tests::node::{Node, Setup};
use tests::tenant::{Tenant, Truth};
use tests::wait::{check, eventually};

const SOON: Duration = Duration::from_secs(30);
const LAUNCHES: &str = "gleaner_tenant_cuda_launches_total";
const COPIED: &str = "gleaner_tenant_cuda_copied_bytes_total";

/// Has no name and no files anywhere.
const NOBODY: u32 = 65_532;

/// Names in a process's folder that hold its secrets.
const SECRETS: [&str; 3] = ["environ", "cmdline", "mem"];

#[test]
fn no_secret_of_any_process_is_opened() {
    let mut node = Setup::gpus(1).with(|it| it.config.cuda.max_libraries_per_tenant = 8).make();
    let (copy, library) = tenant_with_a_copy(&node);
    let trace = node.folder().join("strace");
    let mut strace = Command::new(installed("strace", "strace"));
    // As a child of the agent, so that the agent has the place of the command.
    strace.args(["-D", "-f", "-qq", "-s", "4096", "-e", "trace=file", "-o"]).arg(&trace);
    node.start_agent_under(strace);
    node.until_part(SOON, "tracing", "active");
    let truth = node.tenant("t", &["--rounds=3"]).finish();
    counted(&node, "t", &truth);
    finds(&node, &library);
    assert!(node.stop_agent().success());
    let calls = std::fs::read_to_string(&trace).unwrap();
    let own = format!("/proc/{}/", copy.pid());
    for part in ["cgroup\"", "maps\"", "map_files/"] {
        let seen = calls.lines().any(|it| it.contains(&own) && it.contains(part));
        assert!(seen, "the trace shows that the agent looked at {own}{part}");
    }
    let secrets: Vec<&str> = calls.lines().filter(|it| names_a_secret(it)).collect();
    assert!(secrets.is_empty(), "{secrets:#?}");
}

/// Whether a path in a line of strace ends in a secret's name, also relative to an open folder.
fn names_a_secret(line: &str) -> bool {
    let paths = line.split('"').skip(1).step_by(2);
    let mut names = paths.filter_map(|it| Path::new(it).file_name()?.to_str());
    names.any(|it| SECRETS.contains(&it))
}

#[test]
fn a_secret_would_be_noticed() {
    for line in [
        "12 openat(AT_FDCWD, \"/proc/7/environ\", O_RDONLY|O_CLOEXEC) = 9",
        "12 openat(8, \"cmdline\", O_RDONLY) = -1 EACCES (Permission denied)",
        "12 openat2(AT_FDCWD, \"/proc/7/mem\", {flags=O_RDONLY}, 24) = 9",
    ] {
        assert!(names_a_secret(line), "{line}");
    }
    assert!(!names_a_secret("12 openat(AT_FDCWD, \"/proc/7/maps\", O_RDONLY) = 9"));
}

#[test]
fn two_capabilities_count_exactly_and_say_what_they_do_not_show() {
    let mut node = Setup::gpus(1).with(|it| it.config.cuda.max_libraries_per_tenant = 8).make();
    let (_copy, library) = tenant_with_a_copy(&node);
    start_as_nobody(&mut node, "+bpf,+perfmon");
    let truth = node.tenant("t", &["--rounds=20", "--threads=2", "--launches=3000"]).finish();
    counted(&node, "t", &truth);
    eventually(SOON, "what is not seen is said, and what would show it", || {
        let said = node.until_part(SOON, "tracing", "active");
        check(said.contains("cannot be opened: needs CAP_CHECKPOINT_RESTORE"), || said)
    });
    let status = node.status();
    let libraries = status["libraries"].as_array().unwrap();
    let found = libraries.iter().find(|it| it["path"] == library.to_str().unwrap()).unwrap();
    assert!(found["error"].as_str().unwrap().contains("CAP_SYS_PTRACE"), "{found}");
    let told = libraries.iter().find(|it| it["path"] == node.cuda_library().to_str().unwrap());
    let told = told.unwrap();
    assert_eq!(told["attached"], told["wanted"], "memory functions are among them: {told}");
}

#[test]
fn two_more_capabilities_find_copies() {
    let mut node = Setup::gpus(1).with(|it| it.config.cuda.max_libraries_per_tenant = 8).make();
    let (_copy, library) = tenant_with_a_copy(&node);
    start_as_nobody(&mut node, "+bpf,+perfmon,+sys_ptrace,+checkpoint_restore");
    finds(&node, &library);
}

/// A process that uses another file of the driver library than the agent was told of.
fn tenant_with_a_copy(node: &Node) -> (Tenant, PathBuf) {
    let library = node.folder().join("libcuda.so.550.163.01");
    std::fs::copy(node.cuda_library(), &library).unwrap();
    let then = format!("--library {} --rounds=3 --hold", library.display());
    (node.tenant("copy", &["--then", &then]), library)
}

#[track_caller]
fn start_as_nobody(node: &mut Node, capabilities: &str) {
    node.start_agent_as(NOBODY, capabilities);
    node.until_part(SOON, "tracing", "active");
}

/// Waits until the agent has counted what a tenant did.
#[track_caller]
fn counted(node: &Node, tenant: &str, truth: &Truth) {
    node.until(SOON, "every call is counted", |it| {
        it.counts(LAUNCHES, &[("tenant", tenant), ("kind", "kernel")], truth.kernels())?;
        let downloads = ["cuMemcpyDtoH_v2", "cuMemcpyDtoHAsync_v2"].map(|it| truth.of(it).bytes);
        let labels = [("tenant", tenant), ("direction", "device_to_host")];
        it.counts(COPIED, &labels, downloads.iter().sum())
    });
}

/// Waits until the agent has hooked this file, which it was not told of.
#[track_caller]
fn finds(node: &Node, library: &Path) {
    node.until(SOON, "the copy is found and hooked", |_| {
        let status = node.status();
        let libraries = status["libraries"].as_array().unwrap();
        let found = libraries.iter().find(|it| it["path"] == library.to_str().unwrap());
        let hooked = found.is_some_and(|it| it["attached"].as_u64() > Some(0));
        check(hooked, || {
            format!("{:?}", libraries.iter().map(|it| &it["path"]).collect::<Vec<_>>())
        })
    });
}
