//! Tiles on the wire.

use std::collections::BTreeMap;

use proto::names::UNCONFIGURED;
use proto::telemetry::v1::{self, holder_share, remainder, tile::EnergyMethod as WireEnergyMethod};

use crate::model::ids::{DeviceId, Holder, InstanceId};
use crate::model::metering::{Energy, EnergyMethod, Seen, Slices, SmActivity};
use crate::model::units::BootNs;
use crate::model::usage::{Class, MemoryIntegral, Method, Reason, Share, Tile};
use crate::record::common::{read_class, read_holder, wire_class, wire_holder};
use crate::record::{RecordError, unknown};

/// Nanoseconds in the wire's unit of time for memory.
const SECOND_NS: u128 = 1_000_000_000;

pub(super) fn wire_tile(tile: &Tile) -> v1::Tile {
    let energy = tile.energy.as_ref();
    let mut shares = Vec::new();
    let mut remainders = Vec::new();
    for (share, nanoseconds) in &tile.shares {
        let mj = energy.and_then(|it| it.shares.get(share)).copied().unwrap_or(0);
        match wire_share(share, *nanoseconds, mj) {
            Ok(share) => shares.push(share),
            Err(remainder) => remainders.push(remainder),
        }
    }
    let class = |(class, ns): (&Class, &u64)| v1::ClassTime {
        class: wire_class(*class).into(),
        ns: *ns,
        energy_mj: energy.and_then(|it| it.classes.get(class)).copied().unwrap_or(0),
    };
    v1::Tile {
        instance: Some(v1::InstanceId {
            gpu_uuid: tile.id.device.0.to_string(),
            mig_uuid: tile.id.mig.as_deref().map(str::to_owned),
        }),
        start_ns: tile.start.0,
        end_ns: tile.end.0,
        shares,
        remainders,
        classes: tile.classes.iter().map(class).collect(),
        energy_mj: energy.map(|it| it.mj),
        memory: tile.memory.map(|it| v1::MemoryIntegral {
            byte_seconds: u64::try_from(it.byte_ns / SECOND_NS).unwrap_or(u64::MAX),
            peak_bytes: it.peak_bytes,
        }),
        energy_method: wire_energy_method(energy.and_then(|it| it.method)).into(),
        sm: Some(tile.sm)
            .filter(|it| it.measured_ns > 0)
            .map(|it| v1::SmActivity { active_ns: it.active_ns, measured_ns: it.measured_ns }),
        seen: tile.seen.map(|it| v1::Seen { process_ns: it.process_ns, healthy_ns: it.healthy_ns }),
        slices: tile.slices.map(|it| v1::Slices { instance: it.instance, device: it.device }),
    }
}

fn wire_energy_method(method: Option<EnergyMethod>) -> WireEnergyMethod {
    match method {
        None => WireEnergyMethod::Unspecified,
        Some(EnergyMethod::FloorDynamic) => WireEnergyMethod::FloorDynamic,
        Some(EnergyMethod::Time) => WireEnergyMethod::Time,
        Some(EnergyMethod::Slices) => WireEnergyMethod::Slices,
    }
}

/// Somebody's share, or else nobody's.
fn wire_share(share: &Share, ns: u64, energy_mj: u64) -> Result<v1::HolderShare, v1::Remainder> {
    use holder_share::{Kind, Method as WireMethod};
    use remainder::Kind as Rest;
    let held = |holder: &Holder, kind: Kind, method: WireMethod| v1::HolderShare {
        holder: Some(wire_holder(holder)),
        kind: kind.into(),
        method: method.into(),
        ns,
        energy_mj,
    };
    let rest = |kind: Rest, reason: &str| v1::Remainder {
        kind: kind.into(),
        reason: reason.to_owned(),
        ns,
        energy_mj,
    };
    match share {
        Share::Active(holder, method) => Ok(held(holder, Kind::Active, wire_method(*method))),
        Share::HeldIdle(holder) => Ok(held(holder, Kind::HeldIdle, WireMethod::Unspecified)),
        Share::HeldUnknown(holder) => Ok(held(holder, Kind::HeldUnknown, WireMethod::Unspecified)),
        Share::Free => Err(rest(Rest::Free, "")),
        Share::Unconfigured => Err(rest(Rest::Free, UNCONFIGURED)),
        Share::Unattributed(reason) => Err(rest(Rest::Unattributed, reason.as_str())),
        Share::Unobserved(reason) => Err(rest(Rest::Unobserved, reason.as_str())),
    }
}

fn wire_method(method: Method) -> holder_share::Method {
    match method {
        Method::Exclusive => holder_share::Method::Exclusive,
        Method::Measured => holder_share::Method::Measured,
        Method::LaunchWeighted => holder_share::Method::LaunchWeighted,
        Method::EqualSplit => holder_share::Method::EqualSplit,
    }
}

pub(super) fn read_tile(tile: v1::Tile) -> Result<Tile, RecordError> {
    let id = tile.instance.ok_or(RecordError::Missing("instance"))?;
    let method = read_energy_method(tile.energy_method)?;
    let (mut shares, mut share_mj) = (BTreeMap::new(), BTreeMap::new());
    for it in tile.shares {
        let (ns, mj) = (it.ns, it.energy_mj);
        let share = read_share(it)?;
        add(&mut share_mj, share.clone(), mj);
        add(&mut shares, share, ns);
    }
    for it in tile.remainders {
        let share = read_remainder(&it)?;
        add(&mut share_mj, share.clone(), it.energy_mj);
        add(&mut shares, share, it.ns);
    }
    let (mut classes, mut class_mj) = (BTreeMap::new(), BTreeMap::new());
    for it in &tile.classes {
        let class = read_class(it)?;
        add(&mut class_mj, class, it.energy_mj);
        add(&mut classes, class, it.ns);
    }
    share_mj.retain(|_, it| *it > 0);
    class_mj.retain(|_, it| *it > 0);
    let energy = |mj| Energy { mj, method, shares: share_mj, classes: class_mj };
    Ok(Tile {
        id: InstanceId { device: DeviceId(id.gpu_uuid.into()), mig: id.mig_uuid.map(Into::into) },
        start: BootNs(tile.start_ns),
        end: BootNs(tile.end_ns),
        shares,
        classes,
        energy: tile.energy_mj.map(energy),
        memory: tile.memory.map(|it| MemoryIntegral {
            byte_ns: u128::from(it.byte_seconds) * SECOND_NS,
            peak_bytes: it.peak_bytes,
        }),
        sm: tile.sm.map_or_else(SmActivity::default, |it| SmActivity {
            active_ns: it.active_ns,
            measured_ns: it.measured_ns,
        }),
        seen: tile.seen.map(|it| Seen { process_ns: it.process_ns, healthy_ns: it.healthy_ns }),
        slices: tile.slices.map(|it| Slices { instance: it.instance, device: it.device }),
    })
}

fn add<K: Ord>(sums: &mut BTreeMap<K, u64>, key: K, part: u64) {
    let sum = sums.entry(key).or_default();
    *sum = sum.saturating_add(part);
}

fn read_energy_method(method: i32) -> Result<Option<EnergyMethod>, RecordError> {
    match WireEnergyMethod::try_from(method) {
        Ok(WireEnergyMethod::Unspecified) => Ok(None),
        Ok(WireEnergyMethod::FloorDynamic) => Ok(Some(EnergyMethod::FloorDynamic)),
        Ok(WireEnergyMethod::Time) => Ok(Some(EnergyMethod::Time)),
        Ok(WireEnergyMethod::Slices) => Ok(Some(EnergyMethod::Slices)),
        Err(_later) => Err(unknown("energy method", method)),
    }
}

fn read_share(share: v1::HolderShare) -> Result<Share, RecordError> {
    let (kind, method) = (share.kind(), share.method());
    let holder = read_holder(share.holder)?;
    let method = match method {
        holder_share::Method::Exclusive => Some(Method::Exclusive),
        holder_share::Method::Measured => Some(Method::Measured),
        holder_share::Method::LaunchWeighted => Some(Method::LaunchWeighted),
        holder_share::Method::EqualSplit => Some(Method::EqualSplit),
        holder_share::Method::Unspecified => None,
    };
    match kind {
        holder_share::Kind::Active => {
            Ok(Share::Active(holder, method.ok_or(RecordError::Missing("method"))?))
        }
        holder_share::Kind::HeldIdle => Ok(Share::HeldIdle(holder)),
        holder_share::Kind::HeldUnknown => Ok(Share::HeldUnknown(holder)),
        holder_share::Kind::Unspecified => Err(unknown("share kind", share.kind)),
    }
}

fn read_remainder(remainder: &v1::Remainder) -> Result<Share, RecordError> {
    match remainder.kind() {
        remainder::Kind::Free if remainder.reason == UNCONFIGURED => Ok(Share::Unconfigured),
        remainder::Kind::Free => Ok(Share::Free),
        remainder::Kind::Unattributed => Ok(Share::Unattributed(read_reason(&remainder.reason)?)),
        remainder::Kind::Unobserved => Ok(Share::Unobserved(read_reason(&remainder.reason)?)),
        remainder::Kind::Unspecified => Err(unknown("remainder kind", remainder.kind)),
    }
}

fn read_reason(text: &str) -> Result<Reason, RecordError> {
    const REASONS: [Reason; 9] = [
        Reason::AgentDown,
        Reason::NvmlFailed,
        Reason::GpuLost,
        Reason::GpuHung,
        Reason::ResetRequired,
        Reason::Released,
        Reason::NoProcessList,
        Reason::NoHolder,
        Reason::UnresolvedProcess,
    ];
    REASONS.into_iter().find(|it| it.as_str() == text).ok_or_else(|| unknown("reason", text))
}
