//! Calls about the processes on a device.
#![expect(unsafe_code, reason = "exports a C ABI")]

use std::ffi::{c_uint, c_ulonglong};

use gpu_state::device::{Process, Sample};
use gpu_state::scenario::{List, Row};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlProcessInfo_t, nvmlProcessInfo_v2_t, nvmlProcessUtilizationInfo_v1_t,
    nvmlProcessUtilizationSample_t, nvmlProcessesUtilizationInfo_t,
};

use crate::codes::{
    Code, INSUFFICIENT_SIZE, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, UNKNOWN, VERSION_MISMATCH,
};
use crate::out::{store, store_list};
use crate::recorded;
use crate::session::{Target, about, about_any};

/// What NVML fills in where there are no MIG instances.
const NO_INSTANCE: c_uint = c_uint::MAX;

/// As `NVML_STRUCT_VERSION(ProcessesUtilizationInfo, 1)` puts them into one word.
const PROCESSES_V1: usize = size_of::<nvmlProcessesUtilizationInfo_t>() | (1 << 24);

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
    about("nvmlDeviceGetGraphicsRunningProcesses_v3", device, |it| {
        let question = "graphics_processes";
        let rows = it.answer(
            question,
            |it| it.graphics.as_deref().map(recorded::processes),
            |it| Ok(rows(it, List::Graphics)),
        );
        // SAFETY: nvml.h asks the caller for `count` structures.
        unsafe { store_rows(count, infos, rows) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMPSComputeRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
) -> Code {
    about("nvmlDeviceGetMPSComputeRunningProcesses_v3", device, |it| {
        let question = "mps_processes";
        let rows = it.answer(
            question,
            |it| it.mps.as_deref().map(recorded::processes),
            |it| Ok(rows(it, List::Mps)),
        );
        // SAFETY: nvml.h asks the caller for `count` structures.
        unsafe { store_rows(count, infos, rows) }
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
        if it.gpu().mig.is_some() {
            return NOT_SUPPORTED;
        }
        if count.is_null() {
            return INVALID_ARGUMENT;
        }
        if utilization.is_null() {
            // SAFETY: not null, and nvml.h asks the caller for one integer.
            unsafe { store(count, RING_SAMPLES) };
            return INSUFFICIENT_SIZE;
        }
        let mut samples = match samples(it, "process_utilization", last_seen) {
            Ok(samples) => samples,
            Err(code) => return code,
        };
        if it.gpu().legacy_samples_are_zero {
            samples.iter_mut().for_each(|it| it.sm_percent = 0);
        }
        let samples: Vec<_> = samples.into_iter().map(sample).collect();
        if samples.is_empty() {
            return NOT_FOUND;
        }
        // SAFETY: nvml.h asks the caller for `count` structures.
        unsafe { store_list(count, utilization, &samples) }
    })
}

/// As the older call, with a version in the structure and its own room for rows.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetProcessesUtilizationInfo(
    device: nvmlDevice_t,
    info: *mut nvmlProcessesUtilizationInfo_t,
) -> Code {
    about("nvmlDeviceGetProcessesUtilizationInfo", device, |it| {
        if it.gpu().mig.is_some() {
            return NOT_SUPPORTED;
        }
        if info.is_null() {
            return INVALID_ARGUMENT;
        }
        // SAFETY: not null, and nvml.h asks the caller for one structure with its version filled in.
        let info = unsafe { &mut *info };
        if usize::try_from(info.version) != Ok(PROCESSES_V1) {
            return VERSION_MISMATCH;
        }
        let samples = match samples(it, "processes_utilization", info.lastSeenTimeStamp) {
            Ok(samples) => samples,
            Err(code) => return code,
        };
        let samples: Vec<_> = samples.into_iter().map(newer_sample).collect();
        if samples.is_empty() {
            return NOT_FOUND;
        }
        // SAFETY: nvml.h asks the caller for room for `processSamplesCount` structures.
        unsafe { store_list(&raw mut info.processSamplesCount, info.procUtilArray, &samples) }
    })
}

/// Of processes that launched, and of the scenario; only those newer than `last_seen`. A recorded
/// driver was asked by the older call only where it refused the newer one.
fn samples(target: &Target, question: &str, last_seen: c_ulonglong) -> Result<Vec<Sample>, Code> {
    if let Some(recorded) = target.recorded() {
        let by_older = recorded::refusal(recorded, "processes_utilization").is_some();
        let asked = (by_older || question != "process_utilization").then_some(());
        recorded::said(recorded, question, asked)?;
        let mut samples = target.node.recorded_samples(target.index);
        samples.retain(|it| it.timestamp_us > last_seen);
        return Ok(samples);
    }
    let samples = target.node.process_samples(target.index, last_seen);
    let mut samples = samples.ok_or(UNKNOWN)?;
    let now = target.node.unix_us();
    let rows = target.gpu().samples.iter().map(|it| Sample {
        pid: it.pid,
        timestamp_us: it.at_us.unwrap_or(now),
        sm_percent: it.sm,
    });
    samples.extend(rows.filter(|it| it.timestamp_us > last_seen));
    Ok(samples)
}

/// # Safety
/// `count` is null or valid; `infos` is null or valid for as many structures as `count` says.
unsafe fn compute(
    call: &str,
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
) -> Code {
    about_any(call, device, |it| {
        // SAFETY: by the contract above.
        unsafe { store_rows(count, infos, compute_rows(it)) }
    })
}

fn compute_rows(target: &Target) -> Result<Vec<nvmlProcessInfo_t>, Code> {
    if let Some(recorded) = target.recorded() {
        return match target.recorded_instance() {
            Some(instance) => instance.processes.as_deref().ok_or(NOT_SUPPORTED),
            None => recorded::said(recorded, "compute_processes", recorded.compute.as_deref()),
        }
        .map(recorded::processes);
    }
    let processes = target.node.processes(target.index).ok_or(UNKNOWN)?;
    // Which instance a real process is on is not known here.
    let processes = processes.into_iter().filter(|_| target.slot.is_none());
    Ok(processes.map(info).chain(rows(target, List::Compute)).collect())
}

/// # Safety
/// As for [`store_list`].
unsafe fn store_rows(
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
    rows: Result<Vec<nvmlProcessInfo_t>, Code>,
) -> Code {
    match rows {
        // SAFETY: by the contract above.
        Ok(rows) => unsafe { store_list(count, infos, &rows) },
        Err(code) => code,
    }
}

fn info(process: Process) -> nvmlProcessInfo_t {
    nvmlProcessInfo_t {
        pid: process.pid,
        usedGpuMemory: process.memory_bytes,
        gpuInstanceId: NO_INSTANCE,
        computeInstanceId: NO_INSTANCE,
    }
}

/// What the scenario adds to one of the lists.
fn rows(target: &Target, list: List) -> Vec<nvmlProcessInfo_t> {
    let rows = target.gpu().processes.iter().filter(|it| it.list == list);
    let rows = rows.filter(|row| {
        target.instance().is_none_or(|it| {
            row.gpu_instance == Some(it.gpu_instance)
                && row.compute_instance == Some(it.compute_instance)
        })
    });
    rows.map(row).collect()
}

fn row(row: &Row) -> nvmlProcessInfo_t {
    nvmlProcessInfo_t {
        pid: row.pid,
        usedGpuMemory: row.memory_mib.map_or(c_ulonglong::MAX, |it| it << 20),
        gpuInstanceId: row.gpu_instance.unwrap_or(NO_INSTANCE),
        computeInstanceId: row.compute_instance.unwrap_or(NO_INSTANCE),
    }
}

fn newer_sample(sample: Sample) -> nvmlProcessUtilizationInfo_v1_t {
    nvmlProcessUtilizationInfo_v1_t {
        timeStamp: sample.timestamp_us,
        pid: sample.pid,
        smUtil: sample.sm_percent,
        memUtil: sample.sm_percent / 2,
        encUtil: 0,
        decUtil: 0,
        jpgUtil: 0,
        ofaUtil: 0,
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
