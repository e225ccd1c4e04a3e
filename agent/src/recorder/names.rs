//! Stand-ins for what would tell whose node this is: UUIDs, places on the bus, PIDs. Values in,
//! values out.

use std::collections::BTreeMap;

/// The kernel's largest PID is below: nobody who replays a recording has such a process.
const FIRST_PID: u32 = 5_000_001;
/// As if the first device were there.
const FIRST_BUS: usize = 0x10;

/// The same stand-in for the same name, in the order of their appearance.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Everything keeps its own name.
    keep: bool,
    pids: BTreeMap<u32, u32>,
    devices: BTreeMap<String, String>,
    instances: BTreeMap<String, String>,
    places: BTreeMap<String, String>,
}

impl Names {
    pub(crate) fn new(keep: bool) -> Self {
        Self { keep, ..Self::default() }
    }

    /// 0 is no process, and stays.
    pub(crate) fn pid(&mut self, pid: u32) -> u32 {
        if self.keep || pid == 0 {
            return pid;
        }
        let next = u32::try_from(self.pids.len()).unwrap_or(u32::MAX).saturating_add(FIRST_PID);
        *self.pids.entry(pid).or_insert(next)
    }

    pub(crate) fn device(&mut self, uuid: &str) -> String {
        let name = |index: usize| format!("GPU-00000000-0000-4000-8000-{index:012x}");
        stand_in(self.keep, &mut self.devices, uuid, name)
    }

    pub(crate) fn instance(&mut self, uuid: &str) -> String {
        let name = |index: usize| format!("MIG-00000000-0000-4000-8000-{index:012x}");
        stand_in(self.keep, &mut self.instances, uuid, name)
    }

    /// On the PCI bus.
    pub(crate) fn place(&mut self, bus_id: &str) -> String {
        let name = |index: usize| format!("00000000:{:02X}:00.0", FIRST_BUS + index);
        stand_in(self.keep, &mut self.places, bus_id, name)
    }
}

fn stand_in(
    keep: bool,
    known: &mut BTreeMap<String, String>,
    name: &str,
    new: impl FnOnce(usize) -> String,
) -> String {
    if keep {
        return name.to_owned();
    }
    let next = known.len();
    known.entry(name.to_owned()).or_insert_with(|| new(next)).clone()
}

#[cfg(test)]
mod tests {
    use super::Names;

    #[test]
    fn a_stand_in_is_stable_and_says_nothing() {
        let mut names = Names::new(false);
        assert_eq!([7, 4_000, 7].map(|it| names.pid(it)), [5_000_001, 5_000_002, 5_000_001]);
        assert_eq!(names.pid(0), 0);
        let devices = ["GPU-a", "GPU-b", "GPU-a"].map(|it| names.device(it));
        assert_eq!(devices[0], "GPU-00000000-0000-4000-8000-000000000000");
        assert_eq!(devices[2], devices[0]);
        assert_ne!(devices[1], devices[0]);
        assert_eq!(names.place("00000000:3B:00.0"), "00000000:10:00.0");
        assert_eq!(names.instance("MIG-x"), "MIG-00000000-0000-4000-8000-000000000000");
    }

    #[test]
    fn names_are_kept_where_that_is_asked_for() {
        let mut names = Names::new(true);
        assert_eq!((names.pid(7), names.device("GPU-a")), (7, "GPU-a".to_owned()));
    }
}
