//! A long build, told in a few lines: how far it is, what it warns of, what went wrong.

use std::io::{BufRead as _, BufReader, IsTerminal as _};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::shell;

/// Where nobody watches a line change, every this many crates one line is printed.
const EVERY: usize = 50;
/// Cargo's words for what needs no attention.
const ROUTINE: [&str; 8] = [
    "Blocking",
    "Building",
    "Compiling",
    "Downloaded",
    "Downloading",
    "Finished",
    "Locking",
    "Updating",
];

/// Runs cargo and counts what it compiles. Warnings and errors go through as they are.
pub(crate) fn build(what: &str, mut command: Command) -> anyhow::Result<()> {
    let line = shell::line(&command);
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {line}"))?;
    let errors = child.stderr.take().expect("its stderr is a pipe");
    let mut counter = Counter::new(what);
    for said in BufReader::new(errors).lines() {
        counter.take(&said.with_context(|| format!("cannot read what {line} says"))?);
    }
    counter.finish();
    let status = child.wait().with_context(|| format!("cannot wait for {line}"))?;
    if !status.success() {
        bail!("{line} failed ({status}); its messages are above");
    }
    Ok(())
}

struct Counter<'a> {
    what: &'a str,
    compiled: usize,
    watched: bool,
}

impl<'a> Counter<'a> {
    fn new(what: &'a str) -> Self {
        eprintln!("building {what}");
        Self { what, compiled: 0, watched: std::io::stderr().is_terminal() }
    }

    fn take(&mut self, said: &str) {
        let word = said.trim_start().split(' ').next().unwrap_or_default();
        if word == "Compiling" {
            self.compiled += 1;
            self.show();
        } else if !ROUTINE.contains(&word) && !said.is_empty() {
            eprintln!("{said}");
        }
    }

    fn show(&self) {
        let (compiled, what) = (self.compiled, self.what);
        if self.watched {
            eprint!("\r  {what}: {compiled} crates compiled");
        } else if compiled.is_multiple_of(EVERY) {
            eprintln!("  {what}: {compiled} crates compiled");
        }
    }

    fn finish(&self) {
        if self.watched && self.compiled > 0 {
            eprintln!();
        }
    }
}
