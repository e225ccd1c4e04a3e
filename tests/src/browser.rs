//! A real browser, driven through its WebDriver port.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::artefacts::installed;
use crate::daemon::Daemon;
use crate::ports;
use crate::scrape::get;
use crate::wait::eventually;

const READY: Duration = Duration::from_secs(30);

/// A browser with one page. Closed when dropped.
#[derive(Debug)]
pub struct Browser {
    session: String,
    /// Before the folder: the browser writes there.
    _driver: Daemon,
    _folder: TempDir,
}

impl Browser {
    /// Opens a page and waits until it is loaded.
    #[track_caller]
    pub fn open(url: &str) -> Self {
        let folder = tempfile::tempdir().expect("the temporary folder is writable");
        let port = ports::free();
        let mut command = Command::new(installed("chromedriver", "chromium-driver"));
        // What the browser would write to a home folder goes where it is removed.
        command.arg(format!("--port={port}")).env("HOME", folder.path());
        let driver = Daemon::start(&command, &folder.path().join("driver.log"));
        let base = format!("http://127.0.0.1:{port}");
        eventually(READY, "the driver is ready", || get(&format!("{base}/status")).map(drop));
        let profile = format!("--user-data-dir={}", folder.path().join("profile").display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            &profile,
        ];
        let options = json!({ "binary": installed("chromium", "chromium"), "args": arguments });
        let wanted = json!({ "alwaysMatch": { "goog:chromeOptions": options } });
        let answer = post(&format!("{base}/session"), &json!({ "capabilities": wanted }));
        let id = answer["value"]["sessionId"].as_str().expect("a new session has an id");
        let browser =
            Self { session: format!("{base}/session/{id}"), _driver: driver, _folder: folder };
        browser.go(url);
        browser
    }

    pub fn go(&self, url: &str) {
        post(&format!("{}/url", self.session), &json!({ "url": url }));
    }

    /// The text that a person sees now.
    pub fn text(&self) -> Result<String, String> {
        let script = json!({ "script": "return document.body.innerText", "args": [] });
        let answer = post(&format!("{}/execute/sync", self.session), &script);
        answer["value"].as_str().map(str::to_owned).ok_or_else(|| answer.to_string())
    }
}

impl Drop for Browser {
    /// The browser is the driver's child: it is asked to end before the driver is killed.
    fn drop(&mut self) {
        drop(ureq::delete(&self.session).call());
    }
}

#[track_caller]
fn post(url: &str, body: &Value) -> Value {
    let answer = ureq::post(url).content_type("application/json").send(body.to_string());
    let answer = answer.unwrap_or_else(|error| panic!("{url} {body}: {error}"));
    let text = answer.into_body().read_to_string().expect("an answer is text");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{url}: {text}: {error}"))
}
