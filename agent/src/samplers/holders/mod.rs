//! Who holds a GPU: from a process to the pod, job step, container, unit or user it belongs to.
//!
//! `driver.rs` reads `/proc`, `decode.rs` knows what cgroup paths mean. An answer holds for one life
//! of a process and is kept until that ends; where there is none yet, it is tried again. Where a
//! process has ended before that, the path of its group is what the kernel programs noted.

pub mod decode;
pub mod driver;
pub mod names;
pub mod users;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use crate::model::ids::{Holder, ProcessId};
use crate::samplers::holders::decode::Workload;
use crate::samplers::holders::driver::read;
use crate::samplers::holders::users::Users;
use crate::samplers::process::driver::Proc;

/// Answers that are kept. Beyond it a process is read again whenever it is asked for.
const MAX_HOLDERS: usize = 16_384;

/// Paths that are kept; an id is looked up soon after it was told.
const MAX_CGROUPS: usize = 4_096;

/// What the kernel said about a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub uid: Option<u32>,
    /// Id of its group in the unified hierarchy.
    pub cgroup: Option<u64>,
}

/// Resolves processes to holders.
#[derive(Debug)]
pub struct Resolver {
    proc: Proc,
    holders: BTreeMap<ProcessId, Holder>,
    /// Paths of cgroups by id, for processes that have ended before anyone looked.
    cgroups: BTreeMap<u64, Arc<str>>,
    users: Users,
}

// === impl Resolver ===

impl Resolver {
    #[must_use]
    pub fn new(proc_root: &Path) -> Self {
        Self {
            proc: Proc::new(proc_root),
            holders: BTreeMap::new(),
            cgroups: BTreeMap::new(),
            users: Users::default(),
        }
    }

    /// The life that this PID has now; `None` when there is none.
    #[must_use]
    pub fn process_id(&self, tgid: u32) -> Option<ProcessId> {
        self.proc.process_id(tgid)
    }

    /// Takes in paths of cgroups. Ids are given once and rise: the oldest make room.
    pub fn learn(&mut self, cgroups: &BTreeMap<u64, Arc<str>>) {
        self.cgroups.extend(cgroups.iter().map(|(id, path)| (*id, Arc::clone(path))));
        while self.cgroups.len() > MAX_CGROUPS {
            self.cgroups.pop_first();
        }
    }

    /// Who this process works for. `told` is what the kernel said about it, and is read where it
    /// said nothing. `None` when the process is gone and its group is not known, or its user's name
    /// is not known yet; asking again is cheap and may succeed.
    pub fn resolve(&mut self, process: ProcessId, told: Told) -> Option<Holder> {
        if let Some(holder) = self.holders.get(&process) {
            return Some(holder.clone());
        }
        let (workload, uid) = match read(&self.proc, process) {
            Some(facts) => (Workload::of_cgroup(&facts.cgroup), told.uid.or(facts.uid)),
            None => (Workload::of_path(self.cgroups.get(&told.cgroup?)?), told.uid),
        };
        let uid = workload.user(uid);
        let name = uid.and_then(|it| self.users.name(it));
        let holder = workload.holder(uid.zip(name.as_deref()))?;
        if self.holders.len() < MAX_HOLDERS {
            self.holders.insert(process, holder.clone());
        }
        Some(holder)
    }

    /// Forgets all but these.
    pub fn retain(&mut self, live: &BTreeSet<ProcessId>) {
        self.holders.retain(|process, _| live.contains(process));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::io::Write;
    use std::path::Path;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::{MAX_CGROUPS, Resolver, Told};
    use crate::model::ids::{HolderKind, ProcessId};

    const PROCESS: ProcessId = ProcessId { tgid: 7, start_ticks: 160_719 };

    fn process(root: &Path, start_ticks: u64, cgroup: &str) {
        let folder = root.join("7");
        std::fs::create_dir_all(&folder).unwrap();
        let stat = format!("7 (x) S 1 7 7 0 -1 4 9 0 0 0 1 2 0 0 20 0 1 0 {start_ticks} 3 4");
        std::fs::write(folder.join("stat"), stat).unwrap();
        std::fs::write(folder.join("cgroup"), cgroup).unwrap();
        std::fs::write(folder.join("status"), "Name:\tx\nUid:\t4000000000\t0\t0\t0\n").unwrap();
    }

    #[test]
    fn an_answer_is_kept_for_one_life_of_a_process() {
        let root = tempfile::tempdir().unwrap();
        let mut resolver = Resolver::new(root.path());
        assert_eq!(resolver.process_id(7), None);
        assert_eq!(resolver.resolve(PROCESS, Told::default()), None);

        process(root.path(), PROCESS.start_ticks, "0::/system.slice/x.service");
        assert_eq!(resolver.process_id(7), Some(PROCESS));
        let holder = resolver.resolve(PROCESS, Told::default()).unwrap();
        assert_eq!((holder.kind, &*holder.tenant), (HolderKind::Unit, "x"));

        // The PID has another life; what was known of the first one stays, and is not given to it.
        process(root.path(), 170_000, "0::/system.slice/other.service");
        assert_eq!(resolver.resolve(PROCESS, Told::default()), Some(holder));
        let second = ProcessId { start_ticks: 170_000, ..PROCESS };
        assert_eq!(&*resolver.resolve(second, Told::default()).unwrap().tenant, "other");

        resolver.retain(&BTreeSet::from([second]));
        assert_eq!(resolver.resolve(PROCESS, Told::default()), None);
        assert!(resolver.resolve(second, Told::default()).is_some());
    }

    /// The cgroup is a pipe here, so that the PID can change hands while it is being read.
    #[test]
    fn a_pid_that_is_reused_under_the_read_gets_no_holder() {
        let root = tempfile::tempdir().unwrap();
        process(root.path(), PROCESS.start_ticks, "");
        let cgroup = root.path().join("7/cgroup");
        std::fs::remove_file(&cgroup).unwrap();
        mkfifo(&cgroup, Mode::S_IRWXU).unwrap();
        let kernel = std::thread::spawn({
            let root = root.path().to_owned();
            move || {
                // Opens when the reader does, which has compared the start time by then.
                let mut pipe = std::fs::File::options().write(true).open(&cgroup).unwrap();
                std::fs::rename(root.join("7/stat"), root.join("old")).unwrap();
                let stat = std::fs::read_to_string(root.join("old")).unwrap();
                let stat = stat.replace(&PROCESS.start_ticks.to_string(), "170000");
                std::fs::write(root.join("7/stat"), stat).unwrap();
                pipe.write_all(b"0::/system.slice/other.service").unwrap();
            }
        });
        assert_eq!(Resolver::new(root.path()).resolve(PROCESS, Told::default()), None);
        kernel.join().unwrap();
    }

    #[test]
    fn a_user_without_a_name_is_a_number() {
        let root = tempfile::tempdir().unwrap();
        process(root.path(), PROCESS.start_ticks, "0::/");
        let tenant = |uid| {
            let mut resolver = Resolver::new(root.path());
            // A busy machine may take longer than a tick waits for a name.
            let holder =
                std::iter::repeat_with(|| resolver.resolve(PROCESS, Told { uid, cgroup: None }))
                    .flatten()
                    .next();
            holder.unwrap().tenant
        };
        assert_eq!(&*tenant(None), "4000000000");
        assert_eq!(&*tenant(Some(4_000_000_001)), "4000000001");
        assert_eq!(&*tenant(Some(0)), "root");
    }

    #[test]
    fn a_process_that_is_gone_is_known_by_its_group() {
        let root = tempfile::tempdir().unwrap();
        let mut resolver = Resolver::new(root.path());
        let told = |cgroup| Told { uid: Some(4_000_000_000), cgroup };
        assert_eq!(resolver.resolve(PROCESS, told(Some(77))), None);
        resolver.learn(&BTreeMap::from([(77, "/system.slice/x.service".into())]));
        assert_eq!(resolver.resolve(PROCESS, told(None)), None);
        let holder = resolver.resolve(PROCESS, told(Some(77))).unwrap();
        assert_eq!((holder.kind, &*holder.tenant), (HolderKind::Unit, "x"));
    }

    #[test]
    fn the_newest_groups_are_kept() {
        let mut resolver = Resolver::new(Path::new("/nowhere"));
        (0..2 * MAX_CGROUPS as u64).for_each(|id| resolver.learn(&[(id, "/x".into())].into()));
        assert_eq!(resolver.cgroups.len(), MAX_CGROUPS);
        assert_eq!(resolver.cgroups.first_key_value().map(|it| *it.0), Some(MAX_CGROUPS as u64));
    }

    #[test]
    fn this_process_has_a_holder() {
        let mut resolver = Resolver::new(Path::new("/proc"));
        let process = resolver.process_id(std::process::id()).unwrap();
        let holder =
            std::iter::repeat_with(|| resolver.resolve(process, Told::default())).flatten().next();
        assert!(!holder.unwrap().tenant.is_empty());
    }
}
