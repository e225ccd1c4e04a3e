//! The governor against a simulated node: what its processes lose, and what is counted of them.

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::{COUNTERS, Counter};
use proptest::prelude::*;

use super::cost::CallCosts;
use super::{Budget, Change, Counted, CpuTimes, Governor, Rows, Window, window};
use crate::model::ids::ProcessId;
use crate::model::units::BootNs;
use crate::samplers::cuda::hooks::Group;
use crate::samplers::process::decode::FileId;

const SECOND: u64 = 1_000_000_000;
const FILE: FileId = FileId { major: 8, minor: 1, inode: 77 };
const HIT_NS: u64 = 200;
const BUDGET: u64 = 10_000;
/// The kernel takes this long to put hooks on.
const ATTACH_NS: u64 = 8_000_000;

/// A program that makes calls in a fixed mixture, all of one thread.
#[derive(Clone, Debug)]
struct Program {
    /// Its own time from one launch to the next.
    own_ns: u64,
    /// Sleeps until each launch is due, if it is faster; else it launches as fast as it can.
    paced: bool,
    /// Copies and waits in a thousand launches.
    copies: u64,
    waits: u64,
    /// Nanoseconds of own work that are not yet a whole launch.
    rest_ns: u64,
    launches: u64,
    cpu_ns: u64,
    lost_ns: u64,
    counted: [u64; COUNTERS],
}

impl Program {
    fn new(own_ns: u64, paced: bool, copies: u64, waits: u64) -> Self {
        Self {
            own_ns: own_ns.max(1),
            paced,
            copies,
            waits,
            rest_ns: 0,
            launches: 0,
            cpu_ns: 0,
            lost_ns: 0,
            counted: [0; COUNTERS],
        }
    }

    /// What the hits of a thousand launches cost, with these groups on.
    fn hits_ns(&self, on: &BTreeSet<Group>) -> u64 {
        let each = |group, calls: u64| if on.contains(&group) { calls } else { 0 };
        each(Group::Launches, 1_000 * HIT_NS)
            + each(Group::Copies, self.copies * HIT_NS)
            + each(Group::Waits, self.waits * HIT_NS * 2)
    }

    /// Runs for a while with these groups on, which count or do not.
    fn run(&mut self, ns: u64, on: &BTreeSet<Group>, counts: bool) {
        let hits = self.hits_ns(on);
        // One that sleeps makes the same calls, and is longer at it.
        let each = if self.paced { self.own_ns * 1_000 } else { self.own_ns * 1_000 + hits };
        let time = ns * 1_000 + self.rest_ns;
        let launches = time / each;
        self.rest_ns = time % each;
        self.cpu_ns += if self.paced { launches * (self.own_ns / 2 + hits / 1_000) } else { ns };
        self.lost_ns += launches * hits / 1_000;
        let copies =
            (self.launches + launches) * self.copies / 1_000 - self.launches * self.copies / 1_000;
        let waits =
            (self.launches + launches) * self.waits / 1_000 - self.launches * self.waits / 1_000;
        self.launches += launches;
        let add = [
            (Group::Launches, Counter::KernelLaunches, launches),
            (Group::Copies, Counter::HostToDeviceCalls, copies),
            (Group::Waits, Counter::Synchronizations, waits),
        ];
        for (group, counter, calls) in add {
            if counts && on.contains(&group) {
                self.counted[counter as usize] += calls;
            }
        }
    }
}

struct Node {
    at: u64,
    programs: BTreeMap<ProcessId, Program>,
    off: BTreeSet<Group>,
    governor: Governor,
}

impl Node {
    fn new(programs: Vec<Program>, seed: u64) -> Self {
        let mut governor = Governor::new(Budget { share: BUDGET, cpus: 64 }, seed);
        let mut costs = CallCosts::default();
        for group in Group::ALL {
            costs.raise(group, if group == Group::Waits { HIT_NS * 2 } else { HIT_NS });
        }
        governor.hook([(FILE, costs)].into());
        let named = (1..).map(|tgid| ProcessId { tgid, start_ticks: 0 }).zip(programs);
        Self { at: SECOND, programs: named.collect(), off: BTreeSet::new(), governor }
    }

    fn on(&self) -> BTreeSet<Group> {
        Group::ALL.into_iter().filter(|it| !self.off.contains(it)).collect()
    }

    fn run(&mut self, ns: u64, on: &BTreeSet<Group>, counts: bool) {
        self.at += ns;
        self.programs.values_mut().for_each(|it| it.run(ns, on, counts));
    }

    fn run_to(&mut self, at: u64) {
        self.run(at.saturating_sub(self.at), &self.on(), true);
    }

    fn rows(&self) -> Rows {
        let row = |it: &Program| Counted {
            start: BootNs(SECOND),
            counts: it.counted,
            waits_ended: it.counted[Counter::Synchronizations as usize],
        };
        self.programs.iter().map(|(key, it)| (*key, row(it))).collect()
    }

    fn cpu(&self) -> CpuTimes {
        self.programs.iter().map(|(key, it)| (*key, it.cpu_ns)).collect()
    }

    /// As the governor's thread does.
    fn until(&mut self, end: u64) {
        let mut look = self.at;
        while self.at < end {
            let window = self.governor.next().map(|(at, length, ..)| (at.0, length));
            match window {
                Some((at, length)) if at <= look => self.window(at, length),
                _ => {
                    self.run_to(look);
                    let changes = self.governor.observe(BootNs(self.at), &self.rows());
                    changes.into_iter().for_each(|it| self.change(it));
                    look = self.at + if self.governor.is_near() { 50_000_000 } else { 200_000_000 };
                }
            }
        }
    }

    fn window(&mut self, at: u64, length: u64) {
        self.run_to(at + ATTACH_NS);
        let (opened, before) = (BootNs(self.at), self.cpu());
        let all = Group::ALL.into_iter().collect();
        self.run(length, &all, true);
        let (closed, cpu) = (BootNs(self.at), self.cpu());
        let ran = cpu.iter().map(|(key, to)| (*key, to - before[key])).collect();
        for program in self.programs.values_mut() {
            program.lost_ns += window::WINDOW_NS;
        }
        let rows = self.rows();
        self.governor.closed(&Window { file: FILE, opened, closed, refused: 0, ran, cpu, rows });
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::TakeOff(file, groups) => {
                self.off.extend(&groups);
                let (rows, cpu) = (self.rows(), self.cpu());
                self.governor.sampled(BootNs(self.at), file, groups, (&rows, &cpu));
            }
            Change::PutOn(file, groups) => {
                self.off.retain(|it| !groups.contains(it));
                let cpu = self.cpu();
                self.governor.restored(BootNs(self.at), file, &cpu);
            }
        }
    }

    /// Launches that were counted or estimated.
    fn estimated(&mut self, key: &ProcessId) -> u64 {
        let counted = self.programs[key].counted;
        let missed = self.governor.missed(BootNs(self.at), key, &counted);
        counted[0] + missed.map_or(0, |it| it[0])
    }

    fn lost(&self) -> Vec<u64> {
        self.programs.values().map(|it| it.lost_ns).collect()
    }
}

/// Nanoseconds from one launch to the next: from 5 M/s to one a second, and none.
fn programs() -> impl Strategy<Value = Vec<Program>> {
    let program = (0_u32..23, any::<bool>(), 0_u64..2_000, 0_u64..1_000).prop_map(
        |(doublings, paced, copies, waits)| Program::new(200 << doublings, paced, copies, waits),
    );
    prop::collection::vec(program, 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_process_loses_more_than_the_budget(programs in programs(), seed in any::<u64>()) {
        let mut node = Node::new(programs.clone(), seed);
        node.until(3 * SECOND);
        let mut lost = vec![node.lost()];
        for second in 4..30 {
            node.until(second * SECOND);
            lost.push(node.lost());
        }
        for (from, to) in lost.iter().zip(&lost[10..]) {
            for (from, to) in from.iter().zip(to) {
                // A second may end in the middle of a window.
                let most = BUDGET * 10_000 + 4_000_000;
                prop_assert!(to - from <= most, "{} of {most}", to - from);
            }
        }
    }

    #[test]
    fn estimates_are_near_the_truth(programs in programs(), seed in any::<u64>()) {
        let mut node = Node::new(programs, seed);
        node.until(40 * SECOND);
        for (key, program) in node.programs.clone() {
            // Where little is seen of much, chance: five standard deviations of counting.
            let factor = u64::from(node.governor.factor().unwrap_or(0)) / 1_000 + 1;
            let slack = program.launches / 20 + 5 * (program.launches * factor).isqrt() + 200;
            let (truth, found) = (program.launches, node.estimated(&key));
            prop_assert!(found.abs_diff(truth) <= slack, "{found} of {truth}");
        }
    }
}

#[test]
fn a_hot_process_is_seen_within_a_quarter_of_a_second() {
    let mut node = Node::new(vec![Program::new(200, false, 0, 0)], 7);
    node.until(SECOND + SECOND / 4);
    assert!(node.off.contains(&Group::Launches));
}

#[test]
fn what_costs_little_is_never_taken_off() {
    // 40,000 launches a second cost 0.8 %.
    let mut node = Node::new(vec![Program::new(25_000, false, 0, 0)], 7);
    node.until(60 * SECOND);
    assert_eq!(node.off, BTreeSet::new());
    let key = ProcessId { tgid: 1, start_ticks: 0 };
    assert_eq!(node.estimated(&key), node.programs[&key].launches);
}

#[test]
fn hooks_are_on_again_when_it_is_calm() {
    let mut node = Node::new(vec![Program::new(1_000, false, 0, 0)], 7);
    node.until(10 * SECOND);
    assert!(!node.off.is_empty());
    node.programs.values_mut().for_each(|it| it.own_ns = 100_000);
    node.until(20 * SECOND);
    assert!(node.off.is_empty());
}
