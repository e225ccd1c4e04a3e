//! Event sets: the XIDs of the scenario, from the moment at which a device was registered.
#![expect(unsafe_code, reason = "exports a C ABI")]

use std::ffi::{c_uint, c_ulonglong};
use std::sync::Mutex;
use std::time::Duration;

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t};

use crate::codes::{Code, GPU_IS_LOST, INVALID_ARGUMENT, SUCCESS, TIMEOUT, UNKNOWN};
use crate::out::store;
use crate::session::{about, about_node, node};

/// `nvmlEventTypeXidCriticalError`.
const XID: c_ulonglong = 8;

/// What NVML fills in where there are no MIG instances.
const NO_INSTANCE: c_uint = c_uint::MAX;

/// Devices, each with how many of its XIDs were told.
#[derive(Debug, Default)]
struct Set(Mutex<Vec<Registered>>);

#[derive(Clone, Copy, Debug)]
struct Registered {
    /// The handle's address, by which it is told.
    device: usize,
    told: usize,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) -> Code {
    about_node(|_| {
        let new = Box::into_raw(Box::<Set>::default());
        // SAFETY: nvml.h asks the caller for one handle.
        unsafe { store(set, new.cast()) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> Code {
    if set.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: nvml.h asks for a set that was created and is freed once.
    drop(unsafe { Box::from_raw(set.cast::<Set>()) });
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetSupportedEventTypes(
    device: nvmlDevice_t,
    types: *mut c_ulonglong,
) -> Code {
    about("nvmlDeviceGetSupportedEventTypes", device, |_| {
        // SAFETY: nvml.h asks the caller for one integer.
        unsafe { store(types, XID) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceRegisterEvents(
    device: nvmlDevice_t,
    types: c_ulonglong,
    set: nvmlEventSet_t,
) -> Code {
    about("nvmlDeviceRegisterEvents", device, |it| {
        if types & !XID != 0 || set.is_null() {
            return INVALID_ARGUMENT;
        }
        // SAFETY: not null, and nvml.h asks for a set that was created.
        let set = unsafe { &*set.cast::<Set>() };
        let told = it.gpu().xids.len();
        let mut devices = set.0.lock().expect("nothing panics while it is held");
        devices.push(Registered { device: device.addr(), told });
        SUCCESS
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    data: *mut nvmlEventData_t,
    timeout_ms: c_uint,
) -> Code {
    if set.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: not null, and nvml.h asks for a set that was created.
    let set = unsafe { &*set.cast::<Set>() };
    let node = match node() {
        Ok(it) => it,
        Err(code) => return code,
    };
    let Ok(watch) = node.watch() else { return UNKNOWN };
    let deadline_ns = node.boot_ns() + u64::from(timeout_ms) * 1_000_000;
    loop {
        match set.next() {
            // SAFETY: nvml.h asks the caller for one structure.
            Ok(Some(event)) => return unsafe { store(data, event) },
            Err(code) => return code,
            Ok(None) => {}
        }
        let left = Duration::from_nanos(deadline_ns.saturating_sub(node.boot_ns()));
        if left.is_zero() {
            return TIMEOUT;
        }
        let step = node.until_next_step().map_or(left, |it| it.min(left));
        if watch.wait(step).is_err() {
            return UNKNOWN;
        }
    }
}

impl Set {
    fn next(&self) -> Result<Option<nvmlEventData_t>, Code> {
        let mut devices = self.0.lock().expect("nothing panics while it is held");
        for registered in devices.iter_mut() {
            let device: nvmlDevice_t = std::ptr::without_provenance_mut(registered.device);
            let mut found = None;
            let code = about("nvmlEventSetWait_v2", device, |it| {
                found = it.gpu().xids.get(registered.told).copied();
                SUCCESS
            });
            if code == GPU_IS_LOST {
                return Err(code);
            }
            if let Some(xid) = found {
                registered.told += 1;
                return Ok(Some(nvmlEventData_t {
                    device,
                    eventType: XID,
                    eventData: xid,
                    gpuInstanceId: NO_INSTANCE,
                    computeInstanceId: NO_INSTANCE,
                }));
            }
        }
        Ok(None)
    }
}
