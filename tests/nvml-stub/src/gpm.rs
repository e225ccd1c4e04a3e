//! Profiling counters (GPM): two samples of one device or instance make the scenario's values.
#![expect(unsafe_code, reason = "exports a C ABI")]

use std::collections::BTreeMap;
use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{
    NVML_GPM_METRICS_GET_VERSION, nvmlDevice_t, nvmlGpmMetricsGet_t, nvmlGpmSample_t,
    nvmlGpmSupport_t,
};
use recording::{Recorded, WHOLE};

use crate::codes::{Code, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, SUCCESS, VERSION_MISMATCH};
use crate::out::{store, store_answer};
use crate::recorded::refusal;
use crate::session::{Target, about};

/// In microseconds: samples that are closer measure nothing.
const SHORTEST_US: u64 = 100_000;

/// What one sample holds; empty until it is taken.
#[derive(Debug, Default)]
struct Sample {
    at_us: u64,
    /// Device and, with MIG, GPU instance.
    of: Option<(usize, Option<c_uint>)>,
    /// In each metric's unit, by its number.
    values: BTreeMap<String, f64>,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlGpmQueryDeviceSupport(
    device: nvmlDevice_t,
    support: *mut nvmlGpmSupport_t,
) -> Code {
    about("nvmlGpmQueryDeviceSupport", device, |it| {
        if let Some(code) = it.recorded().and_then(|it| refusal(it, "gpm")) {
            return code;
        }
        let supported = it.gpu().has_gpm().into();
        // SAFETY: nvml.h asks the caller for one structure.
        unsafe { store(support, nvmlGpmSupport_t { version: 1, isSupportedDevice: supported }) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlGpmSampleAlloc(sample: *mut nvmlGpmSample_t) -> Code {
    let new = Box::into_raw(Box::<Sample>::default());
    // SAFETY: nvml.h asks the caller for one handle.
    unsafe { store(sample, new.cast()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlGpmSampleFree(sample: nvmlGpmSample_t) -> Code {
    if sample.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: nvml.h asks for a sample that was allocated and is freed once.
    drop(unsafe { Box::from_raw(sample.cast::<Sample>()) });
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlGpmSampleGet(device: nvmlDevice_t, sample: nvmlGpmSample_t) -> Code {
    about("nvmlGpmSampleGet", device, |it| {
        let simulated = |it: &Target| it.gpu().gpm.as_ref().map(scaled).ok_or(NOT_SUPPORTED);
        let values = it.answer("gpm", |it| recorded(it, WHOLE), simulated);
        // SAFETY: nvml.h asks for a sample that was allocated.
        unsafe { take(it, None, values, sample) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlGpmMigSampleGet(
    device: nvmlDevice_t,
    gpu_instance: c_uint,
    sample: nvmlGpmSample_t,
) -> Code {
    about("nvmlGpmMigSampleGet", device, |it| {
        let simulated = |it: &Target| {
            let mut instances = it.gpu().mig.iter().flatten();
            let found = instances.find(|it| it.gpu_instance == gpu_instance).ok_or(NOT_FOUND)?;
            found.gpm.as_ref().map(scaled).ok_or(NOT_SUPPORTED)
        };
        let values = it.answer("gpm", |it| recorded(it, &gpu_instance.to_string()), simulated);
        // SAFETY: nvml.h asks for a sample that was allocated.
        unsafe { take(it, Some(gpu_instance), values, sample) }
    })
}

/// Scenarios have thousandths of each metric's unit.
fn scaled(thousandths: &BTreeMap<String, u32>) -> BTreeMap<String, f64> {
    thousandths.iter().map(|(number, value)| (number.clone(), f64::from(*value) / 1e3)).collect()
}

/// What was sampled and had no sample before it to be compared with has no values.
fn recorded(recorded: &Recorded, instance: &str) -> Option<BTreeMap<String, f64>> {
    recorded.gpm.as_ref().map(|it| it.get(instance).cloned().unwrap_or_default())
}

/// # Safety
/// `sample` was allocated.
unsafe fn take(
    target: &Target,
    gpu_instance: Option<c_uint>,
    values: Result<BTreeMap<String, f64>, Code>,
    sample: nvmlGpmSample_t,
) -> Code {
    let of = Some((target.index, gpu_instance));
    let new = values.map(|values| Sample { at_us: target.node.unix_us(), of, values });
    // SAFETY: by the contract above.
    unsafe { store_answer(sample.cast(), new) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlGpmMetricsGet(request: *mut nvmlGpmMetricsGet_t) -> Code {
    if request.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: not null, and nvml.h asks the caller for one structure.
    let request = unsafe { &mut *request };
    if request.version != NVML_GPM_METRICS_GET_VERSION {
        return VERSION_MISMATCH;
    }
    if request.sample1.is_null() || request.sample2.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: not null, and nvml.h asks for samples that were allocated.
    let before = unsafe { &*request.sample1.cast::<Sample>() };
    // SAFETY: as above.
    let after = unsafe { &*request.sample2.cast::<Sample>() };
    let too_close = after.at_us.saturating_sub(before.at_us) < SHORTEST_US;
    if after.of.is_none() || after.of != before.of || too_close {
        return INVALID_ARGUMENT;
    }
    let count = usize::try_from(request.numMetrics).unwrap_or(usize::MAX);
    for metric in request.metrics.iter_mut().take(count) {
        match after.values.get(&metric.metricId.to_string()) {
            Some(value) => {
                metric.nvmlReturn = SUCCESS;
                metric.value = *value;
            }
            None => metric.nvmlReturn = NOT_SUPPORTED,
        }
    }
    SUCCESS
}
