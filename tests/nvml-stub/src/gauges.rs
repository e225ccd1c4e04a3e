//! Calls about how a device is doing now.
#![expect(unsafe_code, reason = "exports a C ABI")]

use std::ffi::{c_int, c_uint, c_ulonglong};

use gpu_state::device::Memory;
use nvml_wrapper_sys::bindings::{
    nvmlClockType_enum_NVML_CLOCK_MEM, nvmlClockType_enum_NVML_CLOCK_VIDEO, nvmlClockType_t,
    nvmlDevice_t, nvmlFieldValue_t, nvmlMemory_t, nvmlMemory_v2_t, nvmlPstates_t,
    nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU, nvmlTemperatureSensors_t, nvmlUtilization_t,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG,
};

use crate::codes::{
    Code, FUNCTION_NOT_FOUND, INVALID_ARGUMENT, NOT_SUPPORTED, SUCCESS, UNKNOWN, VERSION_MISMATCH,
};
use crate::out::{store, store_answer};
use crate::recorded::{refusal, said};
use crate::session::{Target, about, about_any};

/// Size and version as `NVML_STRUCT_VERSION(Memory, 2)` puts them into one word.
const MEMORY_V2: usize = size_of::<nvmlMemory_v2_t>() | (2 << 24);

const MEMORY_CLOCK_MHZ: c_uint = 2_619;
const SM_CLOCK_BUSY_MHZ: c_uint = 1_980;
const SM_CLOCK_IDLE_MHZ: c_uint = 345;

/// Reserved memory counts as used here; the second version tells them apart.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMemoryInfo(
    device: nvmlDevice_t,
    memory: *mut nvmlMemory_t,
) -> Code {
    about_any("nvmlDeviceGetMemoryInfo", device, |it| {
        let now = match memory_of(it) {
            Ok((now, _)) => now,
            Err(code) => return code,
        };
        let used = now.used_bytes.saturating_add(now.reserved_bytes);
        // SAFETY: nvml.h asks the caller for one structure.
        unsafe {
            store(memory, nvmlMemory_t { total: now.total_bytes, free: now.free_bytes, used })
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: nvmlDevice_t,
    memory: *mut nvmlMemory_v2_t,
) -> Code {
    about_any("nvmlDeviceGetMemoryInfo_v2", device, |it| {
        if memory.is_null() {
            return INVALID_ARGUMENT;
        }
        // SAFETY: not null, and nvml.h asks the caller for one structure with its version filled in.
        let version = unsafe { (*memory).version };
        if usize::try_from(version) != Ok(MEMORY_V2) {
            return VERSION_MISMATCH;
        }
        let now = match memory_of(it) {
            Ok((now, true)) => now,
            Ok((_, false)) => return FUNCTION_NOT_FOUND,
            Err(code) => return code,
        };
        let answer = nvmlMemory_v2_t {
            version,
            total: now.total_bytes,
            reserved: now.reserved_bytes,
            free: now.free_bytes,
            used: now.used_bytes,
        };
        // SAFETY: as above.
        unsafe { store(memory, answer) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUtilizationRates(
    device: nvmlDevice_t,
    utilization: *mut nvmlUtilization_t,
) -> Code {
    about("nvmlDeviceGetUtilizationRates", device, |it| {
        let busy = it.answer("utilization", |it| it.utilization, simulated_busy);
        let answer = busy.map(|(gpu, memory)| nvmlUtilization_t { gpu, memory });
        // SAFETY: nvml.h asks the caller for one structure.
        unsafe { store_answer(utilization, answer) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPowerUsage(device: nvmlDevice_t, power: *mut c_uint) -> Code {
    about("nvmlDeviceGetPowerUsage", device, |it| {
        let simulated = |it: &Target| it.node.power_mw(it.index).map(milliwatts).ok_or(UNKNOWN);
        // SAFETY: nvml.h asks the caller for one integer.
        unsafe { store_answer(power, it.answer("power", |it| it.power_mw, simulated)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetEnforcedPowerLimit(
    device: nvmlDevice_t,
    limit: *mut c_uint,
) -> Code {
    about("nvmlDeviceGetEnforcedPowerLimit", device, |it| {
        // SAFETY: nvml.h asks the caller for one integer.
        unsafe { store_answer(limit, power_limit(it)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPowerManagementLimit(
    device: nvmlDevice_t,
    limit: *mut c_uint,
) -> Code {
    about("nvmlDeviceGetPowerManagementLimit", device, |it| {
        // SAFETY: nvml.h asks the caller for one integer.
        unsafe { store_answer(limit, power_limit(it)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTotalEnergyConsumption(
    device: nvmlDevice_t,
    energy: *mut c_ulonglong,
) -> Code {
    about("nvmlDeviceGetTotalEnergyConsumption", device, |it| {
        let simulated = |it: &Target| it.node.energy_mj(it.index).ok_or(UNKNOWN);
        let answer = it.answer("energy", |it| it.energy_mj.map(|it| it.0), simulated);
        // SAFETY: nvml.h asks the caller for one integer.
        unsafe { store_answer(energy, answer) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTemperature(
    device: nvmlDevice_t,
    sensor: nvmlTemperatureSensors_t,
    celsius: *mut c_uint,
) -> Code {
    about("nvmlDeviceGetTemperature", device, |it| {
        if sensor != nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU {
            return INVALID_ARGUMENT;
        }
        let simulated = |it: &Target| {
            it.node.busy_percent(it.index).map(|busy| 32 + busy * 2 / 5).ok_or(UNKNOWN)
        };
        let answer = it.answer("temperature", |it| it.temperature_celsius, simulated);
        // SAFETY: nvml.h asks the caller for one integer.
        unsafe { store_answer(celsius, answer) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetClockInfo(
    device: nvmlDevice_t,
    domain: nvmlClockType_t,
    mhz: *mut c_uint,
) -> Code {
    about("nvmlDeviceGetClockInfo", device, |it| {
        let simulated = |it: &Target| match it.node.busy_percent(it.index) {
            Some(_) if domain == nvmlClockType_enum_NVML_CLOCK_MEM => Ok(MEMORY_CLOCK_MHZ),
            Some(0) => Ok(SM_CLOCK_IDLE_MHZ),
            Some(_) => Ok(SM_CLOCK_BUSY_MHZ),
            None => Err(UNKNOWN),
        };
        let answer = if domain == nvmlClockType_enum_NVML_CLOCK_MEM {
            it.answer("memory_clock", |it| it.memory_clock_mhz, simulated)
        } else if domain == nvmlClockType_enum_NVML_CLOCK_VIDEO {
            it.answer("video_clock", |it| it.video_clock_mhz, simulated)
        } else {
            it.answer("sm_clock", |it| it.sm_clock_mhz, simulated)
        };
        // SAFETY: nvml.h asks the caller for one integer.
        unsafe { store_answer(mhz, answer) }
    })
}

/// The state of highest performance: compute devices stay there.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPerformanceState(
    device: nvmlDevice_t,
    state: *mut nvmlPstates_t,
) -> Code {
    about("nvmlDeviceGetPerformanceState", device, |_| {
        // SAFETY: nvml.h asks the caller for one integer.
        unsafe { store(state, 0) }
    })
}

/// Each field says for itself whether it is known.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetFieldValues(
    device: nvmlDevice_t,
    count: c_int,
    values: *mut nvmlFieldValue_t,
) -> Code {
    about("nvmlDeviceGetFieldValues", device, |it| {
        let Some(count) = usize::try_from(count).ok().filter(|_| !values.is_null()) else {
            return INVALID_ARGUMENT;
        };
        if let Some(code) = it.recorded().and_then(|it| refusal(it, "fields")) {
            return code;
        }
        // SAFETY: nvml.h asks the caller for `count` structures.
        for value in unsafe { std::slice::from_raw_parts_mut(values, count) } {
            fill(value, field_of(it, value));
        }
        if count == 0 { INVALID_ARGUMENT } else { SUCCESS }
    })
}

/// Fields of 32 bits; the others have 64.
const NARROW: [c_uint; 12] = [1, 2, 31, 38, 45, 52, 59, 82, 94, 144, 145, 230];

/// Fields whose scope is a link, or all links together.
const OF_LINKS: [c_uint; 11] = [138, 139, 202, 204, 206, 207, 208, 211, 213, 214, 221];

/// Of an instance it is what the scenario says; of a device what its processes hold. With it: whether
/// the second version of the call is there.
fn memory_of(target: &Target) -> Result<(Memory, bool), Code> {
    if let Some(recorded) = target.recorded() {
        let own = target.recorded_instance().map(|it| it.memory);
        let memory = own.map_or_else(
            || said(recorded, "memory", recorded.memory),
            |it| it.ok_or(NOT_SUPPORTED),
        )?;
        let now = Memory {
            total_bytes: memory.total.0,
            reserved_bytes: memory.reserved.map_or(0, |it| it.0),
            used_bytes: memory.used.0,
            free_bytes: memory.free.0,
        };
        return Ok((now, memory.reserved.is_some()));
    }
    simulated_memory(target).map(|it| (it, true)).ok_or(UNKNOWN)
}

fn simulated_memory(target: &Target) -> Option<Memory> {
    let Some(instance) = target.instance() else {
        return match target.gpu().memory_is_not_known {
            true => Some(Memory {
                total_bytes: u64::MAX,
                reserved_bytes: 0,
                used_bytes: u64::MAX,
                free_bytes: u64::MAX,
            }),
            false => target.node.memory(target.index),
        };
    };
    let (total_bytes, used_bytes) = (instance.memory_mib << 20, instance.used_mib << 20);
    let free_bytes = total_bytes.saturating_sub(used_bytes);
    Some(Memory { total_bytes, reserved_bytes: 0, used_bytes, free_bytes })
}

/// Of the device and of its memory, in percent.
fn simulated_busy(target: &Target) -> Result<(c_uint, c_uint), Code> {
    if target.gpu().mig.is_some() {
        return Err(NOT_SUPPORTED);
    }
    let measured = target.gpu().busy_percent.or_else(|| target.node.busy_percent(target.index));
    measured.map(|it| (it, it / 2)).ok_or(UNKNOWN)
}

fn power_limit(target: &Target) -> Result<c_uint, Code> {
    let limit = match target.recorded() {
        Some(recorded) => recorded.identity.power_limit_mw,
        None => Some(target.gpu().power_max_mw),
    };
    limit.map(milliwatts).ok_or(NOT_SUPPORTED)
}

/// Fields that a device does not have while MIG is on.
const WITHOUT_MIG: [c_uint; 4] = [142, 143, 144, 145];

/// The value of a field, or its own code.
fn field_of(target: &Target, field: &nvmlFieldValue_t) -> Result<u64, Code> {
    let (gpu, number) = (target.gpu(), field.fieldId.to_string());
    if let Some(recorded) = &gpu.recorded {
        let value = recorded.fields.get(&number).map(|it| it.0);
        return said(recorded, &recording::field(field.fieldId), value);
    }
    let hidden = gpu.mig.is_some() && WITHOUT_MIG.contains(&field.fieldId);
    let value = gpu.fields.get(&number).filter(|_| has_scope(field) && !hidden);
    value.copied().ok_or(NOT_SUPPORTED)
}

fn fill(field: &mut nvmlFieldValue_t, value: Result<u64, Code>) {
    let value = match value {
        Ok(value) => value,
        Err(code) => {
            field.nvmlReturn = code;
            return;
        }
    };
    field.nvmlReturn = SUCCESS;
    if NARROW.contains(&field.fieldId) {
        field.valueType = nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT;
        field.value.uiVal = c_uint::try_from(value).unwrap_or(c_uint::MAX);
    } else {
        field.valueType = nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
        field.value.ullVal = value;
    }
}

/// The scenario has sums: no link can be asked for by itself.
fn has_scope(field: &nvmlFieldValue_t) -> bool {
    !OF_LINKS.contains(&field.fieldId) || field.scopeId == c_uint::MAX
}

fn milliwatts(value: u64) -> c_uint {
    c_uint::try_from(value).unwrap_or(c_uint::MAX)
}
