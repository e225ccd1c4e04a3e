//! What the tests start and load: built by `cargo xtask test`, found beside the running test.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A stand-in for the driver, by how its functions begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Build {
    /// As the real driver's: a compare that must be stepped, then a conditional jump.
    Cmp,
    Push,
    Endbr64,
}

impl Build {
    pub const ALL: [Self; 3] = [Self::Cmp, Self::Push, Self::Endbr64];

    /// Of the library.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::Cmp => "libcuda_stub_cmp.so",
            Self::Push => "libcuda_stub_push.so",
            Self::Endbr64 => "libcuda_stub_endbr64.so",
        }
    }
}

/// A program or library by its file name. Panics with what to do when it was not built.
#[track_caller]
pub fn artefact(name: &str) -> PathBuf {
    let path = folder().join(name);
    assert!(
        path.exists(),
        "{} is missing: run `cargo xtask test`, which builds what tests start",
        path.display()
    );
    path
}

/// An installed program of the distribution. Panics with what to install when it is not there.
#[track_caller]
pub fn installed(program: &str, package: &str) -> PathBuf {
    let places = ["/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin"];
    let found = places.iter().map(|it| Path::new(it).join(program)).find(|it| it.exists());
    found.unwrap_or_else(|| {
        panic!("{program} is missing: run `cargo xtask test`, or install the package {package}")
    })
}

/// The profile's folder in the target folder: a test program lies in its `deps`.
fn folder() -> PathBuf {
    let test = std::env::current_exe().expect("the kernel knows this program's path");
    let deps = test.parent().expect("a program lies in a folder");
    deps.parent().expect("cargo puts test programs two levels down").to_owned()
}

#[cfg(test)]
mod tests {
    use super::artefact;

    #[test]
    fn a_missing_artefact_says_what_to_run() {
        let panic =
            std::panic::catch_unwind(|| artefact("no-such-program")).expect_err("it panics");
        let said = panic.downcast_ref::<String>().expect("the message is formatted");
        assert!(said.contains("run `cargo xtask test`"), "{said}");
    }
}
