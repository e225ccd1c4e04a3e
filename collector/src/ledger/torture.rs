//! Agents that repeat, rewind, reorder and reconnect, and a process that dies before COMMIT: whatever
//! happens, the sums are those of the records, each counted once.

use std::collections::BTreeMap;

use proptest::prelude::{Strategy, prop, proptest};
use proptest::test_runner::Config;
use proto::telemetry::v1::CudaCounter::KernelLaunches as LAUNCHES;
use tempfile::tempdir;

use crate::ledger::fixtures::{
    Bench, End, SECOND, active, batch_of, cuda_of, free, held_idle, hello_of, tile_of,
};
use crate::ledger::{Applied, Hello};
use crate::model::record::{Record, RecordKind, Share};

/// What one agent does next.
#[derive(Clone, Debug)]
enum Step {
    /// Sends `length` records from `back` before what is acknowledged, or from beyond it.
    Send { agent: usize, back: i64, length: usize, crash: bool },
    /// Connects again; what the old stream still sends is fenced.
    Reconnect { agent: usize },
    /// The collector is killed and started again.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let send = (0..AGENTS, -2i64..6, 1usize..9, prop::bool::weighted(0.2));
    prop_oneof_weighted(
        send.prop_map(|(agent, back, length, crash)| Step::Send { agent, back, length, crash }),
        (0..AGENTS).prop_map(|agent| Step::Reconnect { agent }),
    )
}

fn prop_oneof_weighted(
    send: impl Strategy<Value = Step> + 'static,
    reconnect: impl Strategy<Value = Step> + 'static,
) -> impl Strategy<Value = Step> {
    prop::strategy::Union::new_weighted(vec![
        (20, send.boxed()),
        (2, reconnect.boxed()),
        (1, prop::strategy::Just(Step::Restart).boxed()),
    ])
}

const AGENTS: usize = 2;
const RECORDS: usize = 24;

struct Agent {
    name: String,
    epoch: u64,
    acked: u64,
    records: Vec<Record>,
}

impl Agent {
    /// Tiles of two devices that cross an hour, with odd lengths, and some activity in between.
    fn new(name: &str, lengths: &[u64]) -> Self {
        let mut ends = [3_500 * SECOND; 2];
        let records = (0..RECORDS).map(|index| {
            let device = index % 2;
            let length = lengths[index % lengths.len()];
            if index % 7 == 3 {
                return cuda_of(name, "ml", u128::from(length), (0, ends[device]));
            }
            let shares = [
                (active("ml"), length / 3),
                (held_idle("etl"), length / 5),
                (free(), length - length / 3 - length / 5),
            ];
            let gpu = format!("{name}-{device}");
            let tile = tile_of(name, &gpu, ends[device], &shares);
            ends[device] += length;
            tile
        });
        Self { name: name.to_owned(), epoch: 0, acked: 0, records: records.collect() }
    }

    fn connect(&mut self, bench: &mut Bench) {
        let hello = Hello { acked_through: self.acked, ..hello_of(&self.name) };
        let welcome = bench.hello(&hello);
        assert!(welcome.cursor >= self.acked, "what was acknowledged is there");
        self.epoch = welcome.epoch;
    }

    fn send(&mut self, bench: &mut Bench, first: u64, length: usize, end: End) {
        let from = usize::try_from(first - 1).unwrap().min(self.records.len());
        let to = (from + length).min(self.records.len());
        let mut batch = batch_of(&self.name, first, &self.records[from..to]);
        batch.epoch = self.epoch;
        match (bench.batch_until(&batch, end), end) {
            (Applied::Through(through), End::Commit) => {
                assert!(through >= self.acked, "an acknowledgement never goes back");
                self.acked = through;
            }
            (Applied::Resume { next }, _) => assert!(next <= self.acked + 1),
            (Applied::Through(_), End::Crash) => {}
            (other, _) => panic!("{other:?}"),
        }
    }
}

/// The truth, by a few lines that know nothing of hours, accounts or transactions.
fn truth(agents: &[Agent]) -> (BTreeMap<String, u128>, u128, u128) {
    let (mut shares, mut wall, mut launches) = (BTreeMap::<String, u128>::new(), 0, 0);
    for record in agents.iter().flat_map(|it| &it.records) {
        match &record.kind {
            RecordKind::Tile(tile) => {
                wall += u128::from(tile.span());
                for (share, ns) in &tile.shares {
                    let name = match share {
                        Share::Tenant { holder, .. } => holder.labels.tenant.to_string(),
                        Share::Unowned { share, .. } => share.as_str().to_owned(),
                    };
                    *shares.entry(name).or_default() += u128::from(*ns);
                }
            }
            RecordKind::Cuda(activity) => launches += activity.sums[LAUNCHES],
        }
    }
    (shares, wall, launches)
}

fn run(steps: Vec<Step>, lengths: &[u64]) {
    let folder = tempdir().unwrap();
    let mut bench = Bench::open(folder.path());
    let mut agents: Vec<Agent> = ["a", "b"].iter().map(|name| Agent::new(name, lengths)).collect();
    agents.iter_mut().for_each(|it| it.connect(&mut bench));
    for step in steps {
        match step {
            Step::Send { agent, back, length, crash } => {
                let agent = &mut agents[agent];
                let first = (agent.acked.cast_signed() + 1 - back).max(1).cast_unsigned();
                let end = if crash { End::Crash } else { End::Commit };
                agent.send(&mut bench, first, length, end);
            }
            Step::Reconnect { agent } => agents[agent].connect(&mut bench),
            Step::Restart => {
                let shown = bench.totals.clone();
                drop(bench);
                bench = Bench::open(folder.path());
                assert_eq!(bench.totals, shown, "counters go on where they were");
            }
        }
    }
    for agent in &mut agents {
        agent.send(&mut bench, agent.acked + 1, RECORDS, End::Commit);
    }
    verify(&bench, &agents);
}

fn verify(bench: &Bench, agents: &[Agent]) {
    let (shares, wall, launches) = truth(agents);
    let usage = bench.usage();
    assert_eq!(usage.tenants["ml"].active().ns, shares["ml"]);
    assert_eq!(usage.tenants["etl"].held_idle.ns, shares["etl"]);
    let unowned = usage.unowned.iter().map(|((share, _), it)| (share.as_str(), it.ns));
    assert_eq!(unowned.collect::<Vec<_>>(), [("free", shares["free"])]);
    assert_eq!(usage.wall.ns, wall);
    assert_eq!(usage.tenants["ml"].cuda.as_ref().unwrap()[LAUNCHES], launches);
    assert_eq!(bench.totals.tenants.values().sum::<u128>() + shares["free"], wall);
    assert_eq!(bench.totals.unowned.values().sum::<u128>(), shares["free"]);
    assert_eq!(bench.totals.cuda.values().map(|it| it[LAUNCHES]).sum::<u128>(), launches);
    assert_eq!(bench.class_ns(), wall);
    let hour = 3_600 * u128::from(SECOND);
    assert!(bench.hours().iter().all(|(_, _, ns)| *ns <= hour), "an hour is never overfull");
}

proptest! {
    #![proptest_config(Config { cases: 48, ..Config::default() })]
    #[test]
    fn every_record_counts_once(
        steps in prop::collection::vec(step(), 0..60),
        lengths in prop::collection::vec(1u64..20 * SECOND, 1..8),
    ) {
        run(steps, &lengths);
    }
}
