//! The demo as one starts it: it comes up, shows cause and effect, and leaves nothing behind.
//!
//! It starts what `cargo xtask test` built. Without root it must come up too; what needs root is
//! then not asked of it.

#![expect(clippy::unwrap_used, reason = "a test: what does not hold ends it")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

const LIMIT: Duration = Duration::from_secs(60);

/// The running demo, and the lines that it prints.
struct Demo {
    child: Child,
    lines: Receiver<String>,
    seen: String,
}

#[test]
fn it_comes_up_and_leaves_nothing_behind() {
    let folder = std::env::temp_dir().join(format!("gleaner-up-test-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let mut demo = Demo::start(&folder);

    demo.wait_for("The idle stream");
    let page = demo.address("Page");
    let metrics = until(|| get(&page, "/metrics"), |it| it.contains("gleaner_gpu_class{"));
    assert!(metrics.contains("gleaner_node_up{"), "{metrics}");
    let offer = demo.wait_for("free");
    assert!(!offer.is_empty(), "the GPU that nobody holds is offered");
    if geteuid().is_root() {
        let launches = "gleaner_tenant_cuda_launches_total{tenant=\"train-llm\"";
        until(|| get(&page, "/metrics"), |it| it.contains(launches));
        demo.a_killed_tenant_frees_its_gpu();
    }

    let slice = format!("gleaner-{}.slice", demo.child.id());
    assert!(demo.stop(), "it ends well:\n{}", demo.seen);
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    for mount in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        assert!(!Path::new(mount).join(&slice).exists(), "{slice} is still there");
    }
    std::fs::remove_dir(&folder).unwrap();
}

impl Demo {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_xtask"))
            .args(["up", "--no-build"])
            .env("TMPDIR", folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, seen: String::new() }
    }

    /// The first line from here on that contains `text`.
    fn wait_for(&mut self, text: &str) -> String {
        loop {
            let Ok(line) = self.lines.recv_timeout(LIMIT) else {
                panic!("no line with {text:?}:\n{}", self.seen);
            };
            self.seen += &line;
            self.seen.push('\n');
            if line.contains(text) {
                return line;
            }
        }
    }

    /// `127.0.0.1:PORT` from the line that was printed for `name`.
    fn address(&self, name: &str) -> String {
        let line = self.seen.lines().find(|it| it.trim_start().starts_with(name)).unwrap();
        line.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned()
    }

    fn a_killed_tenant_frees_its_gpu(&mut self) {
        let line = self.seen.lines().find(|it| it.contains("train-llm (pid")).unwrap();
        let pid = line.split("(pid ").nth(1).unwrap().split(')').next().unwrap();
        kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
        self.wait_for("train-llm ended");
        self.wait_for("free");
    }

    /// As Ctrl-C does; whether it ended with success.
    fn stop(&mut self) -> bool {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
        self.child.wait().unwrap().success()
    }
}

/// So that a failed test ends what it started.
impl Drop for Demo {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.stop();
        }
    }
}

fn until(mut get: impl FnMut() -> String, wanted: impl Fn(&str) -> bool) -> String {
    for _ in 0..300 {
        let got = get();
        if wanted(&got) {
            return got;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("not within 30 s:\n{}", get());
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
