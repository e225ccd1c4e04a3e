//! Merging changes no sum, in memory and in the database.

use std::collections::BTreeMap;

use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

use super::{MIB, SECOND, WIDE, cuda, decoded, place, stamp, stamped, tile};
use crate::accounting::tiles::LONGEST_NS;
use crate::attribution::fixtures;
use crate::model::ids::InstanceId;
use crate::model::metering::{Energy, EnergyMethod, Seen, SmActivity};
use crate::model::units::BootNs;
use crate::model::usage::{Class, MemoryIntegral, Record, Share, Tile};
use crate::record::Stamp;
use crate::spool::coalesce::{Depth, coalesce};
use crate::spool::pending::{Measured, Pending};
use crate::spool::store::Store;

/// Everything that a set of records says, without when exactly.
#[derive(Debug, Default, PartialEq)]
struct Sums {
    shares: BTreeMap<(InstanceId, Share), u64>,
    classes: BTreeMap<(InstanceId, Class), u64>,
    energy_mj: u64,
    energy: BTreeMap<(InstanceId, Share, EnergyMethod), u64>,
    class_energy: BTreeMap<(InstanceId, Class), u64>,
    sm: SmActivity,
    seen: Seen,
    byte_ns: u128,
    peak_bytes: u64,
    launches: u64,
}

impl Sums {
    fn add_energy(&mut self, tile: &Tile) {
        let Some(energy) = &tile.energy else { return };
        self.energy_mj += energy.mj;
        let Some(method) = energy.method else { return };
        for (share, mj) in &energy.shares {
            *self.energy.entry((tile.id.clone(), share.clone(), method)).or_default() += mj;
        }
        for (class, mj) in &energy.classes {
            *self.class_energy.entry((tile.id.clone(), *class)).or_default() += mj;
        }
    }
}

fn sums<'a>(records: impl IntoIterator<Item = &'a Record>) -> Sums {
    let mut sums = Sums::default();
    for record in records {
        match record {
            Record::Tile(tile) => {
                for (share, ns) in &tile.shares {
                    *sums.shares.entry((tile.id.clone(), share.clone())).or_default() += ns;
                }
                for (class, ns) in &tile.classes {
                    *sums.classes.entry((tile.id.clone(), *class)).or_default() += ns;
                }
                sums.add_energy(tile);
                sums.sm = sums.sm.plus(tile.sm);
                sums.seen = sums.seen.plus(tile.seen.unwrap_or_default());
                sums.byte_ns += tile.memory.map_or(0, |it| it.byte_ns);
                sums.peak_bytes = sums.peak_bytes.max(tile.memory.map_or(0, |it| it.peak_bytes));
            }
            Record::Cuda(activity) => sums.launches += activity.counts.launches(),
        }
    }
    sums
}

/// How a tile continues its instance.
#[derive(Clone, Debug)]
struct Next {
    device: u32,
    span: u64,
    gap: bool,
    holder: u32,
    energy: Option<(u64, Option<EnergyMethod>)>,
    memory: Option<u64>,
    /// A newer agent wrote it.
    says_more: bool,
    boot: bool,
}

fn next() -> impl Strategy<Value = Next> {
    let method = prop::sample::select(vec![
        None,
        Some(EnergyMethod::Time),
        Some(EnergyMethod::FloorDynamic),
        Some(EnergyMethod::FloorDynamic),
    ]);
    (
        0..2_u32,
        1..LONGEST_NS / 2,
        prop::bool::weighted(0.1),
        0..3_u32,
        prop::option::weighted(0.8, (0..9_u64, method)),
        prop::option::weighted(0.8, 0..9_u64),
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.05),
    )
        .prop_map(|(device, span, gap, holder, energy, memory, says_more, boot)| Next {
            device,
            span,
            gap,
            holder,
            energy,
            memory,
            says_more,
            boot,
        })
}

fn records(steps: &[Next]) -> Vec<(i64, Record, Stamp)> {
    let mut ends = [0_u64; 2];
    let mut boot = 0;
    let mut records = Vec::new();
    for (id, step) in (0_i64..).zip(steps) {
        let end = &mut ends[step.device as usize];
        let start = *end + u64::from(step.gap);
        *end = start + step.span;
        boot += u32::from(step.boot);
        let held = step.span / 3;
        let holder = Share::HeldIdle(fixtures::holder(&format!("unit-{}", step.holder)));
        let shares = BTreeMap::from([(holder.clone(), held), (Share::Free, step.span - held)]);
        let classes = BTreeMap::from([(Class::MemoryHeld, step.span)]);
        let energy = |(mj, method)| Energy {
            mj,
            method,
            shares: BTreeMap::from([(holder, mj / 2), (Share::Free, mj - mj / 2)]),
            classes: BTreeMap::from([(Class::MemoryHeld, mj)]),
        };
        let memory = |it| MemoryIntegral { byte_ns: u128::from(it), peak_bytes: it };
        let seen = Seen { process_ns: held, healthy_ns: step.span };
        let measured_ns = if step.says_more { step.span } else { 0 };
        let tile = Tile {
            id: fixtures::id(step.device),
            energy: step.energy.map(energy),
            memory: step.memory.map(memory),
            sm: SmActivity { active_ns: measured_ns / 2, measured_ns },
            seen: step.says_more.then_some(seen),
            ..fixtures::tile((start, *end), shares, classes)
        };
        let stamp = Stamp { boot_id: boot.to_string().into(), real_ns: id };
        records.push((id, Record::Tile(Box::new(tile)), stamp.clone()));
        records.push((id + 1_000, cuda(u64::try_from(id).unwrap()), stamp));
    }
    records
}

proptest! {
    #[test]
    fn no_sum_changes(steps in prop::collection::vec(next(), 0..40), any_holders in any::<bool>()) {
        let depth = if any_holders { Depth::AnyHolders } else { Depth::SameHolders };
        let before = records(&steps);
        let after = coalesce(before.clone(), depth);
        prop_assert_eq!(
            sums(after.iter().map(|it| &it.record)),
            sums(before.iter().map(|(_, it, _)| it))
        );
        let parts = after.len() + after.iter().map(|it| it.absorbed.len()).sum::<usize>();
        prop_assert_eq!(parts, before.len());
        let mut ends: BTreeMap<InstanceId, BootNs> = BTreeMap::new();
        for merged in &after {
            let Record::Tile(tile) = &merged.record else { continue };
            prop_assert!(tile.conserves() && tile.span() <= LONGEST_NS);
            let end = ends.insert(tile.id.clone(), tile.end);
            prop_assert!(end.is_none_or(|it| it <= tile.start), "the order of time is kept");
        }
    }
}

#[test]
fn a_database_near_its_cap_merges_what_was_not_sent() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(&place(folder.path(), MIB)).unwrap();
    let hours = 48;
    for hour in 0..hours {
        let tens = hour * 360..(hour + 1) * 360;
        let records = tens.flat_map(|index| [tile(0, index), cuda(index * 10)]);
        store.append(&stamped(records), None).unwrap();
    }
    assert!(store.used_bytes().unwrap() < MIB);
    let mut found = Vec::new();
    while let Some(batch) = store.next_batch(store.meta.sealed_through + 1, WIDE).unwrap() {
        found.extend(decoded(&batch));
    }
    let expected: Vec<Record> =
        (0..hours * 360).flat_map(|index| [tile(0, index), cuda(index * 10)]).collect();
    assert_eq!(sums(&found), sums(&expected));
    let mut end = BootNs(0);
    for record in &found {
        let Record::Tile(tile) = record else { continue };
        assert_eq!(tile.start, end);
        end = tile.end;
    }
    assert_eq!(end, BootNs(hours * 3_600 * SECOND));
}

#[test]
fn what_waits_in_memory_is_merged_and_at_last_counted_as_lost() {
    let mut pending = Pending::default();
    let day = 8_640;
    (0..day).for_each(|index| pending.push(stamped([tile(0, index), tile(1, index)]), None));
    assert!(pending.len() < 1_200, "{} records wait", pending.len());
    assert_eq!(pending.lost, 0);
    let kept: Vec<Record> = pending.take().records.into_iter().map(|it| it.0).collect();
    let all: Vec<Record> = (0..day).flat_map(|index| [tile(0, index), tile(1, index)]).collect();
    assert_eq!(sums(&kept), sums(&all));

    // Gaps keep them apart: nothing can be merged.
    let apart = |index: u64| tile(0, 2 * index);
    (0..20_000).for_each(|index| pending.push([(apart(index), stamp())], None));
    assert_eq!(pending.len() as u64 + pending.lost, 20_000);
    assert!(pending.len() <= 17_408);
    let lost = pending.lost;
    assert_eq!(pending.take().records.first().unwrap().0, apart(lost), "the oldest are lost");
}

#[test]
fn what_could_not_be_written_keeps_its_place() {
    let mut pending = Pending::default();
    pending.push(stamped([tile(0, 2)]), None);
    let records = stamped([tile(0, 0), tile(0, 1)]);
    pending.put_back(Measured { records, baseline: None });
    let order: Vec<Record> = pending.take().records.into_iter().map(|it| it.0).collect();
    assert_eq!(order, [tile(0, 0), tile(0, 1), tile(0, 2)]);
}
