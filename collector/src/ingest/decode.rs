//! From the wire to the nouns. Pure: form only, bounded, no opinion about what it means.
//!
//! A record whose form is wrong is not lost: it goes to the ledger with the reason for which it is set
//! aside there. A message whose form is wrong ends its stream.

use std::sync::Arc;

use prost::Message as _;
use proto::telemetry::v1 as pb;

use crate::ledger::clock_map::Pair;
use crate::ledger::decide::{MAX_BOOT_NS, Quarantine};
use crate::ledger::{Hello, Sealed};
use crate::model::cuda::CudaSums;
use crate::model::ids::{Holder, HolderKind, InstanceId, LedgerId, NodeKey, SpoolId, TenantLabels};
use crate::model::metering::{Energy, EnergyMethod, EnergySplit, Seen, Slices, SmActivity};
use crate::model::record::{
    CLASSES, CudaActivity, Method, Reason, Record, RecordKind, Share, TenantShare, Tile,
    UnownedShare,
};

/// Bytes of a name that comes from a node: tenant, pod, UUID.
pub const MAX_NAME: usize = 128;
/// Bytes of a holder's id, which holds a pod's uid and a container's id.
const MAX_HOLDER_ID: usize = 256;
/// Shares and remainders of a tile: 64 holders, each with idle, unknown and four methods of active.
const MAX_SHARES: usize = 400;
/// Counters of an activity.
const MAX_COUNTS: usize = 1_024;
/// Devices in a Hello.
const MAX_DEVICES: usize = 256;

/// What is wrong with a message; nothing of it was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {problem}")]
pub struct Malformed {
    pub field: &'static str,
    pub problem: &'static str,
}

const fn malformed(field: &'static str, problem: &'static str) -> Malformed {
    Malformed { field, problem }
}

// === messages ===

/// `cluster` is the one of agents that name none; `utc_ns` is this collector's clock at the arrival.
pub fn hello(hello: pb::Hello, cluster: &str, utc_ns: i64) -> Result<Hello, Malformed> {
    let identity = hello.node.as_ref().ok_or(malformed("node", "missing"))?;
    let node = node(identity, cluster)?;
    let boot_id = exact("node.boot_id", &identity.boot_id)?;
    let spool = hello.spool_id.as_slice().try_into().map(SpoolId);
    let spool = spool.map_err(|_length| malformed("spool_id", "not 16 bytes long"))?;
    let clock = hello.clock.ok_or(malformed("clock", "missing"))?;
    if clock.boot_ns > MAX_BOOT_NS {
        return Err(malformed("clock.boot_ns", "more than 50 years"));
    }
    if hello.device_uuids.len() > MAX_DEVICES {
        return Err(malformed("device_uuids", "longer than 256"));
    }
    Ok(Hello {
        node,
        boot_id,
        spool,
        acked_through: hello.acked_through,
        ledger_seen: hello.ledger_id_seen.as_slice().try_into().ok().map(LedgerId),
        clock: Pair { boot_ns: clock.boot_ns, utc_ns },
        devices: hello.device_uuids.iter().map(|it| name(it, MAX_NAME)).collect(),
    })
}

/// Who speaks. A name that is too long is refused and not cut: two nodes might become one.
pub fn node(identity: &pb::NodeIdentity, cluster: &str) -> Result<NodeKey, Malformed> {
    let cluster = if identity.cluster.is_empty() { cluster } else { &identity.cluster };
    Ok(NodeKey {
        cluster: exact("node.cluster", cluster)?.to_string(),
        node: exact("node.node", &identity.node)?.to_string(),
    })
}

/// Numbers of the live lane that are not numbers are absent. How much one update may hold is
/// `state/bounds.rs`'s business.
#[must_use]
pub fn live(mut update: pb::LiveUpdate) -> pb::LiveUpdate {
    for device in &mut update.devices {
        if let Some(readings) = &mut device.readings {
            ratio(&mut readings.busy_ratio);
            ratio(&mut readings.memory_busy_ratio);
        }
        for instance in &mut device.instances {
            if let Some(evidence) = &mut instance.evidence {
                ratio(&mut evidence.busy_ratio);
            }
            instance.holders.iter_mut().for_each(|it| ratio(&mut it.sm_ratio));
        }
    }
    update
}

fn ratio(value: &mut Option<f64>) {
    *value = value.filter(|it| (0.0..=1.0).contains(it));
}

// === records ===

/// Always a record for the ledger, where need be one that is set aside.
#[must_use]
pub fn sealed(sealed: pb::SealedRecord) -> Sealed {
    let hash: [u8; 32] = blake3::hash(&sealed.payload).into();
    let content =
        if sealed.hash == hash { record(&sealed.payload) } else { Err(Quarantine::HashMismatch) };
    Sealed { payload: sealed.payload, hash, content }
}

fn record(payload: &[u8]) -> Result<Record, Quarantine> {
    let record = pb::Record::decode(payload).map_err(|_not_a_record| Quarantine::Malformed)?;
    let kind = match record.kind.ok_or(Quarantine::Malformed)? {
        pb::record::Kind::Tile(it) => RecordKind::Tile(Box::new(tile(it)?)),
        pb::record::Kind::Cuda(it) => RecordKind::Cuda(Box::new(cuda(it)?)),
    };
    let boot_id = exact("boot_id", &record.boot_id).map_err(|_unusable| Quarantine::Malformed)?;
    Ok(Record { boot_id, node_real_ns: record.node_real_ns, kind })
}

fn tile(tile: pb::Tile) -> Result<Tile, Quarantine> {
    if tile.shares.len() + tile.remainders.len() > MAX_SHARES {
        return Err(Quarantine::TooLarge);
    }
    let energy = energy(&tile)?;
    let owned = tile.shares.into_iter().map(tenant_share);
    let unowned = tile.remainders.into_iter().map(|it| unowned_share(&it));
    Ok(Tile {
        instance: instance(tile.instance)?,
        start_ns: tile.start_ns,
        end_ns: tile.end_ns,
        shares: owned.chain(unowned).collect::<Result<_, _>>()?,
        classes: classes(&tile.classes, |it| it.ns)?,
        energy,
        memory_byte_seconds: tile.memory.map(|it| it.byte_seconds),
        sm: tile.sm.map(|it| SmActivity { active_ns: it.active_ns, measured_ns: it.measured_ns }),
        seen: tile.seen.map(|it| Seen { process_ns: it.process_ns, healthy_ns: it.healthy_ns }),
        slices: tile.slices.map(|it| Slices { instance: it.instance, device: it.device }),
    })
}

/// Parts are there when a method is named, and only then. In the order of the shares.
fn energy(tile: &pb::Tile) -> Result<Option<Energy>, Quarantine> {
    use pb::tile::EnergyMethod as Wire;
    let owned = tile.shares.iter().map(|it| it.energy_mj);
    let shares: Vec<u64> = owned.chain(tile.remainders.iter().map(|it| it.energy_mj)).collect();
    let classes = classes(&tile.classes, |it| it.energy_mj)?;
    let method = match Wire::try_from(tile.energy_method) {
        Ok(Wire::Unspecified) => None,
        Ok(Wire::FloorDynamic) => Some(EnergyMethod::FloorDynamic),
        Ok(Wire::Time) => Some(EnergyMethod::Time),
        Ok(Wire::Slices) => Some(EnergyMethod::Slices),
        Err(_later) => return Err(Quarantine::Malformed),
    };
    let no_parts = shares.iter().chain(&classes).all(|it| *it == 0);
    if (method.is_none() && !no_parts) || (method.is_some() && tile.energy_mj.is_none()) {
        return Err(Quarantine::Malformed);
    }
    let split = method.map(|method| EnergySplit { method, shares, classes });
    Ok(tile.energy_mj.map(|mj| Energy { mj, split }))
}

fn instance(instance: Option<pb::InstanceId>) -> Result<InstanceId, Quarantine> {
    let instance = instance.ok_or(Quarantine::Malformed)?;
    Ok(InstanceId {
        gpu_uuid: uuid(&instance.gpu_uuid)?,
        mig_uuid: instance.mig_uuid.as_deref().map(uuid).transpose()?,
    })
}

fn tenant_share(it: pb::HolderShare) -> Result<(Share, u64), Quarantine> {
    use pb::holder_share::{Kind, Method as Wire};
    let share = match it.kind() {
        Kind::Active => TenantShare::Active,
        Kind::HeldIdle => TenantShare::HeldIdle,
        Kind::HeldUnknown => TenantShare::HeldUnknown,
        Kind::Unspecified => return Err(Quarantine::Malformed),
    };
    let method = match it.method() {
        Wire::Exclusive => Some(Method::Exclusive),
        Wire::Measured => Some(Method::Measured),
        Wire::LaunchWeighted => Some(Method::LaunchWeighted),
        Wire::EqualSplit => Some(Method::EqualSplit),
        Wire::Unspecified => None,
    };
    if (share == TenantShare::Active) != method.is_some() {
        return Err(Quarantine::Malformed);
    }
    Ok((Share::Tenant { holder: holder(it.holder)?, share, method }, it.ns))
}

fn unowned_share(it: &pb::Remainder) -> Result<(Share, u64), Quarantine> {
    use pb::remainder::Kind;
    let (share, reason) = match it.kind() {
        Kind::Free => (UnownedShare::Free, Reason::of_free(&it.reason)),
        Kind::Unattributed => (UnownedShare::Unattributed, Reason::parse(&it.reason)),
        Kind::Unobserved => (UnownedShare::Unobserved, Reason::parse(&it.reason)),
        Kind::Unspecified => return Err(Quarantine::Malformed),
    };
    Ok((Share::Unowned { share, reason }, it.ns))
}

/// In the order of `CLASSES`, which is that of the wire.
fn classes(
    times: &[pb::ClassTime],
    amount: impl Fn(&pb::ClassTime) -> u64,
) -> Result<[u64; CLASSES.len()], Quarantine> {
    let mut classes = [0u64; CLASSES.len()];
    for time in times {
        let index = usize::try_from(time.class).ok().and_then(|it| it.checked_sub(1));
        let sum = index.and_then(|it| classes.get_mut(it)).ok_or(Quarantine::Malformed)?;
        *sum = sum.checked_add(amount(time)).ok_or(Quarantine::Malformed)?;
    }
    Ok(classes)
}

fn holder(holder: Option<pb::Holder>) -> Result<Holder, Quarantine> {
    let holder = holder.ok_or(Quarantine::Malformed)?;
    let kind = match holder.kind() {
        pb::holder::Kind::Pod => HolderKind::Pod,
        pb::holder::Kind::SlurmStep => HolderKind::SlurmStep,
        pb::holder::Kind::Container => HolderKind::Container,
        pb::holder::Kind::Unit => HolderKind::Unit,
        pb::holder::Kind::User => HolderKind::User,
        pb::holder::Kind::Unspecified => return Err(Quarantine::Malformed),
    };
    if holder.id.is_empty() || holder.tenant.is_empty() {
        return Err(Quarantine::Malformed);
    }
    let optional =
        |it: Option<String>| it.filter(|it| !it.is_empty()).map(|it| name(&it, MAX_NAME));
    let labels = TenantLabels {
        tenant: name(&holder.tenant, MAX_NAME),
        namespace: optional(holder.tenant_namespace),
        pod: optional(holder.tenant_pod),
        container: optional(holder.tenant_container),
    };
    Ok(Holder { kind, id: name(&holder.id, MAX_HOLDER_ID), labels })
}

fn cuda(activity: pb::CudaActivity) -> Result<CudaActivity, Quarantine> {
    // An activity that counts nothing was written by a version whose counts have another form.
    let counts = activity.counts.filter(|it| !it.counts.is_empty()).ok_or(Quarantine::Malformed)?;
    if counts.counts.len() > MAX_COUNTS {
        return Err(Quarantine::TooLarge);
    }
    let (mut sums, unknown) = cuda_sums(&counts)?;
    let span = activity.end_ns.saturating_sub(activity.start_ns);
    sums.span_ns = span.into();
    sums.watched_ns = activity.watched_ns.into();
    sums.memory_ns = if activity.memory_known { span.into() } else { 0 };
    Ok(CudaActivity {
        holder: holder(activity.holder)?,
        start_ns: activity.start_ns,
        end_ns: activity.end_ns,
        gpu_uuid: activity.gpu_uuid.as_deref().map(uuid).transpose()?,
        sums,
        unknown,
    })
}

/// And how many of them have a counter of a later version: those that are known are not lost for it.
fn cuda_sums(counts: &pb::CudaCounts) -> Result<(CudaSums, u64), Quarantine> {
    let mut sums = CudaSums::default();
    let mut unknown = 0;
    for count in &counts.counts {
        match pb::CudaCounter::try_from(count.counter) {
            Ok(pb::CudaCounter::Unspecified) => return Err(Quarantine::Malformed),
            Ok(counter) => sums[counter] += u128::from(count.value),
            Err(_no_counter) if count.counter > 0 => unknown += 1,
            Err(_no_counter) => return Err(Quarantine::Malformed),
        }
    }
    Ok((sums, unknown))
}

// === names ===

fn uuid(text: &str) -> Result<Arc<str>, Quarantine> {
    exact("uuid", text).map_err(|_unusable| Quarantine::Malformed)
}

/// A name that identifies: usable as it is, or not at all.
fn exact(field: &'static str, text: &str) -> Result<Arc<str>, Malformed> {
    match text {
        "" => Err(malformed(field, "empty")),
        _ if text.len() > MAX_NAME => Err(malformed(field, "longer than 128 bytes")),
        _ if text.contains(char::is_control) => Err(malformed(field, "not printable")),
        _ => Ok(text.into()),
    }
}

/// A name for people and labels: control characters written out, cut at `most` bytes.
pub(super) fn name(text: &str, most: usize) -> Arc<str> {
    if text.len() <= most && !text.contains(char::is_control) {
        return text.into();
    }
    let mut name = String::with_capacity(most);
    for c in text.chars() {
        let start = name.len();
        if c.is_control() {
            name.extend(c.escape_unicode());
        } else {
            name.push(c);
        }
        if name.len() > most {
            name.truncate(start);
            break;
        }
    }
    name.into()
}
