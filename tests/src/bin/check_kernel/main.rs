//! Whether the agent traces exactly on the kernel that runs this program: as root, as a user with the
//! capabilities that such a kernel asks for, and while it stops and is killed.
//!
//! `cargo xtask check-kernel` boots an emulated machine for it, in which nothing else runs. Each check
//! is one JSON object in a line of the output. What cannot be traced on a kernel that is too old must be
//! said: then that is what is checked.

mod kernel;
mod suites;
mod trials;

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;

use kernel::Kernel;

/// What was looked at, whether it was as it should be, and what was seen.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    ok: bool,
    found: String,
}

fn main() {
    let kernel = Kernel::running();
    print(Check { name: "kernel".to_owned(), ok: true, found: kernel.release.clone() });
    if kernel.is_too_old() {
        trials::too_old();
    } else {
        trials::as_root(&kernel);
        trials::as_user(&kernel);
        suites::run(&kernel);
    }
}

/// One check: what `look` returns, or the panic with which it fails. Returns whether it succeeded.
fn check(name: &str, look: impl FnOnce() -> String) -> bool {
    let (ok, found) = match catch_unwind(AssertUnwindSafe(look)) {
        Ok(found) => (true, found),
        Err(panic) => (false, message(panic.as_ref())),
    };
    print(Check { name: name.to_owned(), ok, found });
    ok
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned()));
    text.unwrap_or_else(|| "it panicked".to_owned())
}

#[expect(clippy::print_stdout, reason = "what it says is what it is for")]
fn print(check: Check) {
    println!("{}", serde_json::to_string(&check).expect("a check is plain data"));
}
