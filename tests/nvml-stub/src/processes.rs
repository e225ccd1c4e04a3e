//! Calls about the processes on a device.
#![expect(unsafe_code, reason = "exports a C ABI")]

use std::ffi::{c_uint, c_ulonglong};

use gpu_state::device::{Process, Sample};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlProcessInfo_t, nvmlProcessInfo_v2_t, nvmlProcessUtilizationSample_t,
};

use crate::codes::{Code, INSUFFICIENT_SIZE, INVALID_ARGUMENT, NOT_FOUND, UNKNOWN};
use crate::out::{store, store_list};
use crate::session::about;

/// What NVML fills in where there are no MIG instances.
const NO_INSTANCE: c_uint = c_uint::MAX;

/// Samples that the driver's ring can hold, as the sizing call reports them.
const RING_SAMPLES: c_uint = 100;

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
) -> Code {
    // SAFETY: nvml.h asks the caller for `count` structures.
    unsafe { compute("nvmlDeviceGetComputeRunningProcesses_v3", device, count, infos) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v2(
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_v2_t,
) -> Code {
    // SAFETY: nvml.h asks the caller for `count` structures; both versions have one layout.
    unsafe { compute("nvmlDeviceGetComputeRunningProcesses_v2", device, count, infos) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
) -> Code {
    about("nvmlDeviceGetGraphicsRunningProcesses_v3", device, |_| {
        // SAFETY: nvml.h asks the caller for `count` structures.
        unsafe { store_list(count, infos, &[]) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMPSComputeRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
) -> Code {
    about("nvmlDeviceGetMPSComputeRunningProcesses_v3", device, |_| {
        // SAFETY: nvml.h asks the caller for `count` structures.
        unsafe { store_list(count, infos, &[]) }
    })
}

/// `last_seen` is Unix time in microseconds; only newer samples count. Without any there is nothing
/// to be found, which is how an idle device answers.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetProcessUtilization(
    device: nvmlDevice_t,
    utilization: *mut nvmlProcessUtilizationSample_t,
    count: *mut c_uint,
    last_seen: c_ulonglong,
) -> Code {
    about("nvmlDeviceGetProcessUtilization", device, |it| {
        if count.is_null() {
            return INVALID_ARGUMENT;
        }
        if utilization.is_null() {
            // SAFETY: not null, and nvml.h asks the caller for one integer.
            unsafe { store(count, RING_SAMPLES) };
            return INSUFFICIENT_SIZE;
        }
        let Some(samples) = it.node.process_samples(it.index, last_seen) else { return UNKNOWN };
        let samples: Vec<_> = samples.into_iter().map(sample).collect();
        if samples.is_empty() {
            return NOT_FOUND;
        }
        // SAFETY: nvml.h asks the caller for `count` structures.
        unsafe { store_list(count, utilization, &samples) }
    })
}

/// # Safety
/// `count` is null or valid; `infos` is null or valid for as many structures as `count` says.
unsafe fn compute(
    call: &str,
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
) -> Code {
    about(call, device, |it| {
        let Some(processes) = it.node.processes(it.index) else { return UNKNOWN };
        let processes: Vec<_> = processes.into_iter().map(info).collect();
        // SAFETY: by the contract above.
        unsafe { store_list(count, infos, &processes) }
    })
}

fn info(process: Process) -> nvmlProcessInfo_t {
    nvmlProcessInfo_t {
        pid: process.pid,
        usedGpuMemory: process.memory_bytes,
        gpuInstanceId: NO_INSTANCE,
        computeInstanceId: NO_INSTANCE,
    }
}

fn sample(sample: Sample) -> nvmlProcessUtilizationSample_t {
    nvmlProcessUtilizationSample_t {
        pid: sample.pid,
        timeStamp: sample.timestamp_us,
        smUtil: sample.sm_percent,
        memUtil: sample.sm_percent / 2,
        encUtil: 0,
        decUtil: 0,
    }
}
