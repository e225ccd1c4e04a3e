//! The kernel tests of this project, on this kernel: every kind of call, of process and of bound.

use std::process::Command;

use tests::artefacts::artefact;

use crate::check;
use crate::kernel::Kernel;

/// Those that hold on every kernel: one for each kind of call, of end, and of what is kept. Each of
/// them loads and attaches anew, which takes an emulated machine half a minute.
const ALWAYS: [&str; 10] = [
    "counts::every_call_counts_once_in_every_build",
    "counts::per_thread_stream_variants",
    "counts::many_threads",
    "counts::first_versions",
    "counts::calls_that_fail",
    "counts::calls_inside_calls",
    "counts::on_demand",
    "life::exec_ends_one_program",
    "live::allocations_of_many_threads",
    "bounds::beyond_the_last_row",
];
/// Those about hooks that come and go quickly, or are pinned.
const WITH_MULTI: [&str; 2] = ["coverage::detaching_is_quick", "survival::a_successor_goes_on"];

pub(crate) fn run(kernel: &Kernel) {
    let more = WITH_MULTI.iter().filter(|_| kernel.has_multi());
    for suite in ALWAYS.iter().chain(more) {
        check(&format!("kernel test {suite}"), || run_one(suite));
    }
}

/// The closing line of the tests; panics with the names of those that failed.
fn run_one(suite: &str) -> String {
    let mut tests = Command::new(artefact("deps/kernel"));
    tests.args(["--test-threads=1", suite]);
    let output = tests.output().expect("the kernel tests can be started");
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        tell(&said);
        tell(&String::from_utf8_lossy(&output.stderr));
        let failed = said.lines().filter(|it| it.starts_with("test ") && it.ends_with("FAILED"));
        let failed: Vec<&str> = failed.filter_map(|it| it.split(' ').nth(1)).collect();
        panic!("{} failed: {}", failed.len(), failed.join(", "));
    }
    let passed = said.lines().filter(|it| it.starts_with("test ") && it.ends_with(" ok")).count();
    assert!(passed > 0, "there are none");
    format!("{passed} passed")
}

#[expect(clippy::print_stderr, reason = "shown with what failed")]
fn tell(text: &str) {
    eprintln!("{text}");
}
