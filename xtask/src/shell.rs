//! Running other programs, and saying which one failed.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// The folder that holds the workspace's `Cargo.toml`.
pub(crate) fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("xtask is a folder of the workspace").to_owned()
}

/// The cargo that builds this workspace, run in its root.
pub(crate) fn cargo<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root()).args(arguments);
    command
}

/// Runs to the end with the terminal as its own; an error names the command.
pub(crate) fn run(mut command: Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", line(&command)))?;
    if !status.success() {
        bail!("{} failed ({status})", line(&command));
    }
    Ok(())
}

/// Runs to the end and returns what it printed; an error carries what it said on stderr.
pub(crate) fn output(mut command: Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", line(&command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}): {}", line(&command), output.status, said.trim());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed something other than text", line(&command)))
}

/// The command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    let name = program.rsplit('/').next().unwrap_or(&program).to_owned();
    let arguments = command.get_args().map(|it| it.to_string_lossy().into_owned());
    std::iter::once(name).chain(arguments).collect::<Vec<_>>().join(" ")
}

/// `command` as the last arguments of `launcher`, with its environment and folder. What was set for
/// its input and output is not taken over.
pub(crate) fn behind(mut launcher: Command, command: &Command) -> Command {
    launcher.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => launcher.env(name, value),
            None => launcher.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        launcher.current_dir(folder);
    }
    launcher
}

#[cfg(test)]
mod tests {
    use super::{behind, line};
    use std::process::Command;

    #[test]
    fn a_launched_command_keeps_what_it_was_given() {
        let mut command = Command::new("/bin/echo");
        command.arg("a b").env("X", "y").current_dir("/tmp");
        let mut launcher = Command::new("nice");
        launcher.arg("--");
        let launched = behind(launcher, &command);
        assert_eq!(line(&launched), "nice -- /bin/echo a b");
        assert_eq!(launched.get_current_dir(), command.get_current_dir());
        assert_eq!(launched.get_envs().count(), 1);
    }
}
