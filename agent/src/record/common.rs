//! The nouns that records and live updates share: holders, classes, call counts.

use std::sync::Arc;

use proto::telemetry::v1::{self, copy_counts, holder::Kind};

use crate::model::ids::{Holder, HolderKind};
use crate::model::readings::{Counter, CudaCounts};
use crate::model::usage::Class;
use crate::record::{RecordError, unknown};

#[must_use]
pub fn wire_holder(holder: &Holder) -> v1::Holder {
    let kind = match holder.kind {
        HolderKind::Pod => Kind::Pod,
        HolderKind::SlurmStep => Kind::SlurmStep,
        HolderKind::Container => Kind::Container,
        HolderKind::Unit => Kind::Unit,
        HolderKind::User => Kind::User,
    };
    let text = |it: &Option<Arc<str>>| it.as_deref().map(str::to_owned);
    v1::Holder {
        kind: kind.into(),
        id: holder.id.to_string(),
        tenant: holder.tenant.to_string(),
        tenant_namespace: text(&holder.namespace),
        tenant_pod: text(&holder.pod),
        tenant_container: text(&holder.container),
    }
}

pub(super) fn read_holder(holder: Option<v1::Holder>) -> Result<Holder, RecordError> {
    let holder = holder.ok_or(RecordError::Missing("holder"))?;
    let kind = match holder.kind() {
        Kind::Pod => HolderKind::Pod,
        Kind::SlurmStep => HolderKind::SlurmStep,
        Kind::Container => HolderKind::Container,
        Kind::Unit => HolderKind::Unit,
        Kind::User => HolderKind::User,
        Kind::Unspecified => return Err(unknown("holder kind", holder.kind)),
    };
    Ok(Holder {
        kind,
        id: holder.id.into(),
        tenant: holder.tenant.into(),
        namespace: holder.tenant_namespace.map(Into::into),
        pod: holder.tenant_pod.map(Into::into),
        container: holder.tenant_container.map(Into::into),
    })
}

#[must_use]
pub fn wire_class(class: Class) -> v1::Class {
    match class {
        Class::Unknown => v1::Class::Unknown,
        Class::Free => v1::Class::Free,
        Class::HeldNoProcess => v1::Class::HeldNoProcess,
        Class::HeldNoContext => v1::Class::HeldNoContext,
        Class::MemoryHeld => v1::Class::MemoryHeld,
        Class::Stalled => v1::Class::Stalled,
        Class::HostBound => v1::Class::HostBound,
        Class::Active => v1::Class::Active,
        Class::Down => v1::Class::Down,
    }
}

pub(super) fn read_class(time: &v1::ClassTime) -> Result<Class, RecordError> {
    Ok(match time.class() {
        v1::Class::Unknown => Class::Unknown,
        v1::Class::Free => Class::Free,
        v1::Class::HeldNoProcess => Class::HeldNoProcess,
        v1::Class::HeldNoContext => Class::HeldNoContext,
        v1::Class::MemoryHeld => Class::MemoryHeld,
        v1::Class::Stalled => Class::Stalled,
        v1::Class::HostBound => Class::HostBound,
        v1::Class::Active => Class::Active,
        v1::Class::Down => Class::Down,
        v1::Class::Unspecified => return Err(unknown("class", time.class)),
    })
}

#[must_use]
pub fn wire_counts(counts: &CudaCounts) -> v1::CudaCounts {
    let copies = COPIES
        .into_iter()
        .filter(|(_, calls, bytes)| (counts[*calls], counts[*bytes]) != (0, 0))
        .map(|(direction, calls, bytes)| v1::CopyCounts {
            direction: direction.into(),
            calls: counts[calls],
            bytes: counts[bytes],
        });
    v1::CudaCounts {
        launches: counts[Counter::KernelLaunches] + counts[Counter::CooperativeLaunches],
        graph_launches: counts[Counter::GraphLaunches],
        allocations: counts[Counter::DeviceAllocations],
        allocated_bytes: counts[Counter::DeviceAllocatedBytes],
        failed_allocations: counts[Counter::DeviceFailed],
        frees: counts[Counter::DeviceFrees],
        copies: copies.collect(),
        synchronizations: counts[Counter::Synchronizations],
        synchronize_wait_ns: counts[Counter::SynchronizeWaitNs],
    }
}

pub(super) fn read_counts(counts: &v1::CudaCounts) -> Result<CudaCounts, RecordError> {
    let mut read = CudaCounts::default();
    for copy in &counts.copies {
        let (_, calls, bytes) = COPIES
            .into_iter()
            .find(|it| it.0 == copy.direction())
            .ok_or_else(|| unknown("copy direction", copy.direction))?;
        read[calls] = copy.calls;
        read[bytes] = copy.bytes;
    }
    read[Counter::KernelLaunches] = counts.launches;
    read[Counter::GraphLaunches] = counts.graph_launches;
    read[Counter::DeviceAllocations] = counts.allocations;
    read[Counter::DeviceAllocatedBytes] = counts.allocated_bytes;
    read[Counter::DeviceFailed] = counts.failed_allocations;
    read[Counter::DeviceFrees] = counts.frees;
    read[Counter::Synchronizations] = counts.synchronizations;
    read[Counter::SynchronizeWaitNs] = counts.synchronize_wait_ns;
    Ok(read)
}

const COPIES: [(copy_counts::Direction, Counter, Counter); 5] = [
    (copy_counts::Direction::HostToDevice, Counter::HostToDeviceCalls, Counter::HostToDeviceBytes),
    (copy_counts::Direction::DeviceToHost, Counter::DeviceToHostCalls, Counter::DeviceToHostBytes),
    (
        copy_counts::Direction::DeviceToDevice,
        Counter::DeviceToDeviceCalls,
        Counter::DeviceToDeviceBytes,
    ),
    (copy_counts::Direction::Unknown, Counter::UnknownCalls, Counter::UnknownBytes),
    (copy_counts::Direction::Peer, Counter::PeerCalls, Counter::PeerBytes),
];
