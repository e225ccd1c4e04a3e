//! The nouns that records and live updates share: holders, classes, call counts.

use std::sync::Arc;

use proto::telemetry::v1::{self, copy_counts, holder::Kind};

use crate::model::ids::{Holder, HolderKind};
use crate::model::readings::{CopyCounts, CudaCounts, Direction};
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
    let copies = Direction::ALL
        .into_iter()
        .map(|direction| (direction, counts.copies[direction as usize]))
        .filter(|(_, it)| *it != CopyCounts::default())
        .map(|(direction, it)| v1::CopyCounts {
            direction: wire_direction(direction).into(),
            calls: it.calls,
            bytes: it.bytes,
        });
    v1::CudaCounts {
        launches: counts.launches,
        graph_launches: counts.graph_launches,
        allocations: counts.allocations,
        allocated_bytes: counts.allocated_bytes,
        failed_allocations: counts.failed_allocations,
        frees: counts.frees,
        copies: copies.collect(),
        synchronizations: counts.synchronizations,
        synchronize_wait_ns: counts.synchronize_wait_ns,
    }
}

pub(super) fn read_counts(counts: &v1::CudaCounts) -> Result<CudaCounts, RecordError> {
    let mut copies = [CopyCounts::default(); Direction::ALL.len()];
    for copy in &counts.copies {
        let direction = Direction::ALL
            .into_iter()
            .find(|it| wire_direction(*it) == copy.direction())
            .ok_or_else(|| unknown("copy direction", copy.direction))?;
        copies[direction as usize] = CopyCounts { calls: copy.calls, bytes: copy.bytes };
    }
    Ok(CudaCounts {
        launches: counts.launches,
        graph_launches: counts.graph_launches,
        allocations: counts.allocations,
        allocated_bytes: counts.allocated_bytes,
        failed_allocations: counts.failed_allocations,
        frees: counts.frees,
        copies,
        synchronizations: counts.synchronizations,
        synchronize_wait_ns: counts.synchronize_wait_ns,
    })
}

fn wire_direction(direction: Direction) -> copy_counts::Direction {
    match direction {
        Direction::HostToDevice => copy_counts::Direction::HostToDevice,
        Direction::DeviceToHost => copy_counts::Direction::DeviceToHost,
        Direction::DeviceToDevice => copy_counts::Direction::DeviceToDevice,
        Direction::Unknown => copy_counts::Direction::Unknown,
        Direction::Peer => copy_counts::Direction::Peer,
    }
}
