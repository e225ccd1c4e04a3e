//! Profiling counters (GPM): two samples of one device or instance make the scenario's values.
#![expect(unsafe_code, reason = "exports a C ABI")]

use std::collections::BTreeMap;
use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{
    NVML_GPM_METRICS_GET_VERSION, nvmlDevice_t, nvmlGpmMetricsGet_t, nvmlGpmSample_t,
    nvmlGpmSupport_t,
};

use crate::codes::{Code, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, SUCCESS, VERSION_MISMATCH};
use crate::out::store;
use crate::session::about;

/// In microseconds: samples that are closer measure nothing.
const SHORTEST_US: u64 = 100_000;

/// What one sample holds; empty until it is taken.
#[derive(Debug, Default)]
struct Sample {
    at_us: u64,
    /// Device and, with MIG, GPU instance.
    of: Option<(usize, Option<c_uint>)>,
    /// In thousandths of each metric's unit.
    values: BTreeMap<String, u32>,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlGpmQueryDeviceSupport(
    device: nvmlDevice_t,
    support: *mut nvmlGpmSupport_t,
) -> Code {
    about("nvmlGpmQueryDeviceSupport", device, |it| {
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
        let Some(values) = it.gpu().gpm.as_ref() else { return NOT_SUPPORTED };
        let new =
            Sample { at_us: it.node.unix_us(), of: Some((it.index, None)), values: values.clone() };
        // SAFETY: nvml.h asks for a sample that was allocated.
        unsafe { store(sample.cast(), new) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlGpmMigSampleGet(
    device: nvmlDevice_t,
    gpu_instance: c_uint,
    sample: nvmlGpmSample_t,
) -> Code {
    about("nvmlGpmMigSampleGet", device, |it| {
        let instances = it.gpu().mig.iter().flatten();
        let Some(instance) = instances.into_iter().find(|it| it.gpu_instance == gpu_instance)
        else {
            return NOT_FOUND;
        };
        let Some(values) = instance.gpm.as_ref() else { return NOT_SUPPORTED };
        let new = Sample {
            at_us: it.node.unix_us(),
            of: Some((it.index, Some(gpu_instance))),
            values: values.clone(),
        };
        // SAFETY: nvml.h asks for a sample that was allocated.
        unsafe { store(sample.cast(), new) }
    })
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
            Some(thousandths) => {
                metric.nvmlReturn = SUCCESS;
                metric.value = f64::from(*thousandths) / 1e3;
            }
            None => metric.nvmlReturn = NOT_SUPPORTED,
        }
    }
    SUCCESS
}
