//! What a node's sealed record says, after every field was checked for form.
//!
//! Whether the record is right (conserves, does not overlap) is `ledger/decide.rs`'s question.

use std::sync::Arc;

use proto::names::UNCONFIGURED;

use crate::model::cuda::CudaSums;
use crate::model::ids::{Holder, InstanceId};
use crate::model::metering::{Energy, Seen, Slices, SmActivity, WHOLE};

/// Names of the classes, in the order in which sums over classes are kept.
pub const CLASSES: [&str; 9] = [
    "unknown",
    "free",
    "held_no_process",
    "held_no_context",
    "memory_held",
    "stalled",
    "host_bound",
    "active",
    "down",
];

/// Index of `unknown` in `CLASSES`.
pub const CLASS_UNKNOWN: usize = 0;

/// One sealed record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub boot_id: Arc<str>,
    /// CLOCK_REALTIME at the end of the record by the node's own clock, in Unix nanoseconds. Dates
    /// only a boot that never met this collector.
    pub node_real_ns: i64,
    pub kind: RecordKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordKind {
    Tile(Box<Tile>),
    Cuda(Box<CudaActivity>),
}

/// An instance's time span `[start_ns, end_ns)` in the boot-time nanoseconds of its record's boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    pub instance: InstanceId,
    pub start_ns: u64,
    pub end_ns: u64,
    pub shares: Vec<(Share, u64)>,
    /// Nanoseconds by class, in the order of `CLASSES`.
    pub classes: [u64; CLASSES.len()],
    /// `None` = not readable at both ends.
    pub energy: Option<Energy>,
    /// Used bytes times seconds; `None` = not readable.
    pub memory_byte_seconds: Option<u64>,
    /// `None` = not measured.
    pub sm: Option<SmActivity>,
    /// `None` = the agent does not say.
    pub seen: Option<Seen>,
    /// Of a MIG instance; `None` = not known.
    pub slices: Option<Slices>,
}

/// One exclusive part of a tile.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Share {
    Tenant { holder: Holder, share: TenantShare, method: Option<Method> },
    Unowned { share: UnownedShare, reason: Reason },
}

/// How a tenant has an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TenantShare {
    Active,
    HeldIdle,
    HeldUnknown,
}

/// How time belongs to nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnownedShare {
    Free,
    Unattributed,
    Unobserved,
}

/// How an active share was found, strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    Exclusive,
    Measured,
    LaunchWeighted,
    EqualSplit,
}

/// Why time belongs to nobody. One of a fixed list, since it becomes a label: a reason that this
/// collector does not know is `other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reason(&'static str);

/// CUDA calls of one holder in a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaActivity {
    pub holder: Holder,
    pub start_ns: u64,
    pub end_ns: u64,
    /// `None` where the device is not known.
    pub gpu_uuid: Option<Arc<str>>,
    pub sums: CudaSums,
    /// How many counters of it this collector does not know. They are in no sum; the raw record has
    /// them.
    pub unknown: u64,
}

// === impl Tile ===

impl Tile {
    #[must_use]
    pub fn span(&self) -> u64 {
        self.end_ns.saturating_sub(self.start_ns)
    }

    /// The part of a device that the instance is, of `WHOLE`; `None` = not known.
    #[must_use]
    pub fn weight(&self) -> Option<u64> {
        match self.instance.mig_uuid {
            None => Some(WHOLE),
            Some(_) => self.slices.and_then(Slices::weight),
        }
    }
}

// === impl Reason ===

impl Reason {
    /// Free time needs no reason where it is an instance's.
    pub const NONE: Self = Self("");
    /// Between two tiles of one boot, where the node sent nothing.
    pub const MISSING: Self = Self("missing");
    /// Between the last tile of a boot and the first of the next.
    pub const NODE_REBOOT: Self = Self("node_reboot");
    const OTHER: Self = Self("other");
    /// Of free slices that no MIG instance has.
    const UNCONFIGURED: Self = Self(UNCONFIGURED);

    const KNOWN: [Self; 14] = [
        Self::NONE,
        Self::UNCONFIGURED,
        Self::MISSING,
        Self::NODE_REBOOT,
        Self::OTHER,
        Self("agent_down"),
        Self("nvml_failed"),
        Self("gpu_lost"),
        Self("gpu_hung"),
        Self("reset_required"),
        Self("released"),
        Self("no_process_list"),
        Self("no_holder"),
        Self("unresolved_process"),
    ];

    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self::KNOWN.into_iter().find(|it| it.0 == text).unwrap_or(Self::OTHER)
    }

    /// Of free time, which has no other reason.
    #[must_use]
    pub fn of_free(text: &str) -> Self {
        if text == UNCONFIGURED { Self::UNCONFIGURED } else { Self::NONE }
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

// === names ===

impl TenantShare {
    pub const ALL: [Self; 3] = [Self::Active, Self::HeldIdle, Self::HeldUnknown];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::HeldIdle => "held_idle",
            Self::HeldUnknown => "held_unknown",
        }
    }
}

impl UnownedShare {
    pub const ALL: [Self; 3] = [Self::Free, Self::Unattributed, Self::Unobserved];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Unattributed => "unattributed",
            Self::Unobserved => "unobserved",
        }
    }
}

impl Method {
    pub const ALL: [Self; 4] =
        [Self::Exclusive, Self::Measured, Self::LaunchWeighted, Self::EqualSplit];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Measured => "measured",
            Self::LaunchWeighted => "launch_weighted",
            Self::EqualSplit => "equal_split",
        }
    }
}
