//! The text of a recording: what its readers see first, and its parts as they come.

use recording::{About, Device, Step};
use serde::Serialize;

use super::capture::Page;

#[derive(Serialize)]
struct Head<'a> {
    driver_version: &'a str,
    cuda_version: u32,
    recording: &'a About,
}

#[derive(Serialize)]
struct Devices<'a> {
    gpus: &'a [Device],
}

#[derive(Serialize)]
struct Steps<'a> {
    steps: [&'a Step; 1],
}

/// What the driver calls itself: `550.163.01`, and `12.4` for CUDA.
#[derive(Clone, Debug, Default)]
pub(super) struct Driver {
    pub(super) version: String,
    pub(super) cuda: String,
}

/// The first lines are for people.
pub(super) fn head(about: &About, driver: &Driver) -> String {
    let names = if about.with_identities {
        "UUIDs, places on the PCI bus and PIDs are the node's own (--with-identities)."
    } else {
        "UUIDs, places on the PCI bus and PIDs are made up: the same one stands for the same thing."
    };
    let processes = if about.sees_processes {
        "which processes used a GPU, by PID, and how much"
    } else {
        "not who used a GPU: the recorder did not see the PIDs of the host"
    };
    let head = Head {
        driver_version: &driver.version,
        cuda_version: cuda(&driver.cuda),
        recording: about,
    };
    format!(
        "# A recording of what the NVIDIA driver's library answered on one node, for a bug report.\n\
         #\n\
         # It has: models, limits and MIG layout of the GPUs; every {} ms what each call returned or\n\
         # refused: use, memory, clocks, power, temperatures, traffic, errors;\n\
         # {processes}.\n\
         # It does not have: names of users, programs, processes, jobs, pods or of the node; command\n\
         # lines, serial numbers, addresses, the date.\n\
         # {names}\n\
         # Read it before you send it.\n\n{}",
        about.tick_ms,
        toml::to_string(&head).expect("a head is a table")
    )
}

/// Devices and changes of one tick; empty where nothing is new.
pub(super) fn page(page: &Page) -> String {
    let mut text = String::new();
    if !page.gpus.is_empty() {
        text.push('\n');
        let devices = Devices { gpus: &page.gpus };
        text += &toml::to_string(&devices).expect("devices are tables");
    }
    if !page.step.is_empty() {
        text.push('\n');
        text += &toml::to_string(&Steps { steps: [&page.step] }).expect("a step is a table");
    }
    text
}

/// As `cuDriverGetVersion` counts: 12.4 is 12040.
fn cuda(version: &str) -> u32 {
    let parts = version
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?)));
    parts.map_or(0, |(major, minor)| major * 1_000 + minor * 10)
}

#[cfg(test)]
mod tests {
    use super::{Driver, cuda, head};
    use recording::About;

    #[test]
    fn the_first_lines_say_what_is_in_it() {
        let driver = Driver { version: "550.1".to_owned(), cuda: "12.4".to_owned() };
        let about = About { tick_ms: 1_000, sees_processes: true, ..About::default() };
        let text = head(&about, &driver);
        assert!(text.lines().take(8).all(|it| it.is_empty() || it.starts_with('#')), "{text}");
        assert!(text.contains("are made up"), "{text}");
        assert!(text.contains("cuda_version = 12040"), "{text}");
        let told = head(&About { with_identities: true, ..about }, &driver);
        assert!(told.contains("are the node's own"), "{told}");
        assert_eq!((cuda("13.0"), cuda("")), (13_000, 0));
    }
}
