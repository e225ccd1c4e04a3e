//! From rows, records and mappings to one reading per process: every life is reported while it
//! lasts, and exactly once more when it has ended. Pure: it is told everything.

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::keys::Program;
use agent_ebpf::{Event, Record, Row, flag};

use super::belongings::{Parts, Uuids, program};
use super::decode;
use crate::model::ids::ProcessId;
use crate::model::readings::{CudaCounts, CudaProcess};
use crate::model::units::BootNs;
use crate::samplers::process::decode::FileId;

/// A process may map another library later; this long nobody looks.
const LOOK_AGAIN_NS: u64 = 30_000_000_000;

/// What is known about processes between two readings.
#[derive(Debug)]
pub(crate) struct Lives {
    ticks_per_second: u64,
    /// How many ended programs are kept for the next reading. Beyond it their counts go to
    /// `overflow`.
    most_ended: usize,
    ended: BTreeMap<ProcessId, Final>,
    /// Programs that their process has left by exec, oldest first.
    replaced: Vec<(ProcessId, Final)>,
    mapped: BTreeMap<ProcessId, Mapped>,
    /// Processes that were asked for their mappings and run the same program since.
    asked: BTreeSet<ProcessId>,
    /// Ends of this reading and of the one before: such a row may still be found, and its end told
    /// again.
    past: [Past; 2],
    overflow: CudaCounts,
    lost: u64,
}

/// What has ended, told or not.
#[derive(Debug, Default)]
struct Past {
    processes: BTreeSet<ProcessId>,
    programs: BTreeSet<Program>,
}

/// The last row of a program, and the CUDA libraries that it mapped.
#[derive(Debug)]
struct Final {
    row: Row,
    tgid: u32,
    files: Option<BTreeSet<FileId>>,
}

/// What else tells about the programs of a reading.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Around<'a> {
    pub(crate) at: BootNs,
    /// Files in which no launch, copy or wait goes unseen.
    pub(crate) hooked: &'a BTreeSet<FileId>,
    /// Until when they did, where hooks were off and are on again.
    pub(crate) blind_until: &'a BTreeMap<FileId, BootNs>,
    /// From when on the memory calls of a file have been seen.
    pub(crate) memory_since: &'a BTreeMap<FileId, BootNs>,
    pub(crate) parts: &'a Parts,
    pub(crate) uuids: &'a Uuids,
}

/// The CUDA libraries that a process maps.
#[derive(Debug)]
struct Mapped {
    at: BootNs,
    /// `None` when its mappings could not be read.
    files: Option<BTreeSet<FileId>>,
}

/// A process that user space knows to use a GPU, although it may have made no call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tracked {
    pub(crate) process: ProcessId,
    pub(crate) uid: u32,
}

/// The processes of one reading.
#[derive(Debug, Default)]
pub(crate) struct Present {
    rows: BTreeMap<ProcessId, Row>,
    /// Rows that only wait to be removed from the kernel. Who does so buries them.
    pub(crate) dead: Vec<(u32, Row)>,
}

impl Lives {
    pub(crate) fn new(ticks_per_second: u64, max_processes: u32) -> Self {
        Self {
            ticks_per_second,
            most_ended: usize::try_from(max_processes).unwrap_or(usize::MAX),
            ended: BTreeMap::new(),
            replaced: Vec::new(),
            mapped: BTreeMap::new(),
            asked: BTreeSet::new(),
            past: Default::default(),
            overflow: CudaCounts::default(),
            lost: 0,
        }
    }

    /// Takes in a record of the ring.
    pub(crate) fn note(&mut self, event: Event, record: &Record) {
        let process = self.identify(record.tgid, &record.row);
        match event {
            Event::Exited => self.end(process, record.tgid, record.row),
            Event::Executed => self.replace(process, record),
            // It may map other libraries than when it was looked at.
            Event::Appeared => {
                self.mapped.remove(&process);
                self.asked.remove(&process);
            }
            Event::Awoke => {}
        }
    }

    /// Takes in the rows of the kernel, read before the records that are noted by now: a process is
    /// then in one of the two, or in both.
    pub(crate) fn observe(
        &mut self,
        rows: Vec<(u32, Row)>,
        tracked: impl Iterator<Item = Tracked>,
    ) -> Present {
        let mut present = Present::default();
        // A row without a start is being made: the next reading finds it whole.
        for (tgid, row) in rows.into_iter().filter(|(_, row)| row.start_boottime_ns != 0) {
            let process = self.identify(tgid, &row);
            if row.flags[flag::ABANDONED] != 0 {
                continue;
            }
            if row.flags[flag::DEAD] != 0 {
                present.dead.push((tgid, row));
            }
            if self.is_replaced(tgid, &row) {
                present.rows.insert(process, successor(&row));
            } else {
                present.rows.insert(process, row);
            }
        }
        for it in tracked {
            let silent = Row { uid: it.uid, ..Row::default() };
            present.rows.entry(it.process).or_insert(silent);
        }
        let is_here = |it: &ProcessId| !self.ended.contains_key(it) && !self.has_ended(it);
        present.rows.retain(|process, _| is_here(process));
        self.mapped.retain(|process, _| present.rows.contains_key(process));
        self.asked.retain(|process| present.rows.contains_key(process));
        present
    }

    /// Takes in the end of a process whose dead row was removed.
    pub(crate) fn bury(&mut self, present: &mut Present, tgid: u32, row: Row) {
        let process = self.identify(tgid, &row);
        present.rows.remove(&process);
        self.end(process, tgid, row);
    }

    /// Devices of which the name is not known yet: the first one of each program.
    pub(crate) fn unnamed(&self, present: &Present, uuids: &Uuids) -> Vec<(Program, u32)> {
        let here = present.rows.iter().map(|(process, row)| (process.tgid, row));
        let gone = self.ended.values().chain(self.replaced.iter().map(|(_, it)| it));
        let rows = here.chain(gone.map(|it| (it.tgid, &it.row)));
        let devices = rows.filter(|(_, row)| decode::ordinal(row.home).is_some());
        devices
            .map(|(tgid, row)| (program(tgid, row), row.home))
            .filter(|it| !uuids.contains_key(it))
            .collect()
    }

    /// Whether one that has ended used several devices.
    pub(crate) fn ended_on_several(&self) -> bool {
        let mut gone = self.ended.values().chain(self.replaced.iter().map(|(_, it)| it));
        gone.any(|it| it.row.flags[flag::SEVERAL_DEVICES] != 0)
    }

    /// Processes whose mappings should be read now, at most `most`: first those of which nothing is
    /// known, then those that were asked longest ago.
    pub(crate) fn unmapped(&self, present: &Present, at: BootNs, most: usize) -> Vec<ProcessId> {
        let asked = |process: &ProcessId| self.mapped.get(process).map(|it| it.at);
        let is_due = |it: &Option<BootNs>| it.is_none_or(|it| at.since(it) > LOOK_AGAIN_NS);
        let asked = present.rows.keys().map(|process| (asked(process), *process));
        let mut due: Vec<_> = asked.filter(|it| is_due(&it.0)).collect();
        due.sort_unstable();
        due.into_iter().take(most).map(|it| it.1).collect()
    }

    /// Somebody reads what these map.
    pub(crate) fn asked(&mut self, processes: Vec<ProcessId>) {
        self.asked.extend(processes);
    }

    /// Takes in what a process maps; `None` when it could not be read. What was asked of the program
    /// that it ran before says nothing.
    pub(crate) fn mapped(
        &mut self,
        process: ProcessId,
        at: BootNs,
        files: Option<BTreeSet<FileId>>,
    ) {
        if self.asked.remove(&process) {
            self.mapped.insert(process, Mapped { at, files });
        }
    }

    /// The CUDA libraries that processes map, as far as they could be asked.
    pub(crate) fn files(&self) -> BTreeMap<ProcessId, BTreeSet<FileId>> {
        let known = |(process, it): (&ProcessId, &Mapped)| Some((*process, it.files.clone()?));
        self.mapped.iter().filter_map(known).collect()
    }

    /// Processes that map a file that is not among these.
    pub(crate) fn mapping_others(&self, known: &BTreeSet<FileId>) -> Vec<u32> {
        let others = |it: &Mapped| it.files.as_ref().is_some_and(|it| !it.is_subset(known));
        self.mapped.iter().filter(|(_, it)| others(it)).map(|(process, _)| process.tgid).collect()
    }

    /// Every file that a process maps.
    pub(crate) fn mapped_files(&self) -> BTreeSet<FileId> {
        self.mapped.values().filter_map(|it| it.files.as_ref()).flatten().copied().collect()
    }

    /// Other files are hooked now: what processes map means something else.
    pub(crate) fn forget_mappings(&mut self) {
        self.mapped.clear();
        self.asked.clear();
    }

    /// The reading: everyone present, and those that have ended since the last one.
    pub(crate) fn report(
        &mut self,
        present: &Present,
        around: Around<'_>,
    ) -> BTreeMap<ProcessId, CudaProcess> {
        self.past = [Past::default(), std::mem::take(&mut self.past[0])];
        let ended = std::mem::take(&mut self.ended);
        let gone = ended.into_iter().map(|(process, it)| {
            let last = cuda_process(it.tgid, &it.row, it.files.as_ref(), around);
            (process, CudaProcess { fully_hooked: false, exited: true, ..last })
        });
        let here = present.rows.iter().map(|(process, row)| {
            let files = self.mapped.get(process).and_then(|it| it.files.as_ref());
            (*process, cuda_process(process.tgid, row, files, around))
        });
        here.chain(gone).collect()
    }

    /// Programs that their processes have left since the last reading, oldest first.
    pub(crate) fn replaced(&mut self, around: Around<'_>) -> Vec<(ProcessId, CudaProcess)> {
        let last = |(process, it): (ProcessId, Final)| {
            let last = cuda_process(it.tgid, &it.row, it.files.as_ref(), around);
            (process, CudaProcess { fully_hooked: false, ..last })
        };
        std::mem::take(&mut self.replaced).into_iter().map(last).collect()
    }

    /// Counts that lost their owner here, on top of those that the kernel could not attribute.
    pub(crate) fn overflow(&self) -> CudaCounts {
        self.overflow
    }

    /// How many lives that concerns.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    fn identify(&self, tgid: u32, row: &Row) -> ProcessId {
        decode::process_id(tgid, row, self.ticks_per_second)
    }

    /// The first end with counts is the end. A blank one may come before it, or after it.
    fn end(&mut self, process: ProcessId, tgid: u32, row: Row) {
        if self.has_ended(&process) {
            return;
        }
        let files = self.mapped.remove(&process).and_then(|it| it.files);
        let is_blank = decode::counts(&row).is_zero();
        if !is_blank {
            self.past[0].processes.insert(process);
        }
        if self.ended.len() < self.most_ended || self.ended.contains_key(&process) {
            self.ended.insert(process, Final { row, tgid, files });
        } else if !is_blank {
            self.lose(&row);
        }
    }

    /// One that made no call is no program of interest.
    fn replace(&mut self, process: ProcessId, record: &Record) {
        self.asked.remove(&process);
        let files = self.mapped.remove(&process).and_then(|it| it.files);
        if decode::counts(&record.row).is_zero() {
            return;
        }
        self.past[0].programs.insert(program(record.tgid, &record.row));
        if self.replaced.len() < self.most_ended {
            self.replaced.push((process, Final { row: record.row, tgid: record.tgid, files }));
        } else {
            self.lose(&record.row);
        }
    }

    fn lose(&mut self, row: &Row) {
        self.overflow = self.overflow.plus(&decode::counts(row));
        self.lost += 1;
    }

    /// Whether the program of this row has ended by exec since the row was read.
    fn is_replaced(&self, tgid: u32, row: &Row) -> bool {
        self.past.iter().any(|it| it.programs.contains(&program(tgid, row)))
    }

    /// With counts that are told or lost.
    fn has_ended(&self, process: &ProcessId) -> bool {
        self.past.iter().any(|it| it.processes.contains(process))
    }
}

/// The process goes on, and its next program has made no call.
fn successor(row: &Row) -> Row {
    Row {
        start_boottime_ns: row.start_boottime_ns,
        cgroup_id: row.cgroup_id,
        uid: row.uid,
        ..Row::default()
    }
}

/// A process that maps no CUDA library as far as we can see may use one that hides its name.
fn is_fully_hooked(files: Option<&BTreeSet<FileId>>, hooked: &BTreeSet<FileId>) -> bool {
    files.is_some_and(|it| !it.is_empty() && it.is_subset(hooked))
}

/// The last that was seen, or until when it may have launched unseen.
fn last_launch(row: &Row, files: Option<&BTreeSet<FileId>>, around: Around<'_>) -> Option<BootNs> {
    let began = BootNs(row.start_boottime_ns);
    let blind = files.into_iter().flatten().filter_map(|it| around.blind_until.get(it)).copied();
    decode::last_launch(row).max(blind.filter(|until| began < *until).max())
}

/// Whether all memory calls were seen since the process began.
fn is_memory_known(row: &Row, files: Option<&BTreeSet<FileId>>, around: Around<'_>) -> bool {
    let began = BootNs(row.start_boottime_ns);
    let seen = |it: &FileId| around.memory_since.get(it).is_some_and(|since| *since <= began);
    files.is_some_and(|it| !it.is_empty() && it.iter().all(seen))
}

fn cuda_process(
    tgid: u32,
    row: &Row,
    files: Option<&BTreeSet<FileId>>,
    around: Around<'_>,
) -> CudaProcess {
    let program = program(tgid, row);
    let parts = around.parts.get(&program).map(Vec::as_slice).unwrap_or_default();
    CudaProcess {
        uid: row.uid,
        program: Some(row.program).filter(|it| *it != 0),
        cgroup_id: decode::cgroup(row),
        counts: decode::counts_at(row, around.at),
        estimated: CudaCounts::default(),
        elsewhere: parts
            .iter()
            .map(|(device, counts)| (decode::device(program, *device, around.uuids), *counts))
            .collect(),
        home: decode::ordinal(row.home).map(|_| decode::device(program, row.home, around.uuids)),
        memory: is_memory_known(row, files, around).then(|| decode::memory(row)),
        last_launch: last_launch(row, files, around),
        fully_hooked: is_fully_hooked(files, around.hooked),
        exited: false,
    }
}

#[cfg(test)]
mod tests {
    use super::{Around, LOOK_AGAIN_NS, Lives, Present, Tracked};
    use crate::model::ids::ProcessId;
    use crate::model::readings::CudaProcess;
    use crate::model::units::BootNs;
    use crate::samplers::cuda::belongings::{Parts, Uuids};
    use crate::samplers::process::decode::FileId;
    use agent_ebpf::{Counter, Event, Record, Row, flag};
    use std::collections::{BTreeMap, BTreeSet};

    const AT: BootNs = BootNs(1_000_000_000_000);
    const LIBRARY: FileId = FileId { major: 8, minor: 1, inode: 77 };
    const COPY: FileId = FileId { major: 8, minor: 1, inode: 78 };

    fn row(start_s: u64, launches: u64) -> Row {
        let mut row = Row { start_boottime_ns: start_s * 1_000_000_000, ..Row::default() };
        row.counts[Counter::KernelLaunches as usize] = launches;
        row
    }

    fn process(tgid: u32, start_s: u64) -> ProcessId {
        ProcessId { tgid, start_ticks: start_s * 100 }
    }

    fn exit(lives: &mut Lives, tgid: u32, row: Row) {
        lives.note(Event::Exited, &Record { event: Event::Exited as u32, tgid, row });
    }

    fn map(lives: &mut Lives, process: ProcessId, at: BootNs, files: Option<BTreeSet<FileId>>) {
        lives.asked(vec![process]);
        lives.mapped(process, at, files);
    }

    fn read(lives: &mut Lives, rows: Vec<(u32, Row)>) -> BTreeMap<ProcessId, CudaProcess> {
        let present = lives.observe(rows, std::iter::empty());
        report(lives, &present)
    }

    fn report(lives: &mut Lives, present: &Present) -> BTreeMap<ProcessId, CudaProcess> {
        lives.report(present, around(&BTreeSet::new(), &BTreeMap::new()))
    }

    fn around<'a>(
        hooked: &'a BTreeSet<FileId>,
        memory_since: &'a BTreeMap<FileId, BootNs>,
    ) -> Around<'a> {
        static PARTS: Parts = Parts::new();
        static UUIDS: Uuids = Uuids::new();
        static NEVER: BTreeMap<FileId, BootNs> = BTreeMap::new();
        Around { at: AT, hooked, blind_until: &NEVER, memory_since, parts: &PARTS, uuids: &UUIDS }
    }

    #[test]
    fn final_counts_are_reported_exactly_once() {
        let mut lives = Lives::new(100, 16);
        exit(&mut lives, 5, row(1, 30));
        // Read before it exited: the record is newer than the row.
        let first = read(&mut lives, vec![(5, row(1, 20))]);
        assert_eq!(first[&process(5, 1)].counts.launches(), 30);
        assert!(first[&process(5, 1)].exited);
        assert_eq!(read(&mut lives, vec![]), BTreeMap::new());
    }

    #[test]
    fn a_reused_tgid_is_another_process() {
        let mut lives = Lives::new(100, 16);
        exit(&mut lives, 5, row(1, 30));
        let found = read(&mut lives, vec![(5, row(2, 1))]);
        assert_eq!(found.len(), 2);
        assert_eq!(found[&process(5, 2)].counts.launches(), 1);
        assert!(!found[&process(5, 2)].exited);
    }

    #[test]
    fn a_dead_row_is_final_and_to_be_removed() {
        let mut lives = Lives::new(100, 16);
        let mut dead = row(1, 9);
        dead.flags[flag::DEAD] = 1;
        let mut present = lives.observe(vec![(5, dead)], std::iter::empty());
        assert_eq!(present.dead, [(5, dead)]);
        lives.bury(&mut present, 5, dead);
        let found = report(&mut lives, &present);
        assert!(found[&process(5, 1)].exited);
        // The kernel told it, too, before the row was removed.
        exit(&mut lives, 5, dead);
        assert_eq!(read(&mut lives, vec![]), BTreeMap::new());
    }

    #[test]
    fn a_dead_row_that_the_kernel_took_ends_when_it_says_so() {
        let mut lives = Lives::new(100, 16);
        let mut dead = row(1, 9);
        dead.flags[flag::DEAD] = 1;
        assert!(!read(&mut lives, vec![(5, dead)])[&process(5, 1)].exited);
        exit(&mut lives, 5, dead);
        assert!(read(&mut lives, vec![])[&process(5, 1)].exited);
    }

    #[test]
    fn a_blank_end_takes_no_counts_away() {
        let last = |ends: [u64; 2]| {
            let mut lives = Lives::new(100, 16);
            ends.into_iter().for_each(|launches| exit(&mut lives, 5, row(1, launches)));
            read(&mut lives, vec![])[&process(5, 1)].counts.launches()
        };
        assert_eq!([last([30, 0]), last([0, 30])], [30, 30]);
    }

    #[test]
    fn what_lost_its_owner_is_reported_of_nobody() {
        let mut lives = Lives::new(100, 0);
        exit(&mut lives, 5, row(1, 30));
        let mut abandoned = row(1, 8);
        abandoned.flags[flag::ABANDONED] = 1;
        assert_eq!(read(&mut lives, vec![(5, row(1, 20)), (6, abandoned)]), BTreeMap::new());
        assert_eq!(lives.overflow().launches(), 30);
    }

    #[test]
    fn too_many_ends_between_two_readings_keep_the_total() {
        let mut lives = Lives::new(100, 2);
        for tgid in 1..=5 {
            exit(&mut lives, tgid, row(1, 10));
        }
        assert_eq!(read(&mut lives, vec![]).len(), 2);
        assert_eq!((lives.overflow().launches(), lives.lost()), (30, 3));
    }

    #[test]
    fn a_tracked_process_is_reported_although_it_made_no_call() {
        let mut lives = Lives::new(100, 16);
        let silent = Tracked { process: process(7, 3), uid: 1000 };
        let present = lives.observe(vec![(5, row(1, 4))], [silent].into_iter());
        let found = report(&mut lives, &present);
        assert_eq!((found[&silent.process].uid, found[&silent.process].last_launch), (1000, None));
        exit(&mut lives, 7, row(3, 0));
        let present = lives.observe(vec![], [silent].into_iter());
        assert!(report(&mut lives, &present)[&silent.process].exited);
    }

    fn check_hooked(files: Option<&[FileId]>, expected: bool) {
        let mut lives = Lives::new(100, 16);
        let present = lives.observe(vec![(5, row(1, 4))], std::iter::empty());
        map(&mut lives, process(5, 1), AT, files.map(|it| it.iter().copied().collect()));
        let hooked = BTreeSet::from([LIBRARY]);
        let found = lives.report(&present, around(&hooked, &BTreeMap::new()));
        assert_eq!(found[&process(5, 1)].fully_hooked, expected, "{files:?}");
    }

    #[test]
    fn silence_is_evidence_only_when_every_library_is_hooked() {
        check_hooked(Some(&[LIBRARY]), true);
        check_hooked(Some(&[LIBRARY, COPY]), false);
        check_hooked(Some(&[]), false);
        check_hooked(None, false);
    }

    #[test]
    fn a_program_that_was_left_is_reported_once_and_its_row_no_more() {
        let mut lives = Lives::new(100, 16);
        let old = Row { program: 1_000_000_001, ..row(1, 30) };
        let executed = Record { event: Event::Executed as u32, tgid: 5, row: old };
        lives.note(Event::Executed, &executed);
        // Read before it was left.
        let stale = Row { program: 1_000_000_001, ..row(1, 20) };
        let found = read(&mut lives, vec![(5, stale)]);
        assert_eq!(found[&process(5, 1)].counts.launches(), 0);
        let (hooked, since) = (BTreeSet::new(), BTreeMap::new());
        let replaced = lives.replaced(around(&hooked, &since));
        assert_eq!(replaced.len(), 1);
        assert_eq!((replaced[0].0, replaced[0].1.counts.launches()), (process(5, 1), 30));
        assert!(!replaced[0].1.exited);
        let next = Row { program: 1_000_000_002, ..row(1, 4) };
        assert_eq!(read(&mut lives, vec![(5, next)])[&process(5, 1)].counts.launches(), 4);
        assert_eq!(lives.replaced(around(&hooked, &since)), []);
    }

    fn check_last_launch(launched: u64, blind_until: Option<u64>, expected: Option<u64>) {
        let mut lives = Lives::new(100, 16);
        let row = Row { last_launch_ns: launched, ..row(3, 4) };
        let present = lives.observe(vec![(5, row)], std::iter::empty());
        map(&mut lives, process(5, 3), AT, Some(BTreeSet::from([LIBRARY])));
        let blind = blind_until.map(|it| (LIBRARY, BootNs(it))).into_iter().collect();
        let (hooked, since) = (BTreeSet::new(), BTreeMap::new());
        let around = Around { blind_until: &blind, ..around(&hooked, &since) };
        let found = lives.report(&present, around);
        assert_eq!(found[&process(5, 3)].last_launch, expected.map(BootNs));
    }

    #[test]
    fn a_launch_may_have_been_missed_while_hooks_were_off() {
        let second = 1_000_000_000;
        check_last_launch(4 * second, None, Some(4 * second));
        check_last_launch(4 * second, Some(9 * second), Some(9 * second));
        check_last_launch(10 * second, Some(9 * second), Some(10 * second));
        check_last_launch(0, Some(9 * second), Some(9 * second));
        // Before it began.
        check_last_launch(0, Some(2 * second), None);
    }

    fn check_memory(files: Option<&[FileId]>, since_s: u64, expected: bool) {
        let mut lives = Lives::new(100, 16);
        let present = lives.observe(vec![(5, row(3, 4))], std::iter::empty());
        map(&mut lives, process(5, 3), AT, files.map(|it| it.iter().copied().collect()));
        let since = BTreeMap::from([(LIBRARY, BootNs(since_s * 1_000_000_000))]);
        let found = lives.report(&present, around(&BTreeSet::new(), &since));
        assert_eq!(found[&process(5, 3)].memory.is_some(), expected, "{files:?} {since_s}");
    }

    #[test]
    fn live_memory_is_known_where_every_allocation_was_seen() {
        check_memory(Some(&[LIBRARY]), 2, true);
        check_memory(Some(&[LIBRARY]), 4, false);
        check_memory(Some(&[LIBRARY, COPY]), 2, false);
        check_memory(Some(&[]), 2, false);
        check_memory(None, 2, false);
    }

    #[test]
    fn what_was_read_of_the_program_before_says_nothing() {
        let mut lives = Lives::new(100, 16);
        let present = lives.observe(vec![(5, row(1, 4))], std::iter::empty());
        lives.asked(vec![process(5, 1)]);
        let record = Record { event: Event::Executed as u32, tgid: 5, row: row(1, 4) };
        lives.note(Event::Executed, &record);
        lives.mapped(process(5, 1), AT, Some(BTreeSet::from([LIBRARY])));
        assert_eq!(lives.unmapped(&present, AT, 8), [process(5, 1)]);
    }

    #[test]
    fn mappings_are_read_when_they_may_have_changed() {
        let mut lives = Lives::new(100, 16);
        let rows = vec![(5, row(1, 4)), (6, row(1, 4))];
        let present = lives.observe(rows, std::iter::empty());
        assert_eq!(lives.unmapped(&present, AT, 1), [process(5, 1)]);
        map(&mut lives, process(5, 1), AT, None);
        map(&mut lives, process(6, 1), AT, None);
        assert_eq!(lives.unmapped(&present, AT, 8), []);
        let record = Record { event: Event::Executed as u32, tgid: 6, row: row(1, 4) };
        lives.note(Event::Executed, &record);
        assert_eq!(lives.unmapped(&present, AT, 8), [process(6, 1)]);
        let later = AT + LOOK_AGAIN_NS + 1;
        assert_eq!(lives.unmapped(&present, later, 8).len(), 2);
        map(&mut lives, process(6, 1), AT + 1, None);
        map(&mut lives, process(5, 1), AT + 2, None);
        let rows = vec![(5, row(1, 4)), (6, row(1, 4)), (7, row(1, 4))];
        let present = lives.observe(rows, std::iter::empty());
        let due = lives.unmapped(&present, later + 2, 8);
        assert_eq!(due, [process(7, 1), process(6, 1), process(5, 1)]);
    }
}
