//! The libcuda files of this node: which exist, which are hooked, where, and why not.
//!
//! A file is one device and inode: all containers that bind-mount it are covered by one hook. Two
//! paths to one file are one library. Besides the files at the configured paths there are copies, in
//! images and driver containers: those that processes map are found and hooked, too.

pub mod coverage;
pub(crate) mod driver;
mod finder;
mod hooked;
mod room;
mod search;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use super::driver::{Kernel, KernelError, Links, detach};
use super::governor::cost::{self, CallCosts, GOVERNED};
use super::governor::driver::Target;
use super::governor::gates::Gates;
use super::hooks::Group;
use super::reason;
use crate::clock;
use crate::config;
use crate::model::ids::ProcessId;
use crate::model::readings::HitCosts;
use crate::model::units::BootNs;
use crate::samplers::process::decode::FileId;
use crate::samplers::process::driver::Proc;
use coverage::{LibraryCoverage, Totals};
use driver::{LibraryError, LibraryFile, Version};
use finder::Finder;
use hooked::Hooked;
use room::{Caps, Occupant, Room};
use search::{Answer, Opened, Origin, Place, Prepared, Question, Seen};

/// How long a file that could not be hooked is left alone while it does not change.
const RETRY_NS: u64 = 60_000_000_000;
/// How often other processes are looked at.
const SCAN_NS: u64 = 5_000_000_000;
/// A file that no process has mapped for so long is let go, unless a configured path leads to it: an
/// open file keeps the file system of a container that has ended.
const UNUSED_NS: u64 = 60_000_000_000;
/// How long a reading waits for the search. It takes milliseconds, unless something is wrong: then the
/// answer is taken at a later reading.
const WAIT: Duration = Duration::from_millis(100);
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// How long the search may take before it is given up, and the process that it looks at is left alone.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long hooks stay off for a look at the text.
const LOOK_WAIT: Duration = Duration::from_millis(200);
/// Copies that could not be hooked and are remembered.
const MOST_REFUSED: usize = 256;

/// Every file that is hooked, and every one that could not be.
#[derive(Debug)]
pub(crate) struct Libraries {
    paths: Vec<PathBuf>,
    wants_memory: bool,
    caps: Caps,
    proc: Proc,
    finder: Finder,
    hooked: Vec<Hooked>,
    failed: BTreeMap<PathBuf, Failure>,
    /// What each path led to when it was last looked at.
    seen: BTreeMap<PathBuf, Version>,
    /// Files that processes map and that could not be hooked.
    refused: BTreeMap<FileId, Refusal>,
    scanned: Option<BootNs>,
    /// What processes map, as far as it was told since it was taken last.
    mapped: Vec<(ProcessId, Option<BTreeSet<FileId>>)>,
    /// What the last look at the processes did not reach.
    postponed: usize,
    unseen: usize,
    unwatched: Unwatched,
}

/// Time in which hooks were off without anything that stands for the calls that were missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unwatched {
    /// The sum over files.
    pub(crate) ns: u64,
    /// How often it came to that.
    pub(crate) times: u64,
}

#[derive(Debug)]
struct Failure {
    version: Version,
    at: BootNs,
    why: String,
}

#[derive(Debug)]
struct Refusal {
    place: Place,
    at: BootNs,
    why: String,
    kind: RefusalKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RefusalKind {
    File,
    Privilege,
    Room,
}

/// Why an existing file is not hooked.
#[derive(Debug, thiserror::Error)]
enum HookError {
    #[error(transparent)]
    Library(#[from] LibraryError),
    #[error("{}", reason::of(.0))]
    Attach(#[from] KernelError),
    #[error("{0}")]
    Room(String),
}

impl HookError {
    fn kind(&self) -> RefusalKind {
        match self {
            Self::Library(error) if error.is_privilege() => RefusalKind::Privilege,
            Self::Library(_) | Self::Attach(_) => RefusalKind::File,
            Self::Room(_) => RefusalKind::Room,
        }
    }
}

impl Libraries {
    pub(crate) fn new(config: &config::Cuda, proc: &Proc) -> Self {
        Self {
            paths: config.libraries.clone(),
            wants_memory: config.memory_hooks,
            caps: Caps { all: config.max_libraries, tenant: config.max_libraries_per_tenant },
            proc: proc.clone(),
            finder: Finder::new(proc.clone(), config.hook_choice(), PATIENCE),
            hooked: Vec::new(),
            failed: BTreeMap::new(),
            seen: BTreeMap::new(),
            refused: BTreeMap::new(),
            scanned: None,
            mapped: Vec::new(),
            postponed: 0,
            unseen: 0,
            unwatched: Unwatched::default(),
        }
    }

    /// Hooks what has appeared or was replaced since the last call, and lets go of what is gone.
    /// `urgent`: processes that map a file that is not known. `mapped`: files that processes are
    /// known to map now. Cheap when nothing is due. Returns whether any file was hooked or let go.
    pub(crate) fn refresh(
        &mut self,
        kernel: &mut Kernel,
        at: BootNs,
        urgent: Vec<u32>,
        mapped: &BTreeSet<FileId>,
    ) -> bool {
        for it in self.hooked.iter_mut().filter(|it| mapped.contains(&it.file())) {
            it.used = at;
        }
        let mut changed = false;
        // What a look found late says nothing: the hooks were on again by then.
        if let Some(late) = self.finder.answer(Duration::ZERO) {
            changed |= self.take(kernel, late, at);
        }
        self.restore(kernel);
        if self.finder.is_idle() {
            self.look(kernel, at);
        }
        if !self.finder.is_idle() {
            return changed;
        }
        let wait = if self.scanned.is_none() { FIRST_WAIT } else { WAIT };
        let question = self.question(at, urgent);
        if question.is_empty() {
            return changed;
        }
        self.finder.ask(question);
        if let Some(answer) = self.finder.answer(wait) {
            changed |= self.take(kernel, answer, at);
        }
        changed
    }

    /// Asks what these processes map. The answer is waited for, but not for long: it may come later.
    /// Returns whether they could be asked about.
    pub(crate) fn ask_mappings(&mut self, processes: &[ProcessId]) -> bool {
        if processes.is_empty() || !self.finder.is_idle() {
            return false;
        }
        let (mappings, hooked) = (processes.to_vec(), self.files().collect());
        self.finder.ask(Question { mappings, hooked, ..Question::default() });
        if let Some(answer) = self.finder.answer(WAIT) {
            self.mapped.extend(answer.mapped);
        }
        true
    }

    /// The CUDA libraries that processes map, as far as it was told since this was asked last.
    pub(crate) fn take_mappings(&mut self) -> Vec<(ProcessId, Option<BTreeSet<FileId>>)> {
        std::mem::take(&mut self.mapped)
    }

    /// Looks at text again. What is on it makes pages the processes' own, so that all hooks of such a
    /// file are off meanwhile, and its calls are missed.
    fn look(&mut self, kernel: &mut Kernel, at: BootNs) {
        let lives = |it: ProcessId| self.proc.process_id(it.tgid) == Some(it);
        let due: Vec<LibraryFile> = self
            .hooked
            .iter()
            .filter(|it| it.wants_look(at, lives))
            .map(|it| it.library.clone())
            .collect();
        if due.is_empty() {
            return;
        }
        driver::settle_pages();
        let begun = clock::boot();
        for hooked in self.hooked.iter_mut().filter(|it| due.iter().any(|due| due.id == it.file()))
        {
            hooked.take_all_off(begun, at);
            self.unwatched.times += 1;
        }
        self.finder.ask(Question { checks: due, ..Question::default() });
        if let Some(answer) = self.finder.answer(LOOK_WAIT) {
            for (file, text) in answer.checked {
                if let Some(hooked) = self.find(file) {
                    hooked.looked_at(&text, at);
                }
            }
        }
        self.restore(kernel);
    }

    /// Puts on again what was off for a look.
    fn restore(&mut self, kernel: &mut Kernel) {
        for hooked in &mut self.hooked {
            match hooked.restore(kernel) {
                Ok(off_ns) => self.unwatched.ns += off_ns,
                Err(error) => {
                    let path = hooked.place.path.display();
                    tracing::warn!(library = %path, "cannot put hooks on again: {error}");
                }
            }
        }
    }

    /// What was missed without a trace so far, because hooks were off.
    pub(crate) fn unwatched(&self, at: BootNs) -> Unwatched {
        let still: u64 = self.hooked.iter().map(|it| it.off_ns(at)).sum();
        Unwatched { ns: self.unwatched.ns + still, ..self.unwatched }
    }

    fn question(&mut self, at: BootNs, urgent: Vec<u32>) -> Question {
        let scan = self.scanned.is_none_or(|it| at.since(it) >= SCAN_NS);
        let mut question =
            Question { scan, urgent, copies: self.caps.tenant > 0, ..Question::default() };
        if scan {
            self.scanned = Some(at);
            question.paths = self.due_paths(at);
            let watched = self.hooked.iter().filter(|it| !self.is_current(it));
            question.watched = watched.map(|it| it.library.clone()).collect();
        }
        self.refused.retain(|_, it| at.since(it.at) <= RETRY_NS);
        question.known = self.known_files();
        question
    }

    /// Configured paths that lead to something new.
    fn due_paths(&mut self, at: BootNs) -> Vec<PathBuf> {
        let mut due = Vec::new();
        for path in &self.paths {
            let Some(version) = driver::version(path) else {
                self.seen.remove(path);
                self.failed.remove(path);
                continue;
            };
            let failure = self.failed.get(path);
            let retry =
                failure.is_some_and(|it| it.version == version && at.since(it.at) > RETRY_NS);
            if self.seen.get(path) != Some(&version) || retry {
                self.seen.insert(path.clone(), version);
                self.failed.remove(path);
                due.push(path.clone());
            }
        }
        due
    }

    fn take(&mut self, kernel: &mut Kernel, answer: Answer, at: BootNs) -> bool {
        let mut changed = false;
        self.mapped.extend(answer.mapped);
        for (file, result) in answer.rewritten {
            let Some(index) = self.hooked.iter().position(|it| it.file() == file) else { continue };
            let old = self.hooked.remove(index);
            let place = old.place.clone();
            // Hooks that were decoded from other bytes go first.
            drop(old);
            changed = true;
            self.take_opened(kernel, Opened { place, result }, at);
        }
        for opened in answer.opened {
            changed = true;
            self.take_opened(kernel, opened, at);
        }
        if let Some(seen) = answer.seen {
            changed |= self.take_seen(seen, at);
        }
        changed
    }

    fn take_opened(&mut self, kernel: &mut Kernel, opened: Opened, at: BootNs) {
        let Opened { place, result } = opened;
        let hooked = match result {
            Ok(prepared) => self.hook(kernel, &place, prepared, at),
            Err(error) => Err(error.into()),
        };
        let Err(error) = hooked else { return };
        tracing::warn!(library = %place.path.display(), "cannot trace CUDA calls: {error}");
        let (why, kind) = (error.to_string(), error.kind());
        match place.origin {
            Origin::Path => {
                if let Some(version) = self.seen.get(&place.path).copied() {
                    self.failed.insert(place.path, Failure { version, at, why });
                }
            }
            Origin::Process { id, .. } => {
                if self.refused.len() < MOST_REFUSED {
                    self.refused.insert(id, Refusal { place, at, why, kind });
                }
            }
        }
    }

    fn hook(
        &mut self,
        kernel: &mut Kernel,
        place: &Place,
        mut prepared: Prepared,
        at: BootNs,
    ) -> Result<(), HookError> {
        let file = prepared.library.id;
        if let Some(known) = self.find(file) {
            if known.library.is_as(&prepared.library) {
                known.found_at(place);
                return Ok(());
            }
            // The same file with new contents: two links would count each call twice.
            self.let_go(file);
        }
        match self.caps.room(&self.occupants(at), place.origin.tenant()) {
            Room::Free => {}
            Room::After(other) => self.let_go(other),
            Room::None(why) => return Err(HookError::Room(why)),
        }
        prepared.text.unwanted = !self.wants_memory;
        prepared.library.gates =
            Gates::free(&self.hooked.iter().map(|it| it.library.gates).collect());
        let hooked = Hooked::attach(kernel, place.clone(), prepared, at)?;
        let coverage = hooked.coverage();
        tracing::info!(
            library = %hooked.place.path.display(),
            hooks = coverage.attached(),
            slow = coverage.slow(),
            links = hooked.links(),
            adopted = hooked.adopted(),
            "tracing CUDA calls"
        );
        if let Some(why) = hooked.held_back() {
            tracing::warn!(library = %hooked.place.path.display(), "memory calls are not counted: {why}");
        }
        self.refused.remove(&file);
        self.hooked.push(hooked);
        Ok(())
    }

    fn let_go(&mut self, file: FileId) {
        self.hooked.retain(|it| it.file() != file);
    }

    fn take_seen(&mut self, seen: Seen, at: BootNs) -> bool {
        self.postponed = seen.postponed;
        self.unseen = seen.unseen;
        for it in &mut self.hooked {
            if seen.used.contains(&it.file()) {
                it.used = at;
            }
            if let Some(tgid) = seen.with_ucx.get(&it.file()) {
                it.used_with_ucx(*tgid, at);
            }
        }
        if seen.unseen > 0 {
            return false; // somebody who cannot be seen may use them
        }
        let gone: Vec<FileId> = self
            .hooked
            .iter()
            .filter(|it| at.since(it.used) > UNUSED_NS && !self.is_current(it))
            .map(Hooked::file)
            .collect();
        for file in &gone {
            self.let_go(*file);
        }
        !gone.is_empty()
    }

    fn occupants(&self, at: BootNs) -> Vec<Occupant> {
        let occupant = |it: &Hooked| Occupant {
            file: it.file(),
            tenant: it.place.origin.tenant().map(str::to_owned),
            current: self.is_current(it),
            in_use: at.since(it.used) <= UNUSED_NS,
            used: it.used,
        };
        self.hooked.iter().map(occupant).collect()
    }

    /// Whether a configured path leads to it now: the last that was hooked at its path, while that
    /// leads anywhere.
    fn is_current(&self, hooked: &Hooked) -> bool {
        let newest = self.hooked.iter().rev().find(|it| it.place.path == hooked.place.path);
        hooked.place.origin == Origin::Path
            && self.seen.contains_key(&hooked.place.path)
            && newest.is_some_and(|it| it.file() == hooked.file())
    }

    /// Every file with a hook on it, the longest hooked first.
    pub(crate) fn files(&self) -> impl Iterator<Item = FileId> {
        self.hooked.iter().map(Hooked::file)
    }

    /// Every file with a hook on it, and what a call of each group costs its caller.
    pub(crate) fn call_costs(&self, costs: HitCosts) -> BTreeMap<FileId, CallCosts> {
        let of = |it: &Hooked| cost::call_costs(costs, it.library.plan.points.iter());
        self.hooked.iter().map(|it| (it.file(), of(it))).collect()
    }

    /// Takes groups of one file off. Their calls do not count from now on; the hooks are gone when
    /// the links are dropped, which takes tens of milliseconds. `None` = the file was let go.
    pub(crate) fn take_off(
        &mut self,
        kernel: &mut Kernel,
        file: FileId,
        groups: &BTreeSet<Group>,
    ) -> Result<Option<Vec<Links>>, KernelError> {
        let Some(hooked) = self.find(file) else { return Ok(None) };
        let gates = hooked.library.gates;
        if let Err(error) = groups.iter().try_for_each(|it| kernel.set_gate(gates, *it, true)) {
            // The hooks stay on: what was closed must count again.
            for group in groups {
                kernel.set_gate(gates, *group, false)?;
            }
            return Err(error);
        }
        Ok(Some(groups.iter().filter_map(|it| hooked.take_off(*it)).collect()))
    }

    /// Whether the governor has nothing of a file off.
    pub(crate) fn is_all_on(&mut self, file: FileId) -> bool {
        self.find(file).is_some_and(|it| GOVERNED.into_iter().all(|group| it.is_on(group)))
    }

    /// Puts groups of one file on again, or none. Does nothing where they are on, or the file was let go.
    pub(crate) fn put_on(
        &mut self,
        kernel: &mut Kernel,
        file: FileId,
        groups: &BTreeSet<Group>,
    ) -> Result<(), KernelError> {
        let Some(hooked) = self.find(file) else { return Ok(()) };
        let off: Vec<Group> = groups.iter().filter(|it| !hooked.is_on(**it)).copied().collect();
        let done = off.iter().try_for_each(|it| hooked.put_on(kernel, *it));
        if done.is_err() {
            // Calls of these are estimated as long as the others are off: they must not count, too.
            off.iter().for_each(|it| drop(hooked.take_off(*it)));
        }
        done
    }

    /// What puts the groups of a file on that are off.
    pub(crate) fn target(&mut self, file: FileId) -> Option<std::io::Result<Target>> {
        let hooked = self.find(file)?;
        let off = GOVERNED.into_iter().filter(|it| !hooked.is_on(*it)).collect();
        Some(hooked.library.target(&off))
    }

    fn find(&mut self, file: FileId) -> Option<&mut Hooked> {
        self.hooked.iter_mut().find(|it| it.file() == file)
    }

    /// Files in which no launch, copy or wait went unseen since this was asked last.
    pub(crate) fn take_hooked_files(&mut self) -> BTreeSet<FileId> {
        let seen = self.hooked.iter_mut().filter_map(|it| it.take_sight().then(|| it.file()));
        seen.collect()
    }

    /// Until when work in a file was unseen, where its hooks were off and are on again.
    pub(crate) fn blind_until(&self) -> BTreeMap<FileId, BootNs> {
        self.hooked.iter().filter_map(|it| Some((it.file(), it.blind_until()?))).collect()
    }

    /// Files that need not be looked at: hooked, or refused a short time ago.
    pub(crate) fn known_files(&self) -> BTreeSet<FileId> {
        self.hooked.iter().map(Hooked::file).chain(self.refused.keys().copied()).collect()
    }

    /// Since when every memory call in a file is seen; a file that is missing is not hooked so.
    pub(crate) fn memory_since(&self) -> BTreeMap<FileId, BootNs> {
        self.hooked.iter().filter_map(|it| Some((it.file(), it.memory_since()?))).collect()
    }

    /// Files whose memory calls are not counted, and why, for people.
    pub(crate) fn memory_held_back(&self) -> Vec<String> {
        let text = |it: &Hooked| Some(format!("{}: {}", it.place.path.display(), it.held_back()?));
        self.hooked.iter().filter_map(text).collect()
    }

    pub(crate) fn totals(&self) -> Totals {
        self.hooked.iter().map(Hooked::coverage).fold(Totals::default(), |sum, it| Totals {
            attached: sum.attached + it.attached(),
            wanted: sum.wanted + it.wanted(),
            slow: sum.slow + it.slow(),
        })
    }

    /// Why nothing is hooked; `None` when something is.
    pub(crate) fn complaint(&self) -> Option<String> {
        if !self.hooked.is_empty() {
            return None;
        }
        Some(match self.failed.iter().next() {
            Some((path, failure)) => format!("{}: {}", path.display(), failure.why),
            None => format!(
                "no libcuda.so.1 at any of the {} paths of cuda.libraries, and no process that can be \
                 looked at maps one: CUDA calls are not counted until one appears; looking again \
                 every few seconds",
                self.paths.len()
            ),
        })
    }

    /// What is missed, and what would help; empty when nothing is known to be.
    pub(crate) fn shortfalls(&self) -> String {
        let count = |kind| self.refused.values().filter(|it| it.kind == kind).count();
        let (denied, room, bad) =
            (count(RefusalKind::Privilege), count(RefusalKind::Room), count(RefusalKind::File));
        let mut texts = Vec::new();
        if denied > 0 {
            texts.push(format!(
                "{denied} copies of the driver library cannot be opened: needs \
                 CAP_CHECKPOINT_RESTORE (or CAP_SYS_ADMIN)"
            ));
        }
        if room + self.postponed > 0 {
            texts.push(format!(
                "{} copies of the driver library are beyond cuda.max_libraries or \
                 cuda.max_libraries_per_tenant, or wait for their turn",
                room + self.postponed
            ));
        }
        if bad > 0 {
            texts.push(format!("{bad} files that call themselves libcuda cannot be hooked"));
        }
        if self.unseen > 0 {
            texts.push(format!(
                "{} processes cannot be looked at (needs CAP_SYS_PTRACE): copies that only they use \
                 are not found",
                self.unseen
            ));
        }
        texts.extend(self.finder.complaint());
        texts.join("; ")
    }

    pub(crate) fn coverage(&self) -> Vec<LibraryCoverage> {
        let failed =
            |(path, failure): (&PathBuf, &Failure)| LibraryCoverage::refused(path, &failure.why);
        let refused = |it: &Refusal| LibraryCoverage {
            found_in: it.place.origin.describe(),
            ..LibraryCoverage::refused(&it.place.path, &it.why)
        };
        let hooked = self.hooked.iter().map(Hooked::coverage);
        hooked
            .chain(self.failed.iter().map(failed))
            .chain(self.refused.values().map(refused))
            .collect()
    }
}

impl Drop for Libraries {
    /// All at once: a node has many copies.
    fn drop(&mut self) {
        detach(self.hooked.iter_mut().flat_map(Hooked::leave));
    }
}
