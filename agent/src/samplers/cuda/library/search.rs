//! Looks for library files: at the configured paths, and in the processes that use a GPU.
//!
//! One look at a process is cheap, all of them are not: each round looks at a few, those that nobody
//! has looked at yet first, then those that were looked at longest ago. A process loads the driver
//! when it likes, so that no look is the last.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::driver::{LibraryError, LibraryFile, MappedFile};
use super::text::{self, TextCheck};
use crate::config::HookChoice;
use crate::model::ids::ProcessId;
use crate::samplers::holders::decode::Workload;
use crate::samplers::process::decode::{self, FileId};
use crate::samplers::process::driver::Proc;

/// Processes of one round. With 1,000 of them each is looked at every 20 s.
const LOOKS: usize = 256;
/// Of these, processes that are new: a storm of them must not hide the others.
const NEW_LOOKS: usize = 192;
/// Files of one process that are looked at: a sane one maps one.
const FILES_OF_PROCESS: usize = 8;
/// Files that are opened in one round, and for one tenant.
const OPENS: usize = 64;
const OPENS_OF_TENANT: usize = 8;

/// What is to be done in one round.
#[derive(Debug, Default)]
pub(super) struct Question {
    /// Paths of this host that lead to a file that was not looked at.
    pub(super) paths: Vec<PathBuf>,
    /// Look at other processes, too.
    pub(super) scan: bool,
    /// Open what they map.
    pub(super) copies: bool,
    /// Processes that are known to use a GPU and to map a file that is not known.
    pub(super) urgent: Vec<u32>,
    /// Files that need no opening.
    pub(super) known: BTreeSet<FileId>,
    /// Files that may have been written to.
    pub(super) watched: Vec<LibraryFile>,
    /// Files whose text is to be looked at again.
    pub(super) checks: Vec<LibraryFile>,
    /// Processes whose libraries are to be told.
    pub(super) mappings: Vec<ProcessId>,
    /// Files that are libraries whatever they are called.
    pub(super) hooked: BTreeSet<FileId>,
}

impl Question {
    pub(super) fn is_empty(&self) -> bool {
        self.paths.is_empty()
            && !self.scan
            && self.checks.is_empty()
            && self.mappings.is_empty()
            && (self.urgent.is_empty() || !self.copies)
    }
}

#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) opened: Vec<Opened>,
    /// By a file that was watched: what it holds now.
    pub(super) rewritten: Vec<(FileId, Result<Prepared, LibraryError>)>,
    pub(super) checked: Vec<(FileId, TextCheck)>,
    /// The CUDA libraries that a process maps; `None` = that cannot be read.
    pub(super) mapped: Vec<(ProcessId, Option<BTreeSet<FileId>>)>,
    /// What the processes map that were looked at so far; `None` when none was looked at now.
    pub(super) seen: Option<Seen>,
}

/// A file that was looked at.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) place: Place,
    pub(super) result: Result<Prepared, LibraryError>,
}

/// Where a file was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) origin: Origin,
}

/// Who led to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Path,
    Process { tgid: u32, tenant: String, id: FileId },
}

impl Origin {
    pub(super) fn tenant(&self) -> Option<&str> {
        match self {
            Self::Path => None,
            Self::Process { tenant, .. } => Some(tenant),
        }
    }

    /// For people; `None` = the configuration says where it is.
    pub(super) fn describe(&self) -> Option<String> {
        match self {
            Self::Path => None,
            Self::Process { tgid, tenant, .. } => Some(format!("process {tgid} of {tenant}")),
        }
    }
}

/// A library that can be hooked, and what stands against some of its hooks.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) library: LibraryFile,
    pub(super) text: TextCheck,
}

/// The libraries in use.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) used: BTreeSet<FileId>,
    /// Files that are used together with UCX.
    pub(super) with_ucx: BTreeMap<FileId, u32>,
    /// Files that were not opened in this round, because there were too many.
    pub(super) postponed: usize,
    /// Processes whose mappings cannot be read.
    pub(super) unseen: usize,
}

/// Owned by the thread that may block.
#[derive(Debug)]
pub(super) struct Search {
    proc: Proc,
    choice: HookChoice,
    round: u64,
    looked: BTreeMap<(u32, u64), Looked>,
    /// What is looked at now, for whoever waits.
    at: Arc<AtomicU32>,
    /// Processes that are left alone, because looking at them did not end.
    avoided: BTreeSet<ProcessId>,
}

/// What one process showed.
#[derive(Clone, Debug, Default)]
struct Looked {
    round: u64,
    kernel: bool,
    unseen: bool,
    ucx: bool,
    files: BTreeSet<FileId>,
}

impl Search {
    pub(super) fn new(
        proc: Proc,
        choice: HookChoice,
        at: Arc<AtomicU32>,
        avoided: BTreeSet<ProcessId>,
    ) -> Self {
        Self { proc, choice, round: 0, looked: BTreeMap::new(), at, avoided }
    }

    pub(super) fn answer(&mut self, question: Question) -> Answer {
        let mut answer = Answer::default();
        for process in question.mappings {
            answer.mapped.push((process, self.mapped(process, &question.hooked)));
        }
        for path in question.paths {
            let result = LibraryFile::open(&path, self.choice).map(|it| self.prepare(it));
            let place = Place { path, origin: Origin::Path };
            answer.opened.push(Opened { place, result });
        }
        for file in question.watched {
            if let Some(changed) = file.rewritten() {
                answer.rewritten.push((file.id, changed.map(|it| self.prepare(it))));
            }
        }
        for file in question.checks {
            answer.checked.push((file.id, self.check(&file)));
        }
        let mut known = question.known;
        let just_opened = answer.opened.iter().filter_map(|it| it.result.as_ref().ok());
        known.extend(just_opened.map(|it| it.library.id));
        if question.scan || !question.urgent.is_empty() {
            let mut seen = Seen::default();
            let found = self.look(question.scan, &question.urgent);
            if question.copies {
                answer.opened.extend(self.open(found, known, &mut seen));
            }
            self.summarize(&mut seen);
            answer.seen = Some(seen);
        }
        self.at.store(0, Ordering::Relaxed);
        answer
    }

    fn mapped(&self, process: ProcessId, hooked: &BTreeSet<FileId>) -> Option<BTreeSet<FileId>> {
        if self.avoided.contains(&process) {
            return None;
        }
        self.at.store(process.tgid, Ordering::Relaxed);
        let files = self.proc.mapped_libcuda(process.tgid, hooked)?;
        // Another one may have its PID by now.
        (self.proc.process_id(process.tgid) == Some(process)).then_some(files)
    }

    /// PIDs of those that are left alone: nobody else's.
    fn avoided(&self) -> BTreeSet<u32> {
        let lives = |it: &&ProcessId| self.proc.process_id(it.tgid) == Some(**it);
        self.avoided.iter().filter(lives).map(|it| it.tgid).collect()
    }

    /// The text is looked at here, where it may take its time, and right before the hooks are set.
    fn prepare(&self, library: LibraryFile) -> Prepared {
        let text = self.check(&library);
        Prepared { library, text }
    }

    fn check(&self, library: &LibraryFile) -> TextCheck {
        let processes = self.proc.list().unwrap_or_default().into_iter().map(|it| it.0);
        let avoided = self.avoided();
        let avoided = |tgid: &u32| avoided.contains(tgid);
        let (avoided, processes): (Vec<u32>, Vec<u32>) = processes.partition(avoided);
        let processes =
            processes.into_iter().inspect(|tgid| self.at.store(*tgid, Ordering::Relaxed));
        let mut found = text::check(&self.proc, processes, library.id, &library.plan);
        avoided.into_iter().for_each(|it| found.hide(self.proc.process_id(it)));
        found
    }

    fn look(&mut self, scan: bool, urgent: &[u32]) -> Vec<MappedFile> {
        let mut found = Vec::new();
        for (process, is_urgent) in self.due(scan, urgent) {
            self.at.store(process.0, Ordering::Relaxed);
            let before = self.looked.remove(&process);
            let (looked, files) = self.look_at(process.0, before.is_none(), is_urgent);
            self.looked.insert(process, looked);
            found.extend(files);
        }
        found
    }

    /// Files that are not known, as many as one round may take.
    fn open(
        &self,
        found: Vec<MappedFile>,
        mut known: BTreeSet<FileId>,
        seen: &mut Seen,
    ) -> Vec<Opened> {
        let mut opened = Vec::new();
        let mut of_tenant: BTreeMap<String, usize> = BTreeMap::new();
        for file in found {
            if known.contains(&file.id) {
                continue;
            }
            let tenant = self.tenant(file.tgid);
            let opens = of_tenant.entry(tenant.clone()).or_default();
            if opened.len() == OPENS || *opens == OPENS_OF_TENANT {
                seen.postponed += 1;
                continue;
            }
            *opens += 1;
            known.insert(file.id);
            self.at.store(file.tgid, Ordering::Relaxed);
            let library = LibraryFile::open_mapped(&self.proc, &file, self.choice);
            let result = library.map(|it| self.prepare(it));
            let origin = Origin::Process { tgid: file.tgid, tenant, id: file.id };
            let place = Place { path: decode::path_of(&file.path).into(), origin };
            opened.push(Opened { place, result });
        }
        opened
    }

    /// The processes of this round.
    fn due(&mut self, scan: bool, urgent: &[u32]) -> Vec<((u32, u64), bool)> {
        self.round += 1;
        let mut present = self.proc.list().unwrap_or_default();
        let avoided = self.avoided();
        present.retain(|(tgid, _)| !avoided.contains(tgid));
        let lives: BTreeSet<_> = present.iter().copied().collect();
        self.looked.retain(|process, _| lives.contains(process));
        let (mut due, rest): (Vec<_>, Vec<_>) =
            present.into_iter().partition(|it| urgent.contains(&it.0));
        let urgent = due.len();
        if scan {
            let (new, mut old): (Vec<_>, Vec<_>) =
                rest.into_iter().partition(|it| !self.looked.contains_key(it));
            old.retain(|it| self.looked.get(it).is_some_and(|it| !it.kernel));
            old.sort_by_key(|it| self.looked.get(it).map_or(0, |it| it.round));
            due.extend(new.into_iter().take(NEW_LOOKS));
            let left = LOOKS.saturating_sub(due.len());
            due.extend(old.into_iter().take(left));
        }
        due.into_iter().enumerate().map(|(index, it)| (it, index < urgent)).collect()
    }

    fn look_at(&self, tgid: u32, is_new: bool, is_urgent: bool) -> (Looked, Vec<MappedFile>) {
        let mut looked = Looked { round: self.round, ..Looked::default() };
        if is_new && !self.proc.runs_program(tgid) {
            looked.kernel = true;
            return (looked, Vec::new());
        }
        let holds_gpu = self.proc.holds_gpu(tgid);
        if holds_gpu == Some(false) && !is_urgent {
            return (looked, Vec::new());
        }
        let maps = match self.proc.maps(tgid) {
            Ok(maps) => maps,
            Err(error) => {
                looked.unseen = text::is_hidden(&error);
                return (looked, Vec::new());
            }
        };
        let mut files: BTreeMap<FileId, MappedFile> = BTreeMap::new();
        for it in decode::mappings(&maps).filter(|it| decode::looks_like_libcuda(it.path)) {
            if files.len() < FILES_OF_PROCESS {
                files.entry(it.file).or_insert_with(|| MappedFile {
                    tgid,
                    start: it.start,
                    end: it.end,
                    id: it.file,
                    path: it.path.to_owned(),
                });
            }
        }
        looked.ucx = decode::mappings(&maps).any(|it| decode::looks_like_ucx(it.path));
        looked.files = files.keys().copied().collect();
        (looked, files.into_values().collect())
    }

    fn summarize(&self, seen: &mut Seen) {
        for ((tgid, _), looked) in &self.looked {
            seen.used.extend(&looked.files);
            seen.unseen += usize::from(looked.unseen);
            if looked.ucx {
                seen.with_ucx.extend(looked.files.iter().map(|it| (*it, *tgid)));
            }
        }
    }

    /// Who answers for a process; only to keep one from taking the room of all.
    fn tenant(&self, tgid: u32) -> String {
        let workload = self.proc.cgroup(tgid).map(|it| Workload::of_cgroup(&it));
        let Ok(workload) = workload else { return "unknown".to_owned() };
        let uid = workload.user(self.proc.uid(tgid));
        let name = uid.map(|it| it.to_string());
        let holder = workload.holder(uid.zip(name.as_deref()));
        holder.map_or_else(|| "unknown".to_owned(), |it| it.tenant.to_string())
    }
}
