//! Programs from the distribution that tests run, installed where they are missing.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::shell;

/// A program that a test starts.
struct Need {
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

const NEEDS: [Need; 3] = [
    Need { program: "promtool", package: "prometheus", why: "a real Prometheus reads /metrics" },
    Need {
        program: "chromedriver",
        package: "chromium-driver",
        why: "a real browser shows the page",
    },
    Need { program: "strace", package: "strace", why: "what the agent opens is watched" },
];

/// Installs what is missing, as root on a machine with apt; otherwise says what to install. The
/// tests that need it then fail and say so too.
pub(crate) fn provide() -> anyhow::Result<()> {
    let missing: Vec<&Need> = NEEDS.iter().filter(|it| !is_installed(it.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|it| it.package).collect();
    if !nix::unistd::geteuid().is_root() || !is_installed("apt-get") {
        for it in missing {
            eprintln!("missing: {} ({}); install the package {}", it.program, it.why, it.package);
        }
        return Ok(());
    }
    eprintln!("installing {}", packages.join(", "));
    install(&packages)
}

/// Installs Debian packages without starting the services that they bring.
pub(crate) fn install(packages: &[&str]) -> anyhow::Result<()> {
    let arguments = ["install", "--yes", "--quiet", "--no-install-recommends"];
    let attempt = || {
        let mut command = apt();
        command.args(arguments).args(packages);
        shell::output(command)
    };
    // The package lists of a fresh machine are empty or old.
    if attempt().is_err() {
        let mut update = apt();
        update.args(["update", "--quiet"]);
        shell::output(update)?;
        attempt()?;
    }
    Ok(())
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    // At run level 1 the packaging tools start no service.
    command.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1").stdin(Stdio::null());
    command
}

/// Whether the shell would find it.
pub(crate) fn is_installed(program: &str) -> bool {
    path_of(program).is_some()
}

/// Where the shell would find it.
pub(crate) fn path_of(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|it| it.join(program)).find(|it| it.is_file())
}
