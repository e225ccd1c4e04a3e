//! Names of things that arrive from nodes.

use std::fmt;
use std::sync::Arc;

/// A node, as its agent names itself. The same node name may exist in two clusters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey {
    pub cluster: String,
    pub node: String,
}

impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cluster, self.node)
    }
}

/// A MIG instance of a device; where MIG is off, the device is its own only instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId {
    pub gpu_uuid: Arc<str>,
    /// `None` where MIG is off.
    pub mig_uuid: Option<Arc<str>>,
}

/// What kind of workload holds an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HolderKind {
    Pod,
    SlurmStep,
    Container,
    Unit,
    User,
}

/// The workload that holds an instance, and who answers for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    pub kind: HolderKind,
    /// Unique within kind and node.
    pub id: Arc<str>,
    pub labels: TenantLabels,
}

/// Who answers for a holder, as metrics and bills name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantLabels {
    /// Never empty.
    pub tenant: Arc<str>,
    /// The three below are `None` outside Kubernetes, or where the name is not known.
    pub namespace: Option<Arc<str>>,
    pub pod: Option<Arc<str>>,
    pub container: Option<Arc<str>>,
}

/// The random name of an agent's spool database. A new spool is a new sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpoolId(pub [u8; 16]);

/// The random name of this collector's ledger database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LedgerId(pub [u8; 16]);

impl fmt::Display for SpoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Display for LedgerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl HolderKind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::SlurmStep => "slurm_step",
            Self::Container => "container",
            Self::Unit => "unit",
            Self::User => "user",
        }
    }
}
