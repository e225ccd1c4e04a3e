//! Lists of processes and of their use, read in one call with headroom: no judgement.
//!
//! The wrapper asks twice, and a list grows in between.
#![expect(unsafe_code, reason = "lists are read through NVML's own symbols")]

use std::ffi::c_uint;

use nvml_wrapper::Device;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings as sys;

use crate::samplers::nvml::answers::{Listed, Sample};
use crate::samplers::nvml::driver::handle;

/// Rows that a list is first read with. The driver's own ring of utilisation samples has at most 100.
const FIRST_ROWS: usize = 128;
/// Rows beyond which a list is refused as too long.
const MAX_ROWS: usize = 8_192;

pub(crate) fn compute_processes(device: &Device<'_>) -> Result<Vec<Listed>, NvmlError> {
    let symbol = &device.nvml().lib().nvmlDeviceGetComputeRunningProcesses_v3;
    processes(device, *nvml_sym(symbol.as_ref())?)
}

pub(crate) fn graphics_processes(device: &Device<'_>) -> Result<Vec<Listed>, NvmlError> {
    let symbol = &device.nvml().lib().nvmlDeviceGetGraphicsRunningProcesses_v3;
    processes(device, *nvml_sym(symbol.as_ref())?)
}

pub(crate) fn mps_processes(device: &Device<'_>) -> Result<Vec<Listed>, NvmlError> {
    let symbol = &device.nvml().lib().nvmlDeviceGetMPSComputeRunningProcesses_v3;
    processes(device, *nvml_sym(symbol.as_ref())?)
}

type ProcessList = unsafe extern "C" fn(
    sys::nvmlDevice_t,
    *mut c_uint,
    *mut sys::nvmlProcessInfo_t,
) -> sys::nvmlReturn_t;

fn processes(device: &Device<'_>, symbol: ProcessList) -> Result<Vec<Listed>, NvmlError> {
    let blank =
        sys::nvmlProcessInfo_t { pid: 0, usedGpuMemory: 0, gpuInstanceId: 0, computeInstanceId: 0 };
    let rows = rows(blank, |rows, count| {
        // SAFETY: nvml.h asks for an array of as many rows as `count` says, which `rows` has.
        unsafe { symbol(handle(device), count, rows.as_mut_ptr()) }
    })?;
    Ok(rows.into_iter().map(|it| Listed { pid: it.pid, memory: it.usedGpuMemory }).collect())
}

pub(crate) fn newer_samples(
    device: &Device<'_>,
    last_seen_us: u64,
) -> Result<Vec<Sample>, NvmlError> {
    let symbol = nvml_sym(device.nvml().lib().nvmlDeviceGetProcessesUtilizationInfo.as_ref())?;
    let version = size_of::<sys::nvmlProcessesUtilizationInfo_v1_t>() | 1 << 24;
    let blank = sys::nvmlProcessUtilizationInfo_v1_t {
        timeStamp: 0,
        pid: 0,
        smUtil: 0,
        memUtil: 0,
        encUtil: 0,
        decUtil: 0,
        jpgUtil: 0,
        ofaUtil: 0,
    };
    let rows = rows(blank, |rows, count| {
        let mut request = sys::nvmlProcessesUtilizationInfo_v1_t {
            version: c_uint::try_from(version).expect("the structure is small"),
            processSamplesCount: *count,
            lastSeenTimeStamp: last_seen_us,
            procUtilArray: rows.as_mut_ptr(),
        };
        // SAFETY: nvml.h asks for an array of as many rows as `processSamplesCount` says.
        let code = unsafe { symbol(handle(device), &raw mut request) };
        *count = request.processSamplesCount;
        code
    })?;
    let sample = |it: sys::nvmlProcessUtilizationInfo_v1_t| Sample {
        pid: it.pid,
        at_us: it.timeStamp,
        sm: it.smUtil,
    };
    Ok(rows.into_iter().map(sample).collect())
}

pub(crate) fn older_samples(
    device: &Device<'_>,
    last_seen_us: u64,
) -> Result<Vec<Sample>, NvmlError> {
    let symbol = nvml_sym(device.nvml().lib().nvmlDeviceGetProcessUtilization.as_ref())?;
    let blank = sys::nvmlProcessUtilizationSample_t {
        pid: 0,
        timeStamp: 0,
        smUtil: 0,
        memUtil: 0,
        encUtil: 0,
        decUtil: 0,
    };
    let rows = rows(blank, |rows, count| {
        // SAFETY: nvml.h asks for an array of as many rows as `count` says, which `rows` has.
        unsafe { symbol(handle(device), rows.as_mut_ptr(), count, last_seen_us) }
    })?;
    Ok(rows
        .into_iter()
        .map(|it| Sample { pid: it.pid, at_us: it.timeStamp, sm: it.smUtil })
        .collect())
}

/// A list whose length is not known: it may grow between two calls, so a refused size is met with
/// a larger buffer, up to `MAX_ROWS`.
fn rows<T: Copy>(
    blank: T,
    mut read: impl FnMut(&mut [T], &mut c_uint) -> sys::nvmlReturn_t,
) -> Result<Vec<T>, NvmlError> {
    let mut capacity = FIRST_ROWS;
    loop {
        let mut rows = vec![blank; capacity];
        let mut count = c_uint::try_from(capacity).expect("MAX_ROWS fits");
        let code = read(&mut rows, &mut count);
        let wanted = usize::try_from(count).unwrap_or(MAX_ROWS);
        if code == sys::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE && capacity < MAX_ROWS {
            capacity = (capacity * 2).max(wanted).min(MAX_ROWS);
            continue;
        }
        nvml_try(code)?;
        rows.truncate(wanted);
        return Ok(rows);
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::c_uint;

    use nvml_wrapper_sys::bindings as sys;

    use super::rows;

    /// A list of so many rows, which grows by one before each read.
    fn read(length: u32) -> Option<usize> {
        let mut length = length;
        let answer = rows(0_u32, |rows: &mut [u32], count: &mut c_uint| {
            let room = *count;
            assert_eq!(usize::try_from(room), Ok(rows.len()));
            length += 1;
            *count = length;
            if room < length {
                return sys::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE;
            }
            sys::nvmlReturn_enum_NVML_SUCCESS
        });
        answer.ok().map(|it| it.len())
    }

    #[test]
    fn a_list_that_grows_is_read_whole_up_to_a_bound() {
        assert_eq!(read(0), Some(1));
        assert_eq!(read(127), Some(128));
        assert_eq!(read(128), Some(130));
        assert_eq!(read(5_000), Some(5_003));
        assert_eq!(read(9_000), None);
    }
}
