//! From rows, records and mappings to one reading per process: every life is reported while it
//! lasts, and exactly once more when it has ended. Pure: it is told everything.

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::{Event, Record, Row, flag};

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
    /// How many ended lives are kept for the next reading. Beyond it their counts go to `overflow`.
    most_ended: usize,
    ended: BTreeMap<ProcessId, Row>,
    mapped: BTreeMap<ProcessId, Mapped>,
    overflow: CudaCounts,
    lost: u64,
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
    /// Rows that only wait to be removed from the kernel.
    pub(crate) dead: Vec<u32>,
}

impl Lives {
    pub(crate) fn new(ticks_per_second: u64, max_processes: u32) -> Self {
        Self {
            ticks_per_second,
            most_ended: usize::try_from(max_processes).unwrap_or(usize::MAX),
            ended: BTreeMap::new(),
            mapped: BTreeMap::new(),
            overflow: CudaCounts::default(),
            lost: 0,
        }
    }

    /// Takes in a record of the ring.
    pub(crate) fn note(&mut self, event: Event, record: &Record) {
        let process = self.identify(record.tgid, &record.row);
        match event {
            Event::Exited => self.end(process, record.row),
            // It may map other libraries than when it was looked at.
            Event::Appeared | Event::Executed => {
                self.mapped.remove(&process);
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
        for (tgid, row) in rows {
            let process = self.identify(tgid, &row);
            if row.flags & flag::DEAD != 0 {
                present.dead.push(tgid);
                self.end(process, row);
            } else {
                present.rows.insert(process, row);
            }
        }
        for it in tracked {
            let silent = Row { uid: it.uid, ..Row::default() };
            present.rows.entry(it.process).or_insert(silent);
        }
        present.rows.retain(|process, _| !self.ended.contains_key(process));
        self.mapped.retain(|process, _| present.rows.contains_key(process));
        present
    }

    /// Processes whose mappings should be read now, at most `most`.
    pub(crate) fn unmapped(&self, present: &Present, at: BootNs, most: usize) -> Vec<ProcessId> {
        let is_due = |process: &&ProcessId| {
            self.mapped.get(process).is_none_or(|it| at.since(it.at) > LOOK_AGAIN_NS)
        };
        present.rows.keys().filter(is_due).take(most).copied().collect()
    }

    /// Takes in what a process maps; `None` when it could not be read.
    pub(crate) fn mapped(
        &mut self,
        process: ProcessId,
        at: BootNs,
        files: Option<BTreeSet<FileId>>,
    ) {
        self.mapped.insert(process, Mapped { at, files });
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
    }

    /// The reading: everyone present, and those that have ended since the last one.
    pub(crate) fn report(
        &mut self,
        present: &Present,
        hooked: &BTreeSet<FileId>,
    ) -> BTreeMap<ProcessId, CudaProcess> {
        let ended = std::mem::take(&mut self.ended);
        let gone = ended.iter().map(|(process, row)| (*process, cuda_process(row, false, true)));
        let here = present.rows.iter().map(|(process, row)| {
            (*process, cuda_process(row, self.is_fully_hooked(process, hooked), false))
        });
        here.chain(gone).collect()
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

    fn end(&mut self, process: ProcessId, row: Row) {
        if self.ended.len() < self.most_ended || self.ended.contains_key(&process) {
            self.ended.insert(process, row);
        } else {
            self.overflow = self.overflow.plus(&decode::counts(&row));
            self.lost += 1;
        }
    }

    /// A process that maps no CUDA library as far as we can see may use one that hides its name.
    fn is_fully_hooked(&self, process: &ProcessId, hooked: &BTreeSet<FileId>) -> bool {
        let files = self.mapped.get(process).and_then(|it| it.files.as_ref());
        files.is_some_and(|it| !it.is_empty() && it.is_subset(hooked))
    }
}

fn cuda_process(row: &Row, fully_hooked: bool, exited: bool) -> CudaProcess {
    CudaProcess {
        uid: row.uid,
        cgroup_id: decode::cgroup(row),
        counts: decode::counts(row),
        estimated: CudaCounts::default(),
        elsewhere: Vec::new(),
        home: None,
        memory: None,
        last_launch: decode::last_launch(row),
        fully_hooked,
        exited,
    }
}

#[cfg(test)]
mod tests {
    use super::{LOOK_AGAIN_NS, Lives, Tracked};
    use crate::model::ids::ProcessId;
    use crate::model::readings::CudaProcess;
    use crate::model::units::BootNs;
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

    fn read(lives: &mut Lives, rows: Vec<(u32, Row)>) -> BTreeMap<ProcessId, CudaProcess> {
        let present = lives.observe(rows, std::iter::empty());
        lives.report(&present, &BTreeSet::new())
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
        let dead = Row { flags: flag::DEAD, ..row(1, 9) };
        let present = lives.observe(vec![(5, dead)], std::iter::empty());
        assert_eq!(present.dead, [5]);
        let found = lives.report(&present, &BTreeSet::new());
        assert!(found[&process(5, 1)].exited);
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
        let found = lives.report(&present, &BTreeSet::new());
        assert_eq!((found[&silent.process].uid, found[&silent.process].last_launch), (1000, None));
        exit(&mut lives, 7, row(3, 0));
        let present = lives.observe(vec![], [silent].into_iter());
        assert!(lives.report(&present, &BTreeSet::new())[&silent.process].exited);
    }

    fn check_hooked(files: Option<&[FileId]>, expected: bool) {
        let mut lives = Lives::new(100, 16);
        let present = lives.observe(vec![(5, row(1, 4))], std::iter::empty());
        lives.mapped(process(5, 1), AT, files.map(|it| it.iter().copied().collect()));
        let found = lives.report(&present, &BTreeSet::from([LIBRARY]));
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
    fn mappings_are_read_when_they_may_have_changed() {
        let mut lives = Lives::new(100, 16);
        let rows = vec![(5, row(1, 4)), (6, row(1, 4))];
        let present = lives.observe(rows, std::iter::empty());
        assert_eq!(lives.unmapped(&present, AT, 1), [process(5, 1)]);
        lives.mapped(process(5, 1), AT, None);
        lives.mapped(process(6, 1), AT, None);
        assert_eq!(lives.unmapped(&present, AT, 8), []);
        let record = Record { event: Event::Executed as u32, tgid: 6, row: row(1, 4) };
        lives.note(Event::Executed, &record);
        assert_eq!(lives.unmapped(&present, AT, 8), [process(6, 1)]);
        let later = AT + LOOK_AGAIN_NS + 1;
        assert_eq!(lives.unmapped(&present, later, 8).len(), 2);
    }
}
