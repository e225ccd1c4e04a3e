//! The nouns that records and live updates share: holders and classes.

use std::sync::Arc;

use proto::telemetry::v1::{self, holder::Kind};

use crate::model::ids::{Holder, HolderKind};
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

pub fn read_holder(holder: Option<v1::Holder>) -> Result<Holder, RecordError> {
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
