//! A program that ends by itself: what it said and how it ended.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::daemon::bound;
use crate::wait::eventually;

/// Longer than any program that is run here may take.
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub output: String,
    pub errors: String,
}

/// Runs it to its end. Panics, and kills it, when it does not end.
#[track_caller]
pub fn run(command: &Command) -> Said {
    run_within(DEADLINE, command)
}

/// The same where it may take longer.
#[track_caller]
pub fn run_within(deadline: Duration, command: &Command) -> Said {
    let files = [tempfile::tempfile(), tempfile::tempfile()];
    let [mut output, mut errors] = files.map(|it| it.expect("the temporary folder is writable"));
    let copy = |file: &std::fs::File| file.try_clone().expect("a descriptor is free");
    let mut child = bound(command)
        .stdin(Stdio::null())
        .stdout(copy(&output))
        .stderr(copy(&errors))
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let status = eventually(deadline, &format!("{command:?} ends"), || {
        child.try_wait().expect("the child is ours").ok_or_else(|| "it runs".to_owned())
    });
    Said { code: status.code(), output: text(&mut output), errors: text(&mut errors) }
}

/// All that was written through the other descriptor.
fn text(file: &mut std::fs::File) -> String {
    use std::io::Seek;
    let mut text = String::new();
    file.rewind().expect("a file can be read from its start");
    file.read_to_string(&mut text).expect("programs write UTF-8");
    text
}
