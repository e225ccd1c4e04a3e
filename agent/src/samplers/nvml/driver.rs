//! Every call into NVML, and nothing else: no thread, no judgement.
//!
//! Each call here can block for as long as the driver likes, so only the threads of `workers.rs` and
//! `lister.rs` make them.
//! Raw symbols are used where the wrapper has no method. What is asked of processes, figures, profiling
//! counters and events is in the drivers of their own folders.
#![expect(unsafe_code, reason = "the wrapper has no method for these")]

use std::collections::BTreeMap;
use std::ffi::c_uint;
use std::path::Path;
use std::sync::Arc;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings as sys;

use crate::clock;
use crate::model::ids::DeviceId;
use crate::model::readings::{Identity, MigIdentity};
use crate::samplers::nvml::answers::{
    Answers, Call, Memory, MigDevice, Refusal, Report, Sample, Utilization,
};
use crate::samplers::nvml::decode;
use crate::samplers::nvml::figures::Raw;
use crate::samplers::nvml::figures::driver::{Fields, QUESTIONS};
use crate::samplers::nvml::gpm::driver::Samples;
use crate::samplers::nvml::probe::{Facts, Plan};
use crate::samplers::nvml::processes::driver::{
    compute_processes, graphics_processes, mps_processes, newer_samples, older_samples,
};
use crate::samplers::nvml::release::Hold;
use crate::samplers::nvml::workers::Visit;
use crate::samplers::process::driver::in_initial_pid_namespace;

/// Devices that are read; more than that are counted as unlisted.
pub(crate) const MAX_DEVICES: usize = 64;
/// MIG instances that are read on one device; the hardware has at most 7.
const MAX_MIG_DEVICES: u32 = 64;
/// Buffer of the NUMA mask: 256 nodes.
const NUMA_WORDS: usize = 4;

/// The loaded library. A clone keeps it loaded; the last one shuts it down.
#[derive(Clone, Debug)]
pub(crate) struct Library {
    loaded: Arc<Loaded>,
    driver_version: Option<Arc<str>>,
    cuda_version: Option<Arc<str>>,
}

/// Dropped in this order: who counts holds sees this one go when the driver has been let go.
#[derive(Debug)]
struct Loaded {
    nvml: Nvml,
    _hold: Hold,
}

/// A device with what is asked of it, as its thread keeps it from one request to the next.
#[derive(Debug)]
pub(crate) struct Device<'library> {
    handle: nvml_wrapper::Device<'library>,
    plan: Plan,
    fields: Fields,
    gpm: Samples<'library>,
    /// By UUID.
    mig: BTreeMap<String, MigIdentity>,
}

/// One round of questions to one device.
#[derive(Debug)]
struct Round<'round, 'library> {
    device: &'round nvml_wrapper::Device<'library>,
    plan: Plan,
    refused: BTreeMap<Call, Refusal>,
    codes: BTreeMap<Call, u32>,
    durations: &'round mut Durations,
}

/// Of each call, in nanoseconds.
pub(crate) type Durations = Vec<(Call, u64)>;

/// Why the library is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{0}")]
    Load(String),
    #[error("the kernel driver is not loaded")]
    NoDriver,
    #[error("the driver and its library are of different versions")]
    VersionMismatch,
    #[error("{0}")]
    Init(NvmlError),
}

// === impl Library ===

impl Library {
    pub(crate) fn open(path: &Path, hold: Hold) -> Result<Self, OpenError> {
        let nvml =
            Nvml::builder().lib_path(path.as_os_str()).init().map_err(|error| match error {
                NvmlError::LibloadingError(error) => OpenError::Load(error.to_string()),
                NvmlError::DriverNotLoaded | NvmlError::LibraryNotFound => OpenError::NoDriver,
                NvmlError::LibRmVersionMismatch => OpenError::VersionMismatch,
                other => OpenError::Init(other),
            })?;
        let driver_version = nvml.sys_driver_version().ok().map(Arc::from);
        let cuda_version = nvml.sys_cuda_driver_version().ok().map(|it| {
            let major = nvml_wrapper::cuda_driver_version_major(it);
            Arc::from(format!("{major}.{}", nvml_wrapper::cuda_driver_version_minor(it)))
        });
        let loaded = Arc::new(Loaded { nvml, _hold: hold });
        Ok(Self { loaded, driver_version, cuda_version })
    }

    pub(crate) fn nvml(&self) -> &Nvml {
        &self.loaded.nvml
    }

    pub(crate) fn device_count(&self) -> Result<u32, Refusal> {
        self.nvml().device_count().map_err(|it| refusal(&it))
    }

    pub(crate) fn uuid(&self, index: u32) -> Result<String, Refusal> {
        let uuid = self.nvml().device_by_index(index).and_then(|it| it.uuid());
        uuid.map_err(|it| refusal(&it))
    }

    /// Asks the device in `held`, or looks it up and probes it where there is none. What is left
    /// in `held` is for the next request; after a loss that is nothing.
    pub(crate) fn visit<'library>(
        &'library self,
        id: &DeviceId,
        held: &mut Option<Device<'library>>,
        visit: Visit,
    ) -> Report {
        let started = clock::boot();
        let (mut identity, mut durations) = (None, Durations::new());
        // Samples outlive a probe: what worked since the tick before is known at every tick.
        let kept = held.take_if(|_| visit.probe).map(|it| (it.gpm, it.mig));
        let (plan, answers) = if let Some(device) = held.as_mut() {
            let plan = if visit.slow { device.plan } else { device.plan.without_slow() };
            (plan, device.ask(plan, visit.last_seen_us, &mut durations))
        } else {
            let find = || self.nvml().device_by_uuid(&*id.0);
            match timed(&mut durations, Call::Handle, find) {
                Ok(handle) => {
                    let kept = kept.unwrap_or_default();
                    let (device, answers) = probe(handle, kept, visit.last_seen_us, &mut durations);
                    identity = Some(self.identity(&device.handle, &answers));
                    let plan = device.plan;
                    *held = Some(device);
                    (plan, answers)
                }
                Err(error) => {
                    let refused = Answers::refused(Call::Handle, refusal(&error));
                    let codes = [(Call::Handle, code(error))].into();
                    (Plan::probe(), Answers { codes, ..refused })
                }
            }
        };
        if answers.ended() {
            *held = None;
        }
        let spent_ns = clock::boot().since(started);
        Report { at: visit.at, spent_ns, durations, now_us: now_us(), plan, answers, identity }
    }

    fn identity(&self, device: &nvml_wrapper::Device<'_>, answers: &Answers) -> Identity {
        let known = Identity {
            driver_version: self.driver_version.clone(),
            cuda_version: self.cuda_version.clone(),
            ..Identity::default()
        };
        if answers.ended() {
            return known;
        }
        Identity {
            index: device.index().ok(),
            pci_bus_id: device.pci_info().ok().map(|it| Arc::from(it.bus_id)),
            model: device.name().ok().map(Arc::from),
            compute_capability: device
                .cuda_compute_capability()
                .ok()
                .map(|it| Arc::from(format!("{}.{}", it.major, it.minor))),
            mig_on: answers.mig_on,
            mig_slices: mig_slices(device),
            numa_node: numa_node(device),
            memory_total_bytes: answers.memory.and_then(decode::believable).map(|it| it.total),
            power_limit_mw: device.enforced_power_limit().ok().map(u64::from),
            ..known
        }
    }
}

/// Also a call that fails takes its time.
pub(crate) fn timed<T>(durations: &mut Durations, call: Call, question: impl FnOnce() -> T) -> T {
    let started = clock::boot();
    let answer = question();
    durations.push((call, clock::boot().since(started)));
    answer
}

/// Unix time in the driver's unit.
pub(crate) fn now_us() -> u64 {
    u64::try_from(clock::real_ns() / 1_000).unwrap_or(0)
}

/// Of this process. Not known is not.
pub(crate) fn in_host_pid_namespace() -> bool {
    in_initial_pid_namespace() == Some(true)
}

fn probe<'library>(
    handle: nvml_wrapper::Device<'library>,
    (gpm, mig): (Samples<'library>, BTreeMap<String, MigIdentity>),
    last_seen_us: u64,
    durations: &mut Durations,
) -> (Device<'library>, Answers) {
    let (plan, fields) = (Plan::probe(), Fields::all());
    let mut device = Device { handle, plan, fields, gpm, mig };
    let answers = device.ask(device.plan, last_seen_us, durations);
    device.plan = Plan::from_facts(&Facts::from_answers(&answers, in_host_pid_namespace()));
    (device, answers)
}

// === impl Device ===

impl Device<'_> {
    /// Asks what is planned, until the device is found to be lost.
    fn ask(&mut self, plan: Plan, last_seen_us: u64, durations: &mut Durations) -> Answers {
        let (refused, codes) = (BTreeMap::new(), BTreeMap::new());
        let mut round = Round { device: &self.handle, plan, refused, codes, durations };
        let answers = ask(&mut round, last_seen_us);
        let lists_processes = plan.lists_processes;
        let known = self.mig.len();
        let mig = round.ask(Call::MigDevices, |it| mig_devices(it, lists_processes, &mut self.mig));
        if let Some(mig) = &mig {
            if self.mig.len() > known {
                self.gpm.forget();
            }
            self.mig.retain(|uuid, _| mig.iter().any(|it| it.uuid == *uuid));
        }
        let sampled = gpm_instances(answers.mig_on, mig.as_deref());
        let gpm = round.ask(Call::Gpm, |it| self.gpm.ask(it, &sampled));
        let figures = plan.asks_for_figures().then(|| round.figures(&mut self.fields));
        let fields = figures.as_ref().map(|_| self.fields.said()).unwrap_or_default();
        Answers { mig, gpm, figures, fields, refused: round.refused, codes: round.codes, ..answers }
    }
}

/// What has samples of its own: the device, or the GPU instances of its MIG devices.
fn gpm_instances(mig_on: Option<bool>, mig: Option<&[MigDevice]>) -> Vec<Option<u32>> {
    match (mig_on, mig) {
        (Some(true), Some(mig)) => {
            let mut instances: Vec<_> =
                mig.iter().filter_map(|it| it.identity.gpu_instance).map(Some).collect();
            instances.sort_unstable();
            instances.dedup();
            instances
        }
        (Some(true), None) => Vec::new(),
        _ => vec![None],
    }
}

fn ask(round: &mut Round<'_, '_>, last_seen_us: u64) -> Answers {
    let utilization = round.ask(Call::Utilization, nvml_wrapper::Device::utilization_rates);
    Answers {
        mig_on: round
            .ask(Call::MigMode, nvml_wrapper::Device::mig_mode)
            .map(|it| it.current == sys::NVML_DEVICE_MIG_ENABLE),
        utilization: utilization.map(|it| Utilization { gpu: it.gpu, memory: it.memory }),
        memory: round.ask(Call::Memory, memory),
        power_mw: round.ask(Call::Power, nvml_wrapper::Device::power_usage),
        energy_mj: round.ask(Call::Energy, nvml_wrapper::Device::total_energy_consumption),
        temperature_celsius: round
            .ask(Call::Temperature, |it| it.temperature(TemperatureSensor::Gpu)),
        sm_clock_mhz: round.ask(Call::SmClock, |it| it.clock_info(Clock::SM)),
        memory_clock_mhz: round.ask(Call::MemoryClock, |it| it.clock_info(Clock::Memory)),
        compute: round.ask(Call::ComputeProcesses, compute_processes),
        graphics: round.ask(Call::GraphicsProcesses, graphics_processes),
        mps: round.ask(Call::MpsProcesses, mps_processes),
        samples: samples(round, last_seen_us),
        ..Answers::default()
    }
}

// === impl Round ===

impl<'library> Round<'_, 'library> {
    fn ask<T>(
        &mut self,
        call: Call,
        question: impl FnOnce(&nvml_wrapper::Device<'library>) -> Result<T, NvmlError>,
    ) -> Option<T> {
        if !self.plan.asks(call) || self.refused.values().any(|it| it.ends_the_visit()) {
            return None;
        }
        match timed(self.durations, call, || question(self.device)) {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.refused.insert(call, refusal(&error));
                self.codes.insert(call, code(error));
                None
            }
        }
    }

    fn figures(&mut self, fields: &mut Fields) -> Raw {
        let mut raw = Raw::new();
        for (call, question) in QUESTIONS {
            raw.extend(self.ask(call, question).into_iter().flatten());
        }
        raw.extend(self.ask(Call::Fields, |it| fields.ask(it)).into_iter().flatten());
        raw
    }
}

// === the questions that need more than one call ===

fn memory(device: &nvml_wrapper::Device<'_>) -> Result<Memory, NvmlError> {
    match device.memory_info() {
        Ok(it) => Ok(Memory {
            total: it.total,
            used: it.used,
            free: it.free,
            reserved: Some(it.reserved),
        }),
        Err(error) if refusal(&error) == Refusal::NotSupported => memory_without_reserved(device),
        Err(error) => Err(error),
    }
}

fn memory_without_reserved(device: &nvml_wrapper::Device<'_>) -> Result<Memory, NvmlError> {
    let symbol = nvml_sym(device.nvml().lib().nvmlDeviceGetMemoryInfo.as_ref())?;
    let mut answer = sys::nvmlMemory_t { total: 0, free: 0, used: 0 };
    // SAFETY: the symbol has the signature of nvml.h, which asks for one `nvmlMemory_t`.
    nvml_try(unsafe { symbol(handle(device), &raw mut answer) })?;
    Ok(Memory { total: answer.total, used: answer.used, free: answer.free, reserved: None })
}

/// MIG slots may be empty.
fn mig_devices(
    device: &nvml_wrapper::Device<'_>,
    lists_processes: bool,
    known: &mut BTreeMap<String, MigIdentity>,
) -> Result<Vec<MigDevice>, NvmlError> {
    let mut found = Vec::new();
    for index in 0..device.mig_device_count()?.min(MAX_MIG_DEVICES) {
        let instance = match device.mig_device_by_index(index) {
            Ok(instance) => instance,
            Err(NvmlError::NotFound | NvmlError::InvalidArg) => continue,
            Err(error) => return Err(error),
        };
        let processes = if lists_processes { offered(compute_processes(&instance))? } else { None };
        let memory = offered(memory(&instance))?;
        let uuid = instance.uuid()?;
        let identity = known.entry(uuid.clone()).or_insert_with(|| mig_identity(&instance)).clone();
        found.push(MigDevice { uuid, identity, memory, processes });
    }
    Ok(found)
}

/// As many as instances are possible, since the smallest one has one slice; 0 where MIG is off.
fn mig_slices(device: &nvml_wrapper::Device<'_>) -> Option<u32> {
    device.mig_device_count().ok().filter(|it| *it > 0)
}

/// Of one instance; it never changes as long as the UUID is the same.
fn mig_identity(instance: &nvml_wrapper::Device<'_>) -> MigIdentity {
    let lib = instance.nvml().lib();
    let gpu_instance = nvml_sym(lib.nvmlDeviceGetGpuInstanceId.as_ref());
    let compute_instance = nvml_sym(lib.nvmlDeviceGetComputeInstanceId.as_ref());
    let name = instance.name().ok();
    MigIdentity {
        profile: name.as_deref().and_then(decode::mig_profile).map(Arc::from),
        gpu_instance: gpu_instance.ok().and_then(|it| instance_id(instance, *it)),
        compute_instance: compute_instance.ok().and_then(|it| instance_id(instance, *it)),
    }
}

type InstanceNumber = unsafe extern "C" fn(sys::nvmlDevice_t, *mut c_uint) -> sys::nvmlReturn_t;

fn instance_id(instance: &nvml_wrapper::Device<'_>, symbol: InstanceNumber) -> Option<u32> {
    let mut id = 0;
    // SAFETY: nvml.h asks for one integer.
    nvml_try(unsafe { symbol(handle(instance), &raw mut id) }).ok()?;
    Some(id)
}

/// `None` for what an instance does not offer. A fault stays one.
fn offered<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Err(error) if refusal(&error).is_ordinary() => Ok(None),
        other => other.map(Some),
    }
}

/// The CPU node nearest to the device; on a coherent part the device's own node.
fn numa_node(device: &nvml_wrapper::Device<'_>) -> Option<u32> {
    let mask = device.memory_affinity(NUMA_WORDS, sys::NVML_AFFINITY_SCOPE_NODE).ok();
    mask.and_then(|it| decode::only_bit(&it)).or_else(|| device.numa_node_id().ok())
}

/// By the newer call where the driver has it. A newer call that fails is not answered by the older
/// one, whose 0 may mean nothing.
fn samples(round: &mut Round<'_, '_>, last_seen_us: u64) -> Option<Vec<Sample>> {
    let newer = round.ask(Call::ProcessesUtilization, |it| newer_samples(it, last_seen_us));
    let refusal = round.refused.get(&Call::ProcessesUtilization);
    if newer.is_some() || refusal.is_some_and(|it| !it.is_a_fact()) {
        return newer;
    }
    round.ask(Call::ProcessUtilization, |it| older_samples(it, last_seen_us))
}

pub(crate) fn handle(device: &nvml_wrapper::Device<'_>) -> sys::nvmlDevice_t {
    // SAFETY: the handle is only passed to the library that gave it, which `device` keeps loaded.
    unsafe { device.handle() }
}

/// As `nvml.h` numbers it.
fn code(error: NvmlError) -> u32 {
    match error {
        NvmlError::FailedToLoadSymbol(_) => sys::nvmlReturn_enum_NVML_ERROR_FUNCTION_NOT_FOUND,
        other => other.into(),
    }
}

pub(crate) fn refusal(error: &NvmlError) -> Refusal {
    match error {
        NvmlError::NotSupported
        | NvmlError::FunctionNotFound
        | NvmlError::FailedToLoadSymbol(_)
        | NvmlError::UnexpectedVariant(
            sys::nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH
            | sys::nvmlReturn_enum_NVML_ERROR_DEPRECATED,
        ) => Refusal::NotSupported,
        NvmlError::NoPermission | NvmlError::OperatingSystem => Refusal::Denied,
        NvmlError::NotFound | NvmlError::NoData => Refusal::NotFound,
        NvmlError::GpuLost
        | NvmlError::UnexpectedVariant(sys::nvmlReturn_enum_NVML_ERROR_GPU_NOT_FOUND) => {
            Refusal::GpuLost
        }
        NvmlError::ResetRequired => Refusal::ResetRequired,
        NvmlError::DriverNotLoaded | NvmlError::Uninitialized => Refusal::DriverGone,
        NvmlError::LibRmVersionMismatch => Refusal::DriverReplaced,
        _ => Refusal::Failed,
    }
}
