//! Names of things: devices, instances, processes, holders.

use std::sync::Arc;

/// A physical GPU, by the UUID that the driver gives it. Never by index: indices move.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub Arc<str>);

/// A MIG instance of a device; where MIG is off, the device is its own only instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId {
    pub device: DeviceId,
    /// `None` where MIG is off.
    pub mig: Option<Arc<str>>,
}

/// One life of a process. A PID alone is reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId {
    pub tgid: u32,
    /// Start time in clock ticks since boot, as `/proc/PID/stat` field 22 gives it.
    pub start_ticks: u64,
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

/// The workload that holds an instance, and who answers for it. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    pub kind: HolderKind,
    /// Unique within kind and node.
    pub id: Arc<str>,
    /// Who answers for it; never empty.
    pub tenant: Arc<str>,
    pub namespace: Option<Arc<str>>,
    pub pod: Option<Arc<str>>,
    pub container: Option<Arc<str>>,
}
