//! The pure middle in one piece: readings in; records for the ledger and a view for the live lane out.
//!
//! Owns what must be remembered between two ticks. No I/O, no clock: `run.rs` brings the readings
//! and takes away the results.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::accounting::cuda::CudaMeter;
use crate::accounting::tiles::OpenTiles;
use crate::accounting::{Meter, Observation};
use crate::attribution;
use crate::classify::{self, ClassHistory, Policy};
use crate::model::ids::InstanceId;
use crate::model::readings::{DeviceReading, InstanceReading, Readings};
use crate::model::units::BootNs;
use crate::model::usage::{CudaBaseline, Record};
use crate::totals::Totals;

#[derive(Debug)]
pub struct Pipeline {
    policy: Policy,
    tile: Duration,
    previous: Option<Observation>,
    since: BTreeMap<InstanceId, BootNs>,
    /// Where the previous run of the agent stopped in this boot, for instances that were not seen
    /// since.
    known: BTreeMap<InstanceId, BootNs>,
    history: ClassHistory,
    meter: Meter,
    open: OpenTiles,
    cuda: CudaMeter,
    totals: Totals,
}

impl Pipeline {
    #[must_use]
    pub fn new(
        policy: Policy,
        tile: Duration,
        known: BTreeMap<InstanceId, BootNs>,
        baseline: Option<CudaBaseline>,
    ) -> Self {
        Self {
            policy,
            tile,
            previous: None,
            since: BTreeMap::new(),
            known,
            history: ClassHistory::default(),
            meter: Meter::default(),
            open: OpenTiles::default(),
            cuda: CudaMeter::after(baseline),
            totals: Totals::default(),
        }
    }

    /// Takes in the readings of one tick. Gives tiles and CUDA activity whose span has ended.
    pub fn step(&mut self, readings: Readings) -> Vec<Record> {
        let at = readings.at;
        let next = self.observe(readings);
        self.remember_classes(&next);
        let previous = self.previous.take();
        for tile in previous.iter().flat_map(|it| self.meter.slice(it, &next)) {
            self.totals.add_tile(&tile);
            self.open.add(tile);
        }
        let before = previous.as_ref().map(|it| &it.readings);
        self.meter.learn(before, &next.readings);
        self.close_gaps(&next.readings);
        self.cuda.advance(before, &next.readings);
        self.previous = Some(next);
        self.close_due(at)
    }

    /// The time since the previous run was watched by nobody. A position is used once: a device that
    /// was cut otherwise meanwhile, or is later, starts anew.
    fn close_gaps(&mut self, next: &Readings) {
        let known = &mut self.known;
        let gaps = self.meter.gaps(next, |id| known.remove(id).filter(|end| *end < next.at));
        for gap in gaps {
            self.totals.add_tile(&gap);
            self.open.add(gap);
        }
        self.known.retain(|id, _| !next.nvml.devices.contains_key(&id.device));
    }

    /// Ends every open span, for a stop of the agent.
    pub fn finish(&mut self, at: BootNs) -> Vec<Record> {
        let mut records: Vec<Record> =
            self.open.close_all().into_iter().map(|it| Record::Tile(Box::new(it))).collect();
        records.extend(self.close_cuda(at));
        records
    }

    /// What of the kernel's counts the records so far account for: to be stored with the newest.
    pub fn take_baseline(&mut self) -> Option<CudaBaseline> {
        self.cuda.take_baseline()
    }

    #[must_use]
    pub fn observation(&self) -> Option<&Observation> {
        self.previous.as_ref()
    }

    #[must_use]
    pub fn since(&self) -> &BTreeMap<InstanceId, BootNs> {
        &self.since
    }

    /// Totals so far, with what the open spans have counted.
    #[must_use]
    pub fn totals(&self, at: BootNs) -> Totals {
        let mut totals = self.totals.clone();
        for activity in self.cuda.open(at) {
            totals.add_cuda(&activity);
        }
        totals
    }

    fn observe(&self, readings: Readings) -> Observation {
        let before = self.previous.as_ref().map(|it| &it.readings);
        let views = attribution::attribute(before, &readings);
        let verdicts = instances(&readings)
            .filter_map(|(device, instance)| {
                let view = views.get(&instance.id)?;
                let verdict = classify::classify(&self.policy, readings.at, device, instance, view);
                Some((instance.id.clone(), verdict))
            })
            .collect();
        Observation { readings, views, verdicts }
    }

    fn remember_classes(&mut self, next: &Observation) {
        self.since.clear();
        for (id, verdict) in &next.verdicts {
            let since = self.history.record(id, verdict.class, next.readings.at);
            self.since.insert(id.clone(), since);
        }
        self.history.retain(&next.verdicts.keys().collect());
    }

    fn close_due(&mut self, at: BootNs) -> Vec<Record> {
        let mut records: Vec<Record> = self
            .open
            .close(at, self.tile)
            .into_iter()
            .map(|it| Record::Tile(Box::new(it)))
            .collect();
        if !records.is_empty() || self.cuda.is_due(at, self.tile) {
            records.extend(self.close_cuda(at));
        }
        records
    }

    fn close_cuda(&mut self, at: BootNs) -> Vec<Record> {
        let closed = self.cuda.close(at);
        for activity in &closed {
            self.totals.add_cuda(activity);
        }
        closed.into_iter().map(|it| Record::Cuda(Box::new(it))).collect()
    }
}

/// Every instance with its device.
fn instances(readings: &Readings) -> impl Iterator<Item = (&DeviceReading, &InstanceReading)> {
    let devices = readings.nvml.devices.values();
    devices.flat_map(|device| device.instances.iter().map(move |instance| (device, instance)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::Pipeline;
    use crate::attribution::fixtures;
    use crate::classify::Policy;
    use crate::config::Allocations;
    use crate::model::ids::InstanceId;
    use crate::model::metering::Slices;
    use crate::model::readings::Readings;
    use crate::model::units::BootNs;
    use crate::model::usage::{Class, Reason, Record, Share, Tile};

    const SECOND: u64 = 1_000_000_000;

    fn pipeline() -> Pipeline {
        started_again([].into())
    }

    fn started_again(known: BTreeMap<InstanceId, BootNs>) -> Pipeline {
        Pipeline::new(Policy::new(Allocations::None), Duration::from_secs(10), known, None)
    }

    /// One device, on which a process works in the seconds from 3 to 12.
    fn second(at: u64) -> Readings {
        let mut readings = fixtures::readings(at * SECOND, 1);
        if (3..12).contains(&at) {
            fixtures::hold(&mut readings, 0, 10, Some(1 << 30));
            fixtures::busy(&mut readings, 0, 30);
        }
        if (3..=12).contains(&at) {
            fixtures::trace(&mut readings, 10, at * 100);
        }
        readings
    }

    fn run(pipeline: &mut Pipeline) -> Vec<Record> {
        let mut records: Vec<Record> = (0..30).flat_map(|at| pipeline.step(second(at))).collect();
        records.extend(pipeline.finish(BootNs(29 * SECOND)));
        records
    }

    fn tiles(records: &[Record]) -> Vec<&Tile> {
        records
            .iter()
            .filter_map(|it| match it {
                Record::Tile(tile) => Some(tile.as_ref()),
                Record::Cuda(_) => None,
            })
            .collect()
    }

    #[test]
    fn tiles_cover_the_whole_time_without_a_hole() {
        let records = run(&mut pipeline());
        let tiles = tiles(&records);
        assert!(tiles.iter().all(|it| it.conserves()));
        assert!(tiles.windows(2).all(|pair| pair[0].end == pair[1].start));
        let (first, last) = (tiles[0].start, tiles[tiles.len() - 1].end);
        assert_eq!((first, last), (BootNs(0), BootNs(29 * SECOND)));
    }

    #[test]
    fn every_launch_is_in_exactly_one_record() {
        let mut pipeline = pipeline();
        let records = run(&mut pipeline);
        let launches: u64 = records
            .iter()
            .filter_map(|it| match it {
                Record::Cuda(activity) => Some(activity.counts.launches()),
                Record::Tile(_) => None,
            })
            .sum();
        assert_eq!(launches, 1_200);
        let totals = pipeline.totals(BootNs(29 * SECOND));
        assert_eq!(totals.devices[&fixtures::device(0)].counts.launches(), 1_200);
        let tenants = totals.tenants.values().filter_map(|it| it.cuda);
        assert_eq!(tenants.map(|it| it.counts.launches()).sum::<u64>(), 1_200);
    }

    #[test]
    fn the_time_between_two_runs_was_watched_by_nobody_once() {
        let mut pipeline = started_again([(fixtures::id(0), BootNs(0))].into());
        let mut records = pipeline.step(second(20));
        let mut away = second(21);
        away.nvml.devices.clear();
        records.extend(pipeline.step(away));
        records.extend((22..24).flat_map(|at| pipeline.step(second(at))));
        records.extend(pipeline.finish(BootNs(23 * SECOND)));
        let down = Share::Unobserved(Reason::AgentDown);
        let unwatched: u64 = tiles(&records).iter().filter_map(|it| it.shares.get(&down)).sum();
        assert_eq!(unwatched, 20 * SECOND);
        assert_eq!(tiles(&records)[0].start, BootNs(0));
    }

    #[test]
    fn a_gap_is_as_large_as_its_instance() {
        let part = |name: &str| InstanceId { mig: Some(name.into()), ..fixtures::id(0) };
        let parts = [part("MIG-0"), part("unconfigured")];
        let mut pipeline = started_again(parts.clone().map(|it| (it, BootNs(0))).into());
        let mut reading = second(20);
        fixtures::cut(&mut reading, 0, &["3g.40gb"]);
        let mut records = pipeline.step(reading);
        records.extend(pipeline.finish(BootNs(20 * SECOND)));
        let gaps = tiles(&records).into_iter().map(|it| (it.id.clone(), it.span(), it.slices));
        let size = |instance| Some(Slices { instance, device: 7 });
        let [first, rest] = parts;
        let expected = [(first, 20 * SECOND, size(3)), (rest, 20 * SECOND, size(4))];
        assert_eq!(gaps.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_view_follows_the_evidence() {
        let mut pipeline = pipeline();
        let mut classes = Vec::new();
        for at in [2, 3, 12, 13] {
            pipeline.step(second(at));
            let seen = pipeline.observation().unwrap();
            classes.push((
                seen.verdicts[&fixtures::id(0)].class,
                pipeline.since()[&fixtures::id(0)].0,
            ));
        }
        let expected = [(Class::Free, 2), (Class::Active, 3), (Class::Free, 12), (Class::Free, 12)];
        assert_eq!(classes, expected.map(|(class, since)| (class, since * SECOND)));
    }
}
