//! One library file and the groups of hooks that are on it.

use std::collections::{BTreeMap, BTreeSet};

use super::coverage::LibraryCoverage;
use super::driver::LibraryFile;
use super::search::{Origin, Place, Prepared};
use super::text::{self, TextCheck};
use crate::clock;
use crate::model::ids::ProcessId;
use crate::model::units::BootNs;
use crate::samplers::cuda::driver::{Kernel, KernelError, Links, detach};
use crate::samplers::cuda::hooks::Group;
use crate::samplers::cuda::probe::{Skipped, Why};
use crate::samplers::process::decode::FileId;

/// The file stays open: a group that was taken off is put back on the very bytes that were decoded,
/// whatever the path leads to by then.
#[derive(Debug)]
pub(super) struct Hooked {
    pub(super) place: Place,
    pub(super) library: LibraryFile,
    /// When a process was last known to map it.
    pub(super) used: BootNs,
    memory: Memory,
    /// Groups that are on. A link detaches when it goes.
    links: BTreeMap<Group, Links>,
    /// Groups that are off for a look, and since when.
    off: Option<(BootNs, BTreeSet<Group>)>,
    /// Hooks on work were off since the last reading.
    blinked: bool,
    blind_until: Option<BootNs>,
}

/// Silence in a file is evidence when these are on.
const WORK: [Group; 4] = [Group::Life, Group::Launches, Group::Copies, Group::Waits];

/// What work may be under way is known when these are on, and have been since the process began.
const SEEING: [Group; 2] = [Group::Life, Group::Launches];

/// Whether hooks on the memory functions would do harm.
#[derive(Debug)]
enum Memory {
    Harmless,
    HeldBack(HeldBack),
}

/// Why the hooks on the memory functions are not on.
#[derive(Debug)]
struct HeldBack {
    why: String,
    /// Who must be gone before it is worth while to look again.
    processes: Vec<ProcessId>,
    /// Nothing that ends would change it.
    for_good: bool,
    /// When and how often it was looked at again.
    at: BootNs,
    looks: u32,
}

/// Pages may be a process's own although nothing in them has changed, because the kernel did not give
/// the file's back at once when earlier hooks went. It does when hooks on them go once more: so one look is
/// worth while although the same processes live. Calls are missed meanwhile, so that it is only one.
const LOOK_NS: u64 = 10_000_000_000;
const MOST_LOOKS: u32 = 1;
/// Looks in vain are further and further apart.
const MOST_DOUBLINGS: u32 = 5;

impl Hooked {
    /// All groups that do no harm, or an error and none.
    pub(super) fn attach(
        kernel: &mut Kernel,
        place: Place,
        prepared: Prepared,
        at: BootNs,
    ) -> Result<Self, KernelError> {
        let Prepared { library, mut text } = prepared;
        if !text.unwanted && kernel.holds(&library, Group::Memory) {
            // Hooks that a predecessor left are there already: going on with them changes no text.
            text = TextCheck::default();
        }
        let memory = match HeldBack::found(&text, at) {
            None => Memory::Harmless,
            Some(held) => Memory::HeldBack(held),
        };
        let mut hooked = Self {
            place,
            library,
            used: at,
            memory,
            links: BTreeMap::new(),
            off: None,
            blinked: false,
            blind_until: None,
        };
        let begun = clock::boot();
        let seen_all_along = SEEING.into_iter().all(|it| kernel.holds(&hooked.library, it));
        if !seen_all_along {
            kernel.set_sight(hooked.library.gates, None, begun)?;
        }
        for group in Group::ALL {
            hooked.put_on(kernel, group)?;
        }
        let adopted = SEEING.into_iter().all(|it| hooked.is_adopted(it));
        if !(seen_all_along && adopted) {
            kernel.set_sight(hooked.library.gates, Some(clock::boot()), begun)?;
        }
        // What went before is another matter: these are the first hooks.
        hooked.blind_until = None;
        Ok(hooked)
    }

    /// A configured path leads to the same file: it is no tenant's.
    pub(super) fn found_at(&mut self, place: &Place) {
        if place.origin == Origin::Path && self.place.origin != Origin::Path {
            self.place = place.clone();
        }
    }

    pub(super) fn put_on(&mut self, kernel: &mut Kernel, group: Group) -> Result<(), KernelError> {
        // A second link would count each call twice.
        let harmless = group != Group::Memory || matches!(self.memory, Memory::Harmless);
        if harmless && !self.links.contains_key(&group) {
            self.links.insert(group, kernel.attach(&self.library, group)?);
            if WORK.contains(&group) {
                self.blind_until = Some(clock::boot());
            }
        }
        Ok(())
    }

    /// The hooks are gone when what is returned is dropped.
    pub(super) fn take_off(&mut self, group: Group) -> Option<Links> {
        self.blinked |= WORK.contains(&group);
        self.links.remove(&group)
    }

    /// For a look at the text, which counts as one even if nothing comes of it. `now` is when this
    /// happens, `at` the time of the reading.
    pub(super) fn take_all_off(&mut self, now: BootNs, at: BootNs) {
        if let Memory::HeldBack(held) = &mut self.memory {
            held.at = at;
            held.looks = held.looks.saturating_add(1);
        }
        self.blinked = true;
        self.off = Some((now, self.links.keys().copied().collect()));
        detach(self.leave());
    }

    /// Puts on what was off for a look. Returns for how long it was off; after an error it still is.
    pub(super) fn restore(&mut self, kernel: &mut Kernel) -> Result<u64, KernelError> {
        let Some((since, groups)) = self.off.clone() else { return Ok(0) };
        for group in groups.iter().chain([&Group::Memory]) {
            self.put_on(kernel, *group)?;
        }
        self.off = None;
        let now = clock::boot();
        kernel.set_sight(self.library.gates, Some(now), since)?;
        Ok(now.since(since))
    }

    /// For how long hooks are off for a look that has not ended.
    pub(super) fn off_ns(&self, at: BootNs) -> u64 {
        self.off.as_ref().map_or(0, |(since, _)| at.since(*since))
    }

    /// What holds all hooks.
    pub(super) fn leave(&mut self) -> impl Iterator<Item = Links> + use<> {
        std::mem::take(&mut self.links).into_values()
    }

    /// Links to the kernel that hold the hooks.
    pub(super) fn links(&self) -> usize {
        self.links.values().map(Links::len).sum()
    }

    /// Those of them that a predecessor made: nothing was attached for them.
    pub(super) fn adopted(&self) -> usize {
        self.links.values().map(Links::adopted).sum()
    }

    /// Whether nothing was attached for a group: a predecessor's hooks have been on all along.
    fn is_adopted(&self, group: Group) -> bool {
        self.links.get(&group).is_none_or(|it| it.adopted() == it.len())
    }

    pub(super) fn file(&self) -> FileId {
        self.library.id
    }

    pub(super) fn is_on(&self, group: Group) -> bool {
        self.links.contains_key(&group)
    }

    /// Whether no launch, copy or wait in this file goes unseen. Memory calls are another question:
    /// they say nothing about idleness.
    pub(super) fn sees_all_work(&self) -> bool {
        let unseen = |it: &Skipped| matches!(it.why, Why::Unreadable | Why::Refused(_));
        !self.library.plan.skipped.iter().any(unseen) && WORK.iter().all(|it| self.is_on(*it))
    }

    /// Whether that holds, and did all the time since this was asked last.
    pub(super) fn take_sight(&mut self) -> bool {
        !std::mem::take(&mut self.blinked) && self.sees_all_work()
    }

    /// When hooks on work were put on again the last time.
    pub(super) fn blind_until(&self) -> Option<BootNs> {
        self.blind_until
    }

    /// Since when every memory call in this file is seen; `None` when they are not.
    pub(super) fn memory_since(&self) -> Option<BootNs> {
        self.links.get(&Group::Memory).map(Links::since)
    }

    pub(super) fn held_back(&self) -> Option<&str> {
        match &self.memory {
            Memory::Harmless => None,
            Memory::HeldBack(held) => Some(&held.why),
        }
    }

    /// Whether its text should be looked at again, with all hooks off.
    pub(super) fn wants_look(&self, at: BootNs, lives: impl Fn(ProcessId) -> bool) -> bool {
        let Memory::HeldBack(held) = &self.memory else { return false };
        let wait = LOOK_NS << held.looks.min(MOST_DOUBLINGS);
        let worth = held.looks < MOST_LOOKS || !held.processes.iter().any(|it| lives(*it));
        !held.for_good && at.since(held.at) > wait && worth
    }

    /// Takes in what a later look found. Puts nothing on.
    pub(super) fn looked_at(&mut self, text: &TextCheck, at: BootNs) {
        let Memory::HeldBack(held) = &mut self.memory else { return };
        match HeldBack::found(text, at) {
            None => self.memory = Memory::Harmless,
            Some(found) => *held = HeldBack { looks: held.looks, ..found },
        }
    }

    /// A process uses UCX with this file, and other processes will: the next ones shall find their
    /// functions as they are in the file.
    pub(super) fn used_with_ucx(&mut self, tgid: u32, at: BootNs) {
        if matches!(self.memory, Memory::Harmless) && text::is_in_the_way(&self.library.plan) {
            self.take_off(Group::Memory);
            self.memory = Memory::HeldBack(HeldBack::ucx(tgid, at));
        }
    }

    pub(super) fn coverage(&self) -> LibraryCoverage {
        let is_on = |group| self.is_on(group);
        let coverage =
            LibraryCoverage::new(&self.place.path, self.file(), &self.library.plan, is_on);
        let held_back = self.held_back().map(str::to_owned);
        LibraryCoverage { found_in: self.place.origin.describe(), held_back, ..coverage }
    }
}

impl HeldBack {
    fn found(text: &TextCheck, at: BootNs) -> Option<Self> {
        if text.unwanted {
            let why = "cuda.memory_hooks is false".to_owned();
            return Some(Self { why, processes: Vec::new(), for_good: true, at, looks: 0 });
        }
        if let Some(process) = text.ucx.first() {
            return Some(Self::ucx(process.tgid, at));
        }
        if text.is_clean() {
            return None;
        }
        let why = if text.changed.is_empty() {
            format!(
                "{} processes could not be looked at (needs CAP_SYS_PTRACE): hooks on the memory \
                 functions would break one that has changed them",
                text.unseen
            )
        } else {
            let tgids: Vec<String> = text.changed.iter().map(|it| it.tgid.to_string()).collect();
            format!(
                "the processes {} have changed these functions in their memory, as UCX does, or \
                 somebody else traces them: hooks there could break them",
                tgids.join(", ")
            )
        };
        let reasons = text.changed.iter().chain(&text.hidden).copied().collect();
        Some(Self { why, processes: reasons, for_good: false, at, looks: 0 })
    }

    fn ucx(tgid: u32, at: BootNs) -> Self {
        let why = format!(
            "process {tgid} uses UCX, which cannot set its own memory hooks where these are, and \
             loses its registration cache without them; this holds until the agent is restarted"
        );
        Self { why, processes: Vec::new(), for_good: true, at, looks: 0 }
    }
}

impl Drop for Hooked {
    fn drop(&mut self) {
        detach(self.leave());
    }
}
