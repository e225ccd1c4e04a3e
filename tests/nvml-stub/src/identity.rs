//! Calls about what a device is.
#![expect(unsafe_code, reason = "exports a C ABI")]

use std::ffi::{c_char, c_int, c_uint, c_ulong};

use nvml_wrapper_sys::bindings::{
    NVML_DEVICE_ARCH_HOPPER, nvmlAffinityScope_t, nvmlBrandType_enum_NVML_BRAND_NVIDIA,
    nvmlBrandType_t, nvmlDevice_t, nvmlDeviceArchitecture_t, nvmlPciInfo_t,
};

use crate::codes::{Code, INVALID_ARGUMENT, NOT_SUPPORTED, SUCCESS, UNKNOWN};
use crate::out::{store, store_answer, store_text};
use crate::session::{Target, about, about_any};

/// An H100 by its PCI identifier.
const PCI_DEVICE_ID: c_uint = 0x2330_10de;

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUUID(
    device: nvmlDevice_t,
    uuid: *mut c_char,
    length: c_uint,
) -> Code {
    about_any("nvmlDeviceGetUUID", device, |it| {
        let recorded = it.recorded_instance().map(|it| &it.uuid);
        let simulated = it.instance().map(|it| &it.uuid);
        let own = recorded.or(simulated).unwrap_or(&it.gpu().uuid);
        // SAFETY: nvml.h asks the caller for `length` bytes.
        unsafe { store_text(uuid, length, own) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetName(
    device: nvmlDevice_t,
    name: *mut c_char,
    length: c_uint,
) -> Code {
    about_any("nvmlDeviceGetName", device, |it| {
        let Some(own) = name_of(it) else { return NOT_SUPPORTED };
        // SAFETY: nvml.h asks the caller for `length` bytes.
        unsafe { store_text(name, length, &own) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetIndex(device: nvmlDevice_t, index: *mut c_uint) -> Code {
    about("nvmlDeviceGetIndex", device, |it| {
        let own = match it.recorded() {
            Some(recorded) => recorded.identity.index.ok_or(NOT_SUPPORTED),
            None => Ok(number(it.index)),
        };
        // SAFETY: nvml.h asks the caller for one integer.
        unsafe { store_answer(index, own) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMinorNumber(device: nvmlDevice_t, minor: *mut c_uint) -> Code {
    about("nvmlDeviceGetMinorNumber", device, |it| {
        // SAFETY: nvml.h asks the caller for one integer.
        unsafe { store(minor, number(it.index)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(
    device: nvmlDevice_t,
    pci: *mut nvmlPciInfo_t,
) -> Code {
    about("nvmlDeviceGetPciInfo_v3", device, |it| {
        let bus_id = match it.recorded() {
            Some(recorded) => recorded.identity.pci_bus_id.as_deref(),
            None => Some(&*it.gpu().pci_bus_id),
        };
        let Some(info) = bus_id.and_then(pci_info) else { return UNKNOWN };
        // SAFETY: nvml.h asks the caller for one structure.
        unsafe { store(pci, info) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetBrand(device: nvmlDevice_t, brand: *mut nvmlBrandType_t) -> Code {
    about("nvmlDeviceGetBrand", device, |_| {
        // SAFETY: nvml.h asks the caller for one integer.
        unsafe { store(brand, nvmlBrandType_enum_NVML_BRAND_NVIDIA) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetArchitecture(
    device: nvmlDevice_t,
    architecture: *mut nvmlDeviceArchitecture_t,
) -> Code {
    about("nvmlDeviceGetArchitecture", device, |_| {
        // SAFETY: nvml.h asks the caller for one integer.
        unsafe { store(architecture, NVML_DEVICE_ARCH_HOPPER) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: nvmlDevice_t,
    major: *mut c_int,
    minor: *mut c_int,
) -> Code {
    about("nvmlDeviceGetCudaComputeCapability", device, |it| {
        let Some(capability) = capability_of(it) else { return NOT_SUPPORTED };
        // SAFETY: nvml.h asks the caller for one integer.
        if unsafe { store(major, capability.0) } != SUCCESS {
            return INVALID_ARGUMENT;
        }
        // SAFETY: as above.
        unsafe { store(minor, capability.1) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetNumaNodeId(device: nvmlDevice_t, node: *mut c_uint) -> Code {
    about("nvmlDeviceGetNumaNodeId", device, |it| match numa_node_of(it) {
        // SAFETY: nvml.h asks the caller for one integer.
        Some(number) => unsafe { store(node, number) },
        None => NOT_SUPPORTED,
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMemoryAffinity(
    device: nvmlDevice_t,
    length: c_uint,
    nodes: *mut c_ulong,
    _scope: nvmlAffinityScope_t,
) -> Code {
    about("nvmlDeviceGetMemoryAffinity", device, |it| match numa_node_of(it) {
        Some(0..64) if length == 0 => INVALID_ARGUMENT,
        // SAFETY: nvml.h asks the caller for `length` words, which is at least one.
        Some(number @ 0..64) => unsafe { store(nodes, 1 << number) },
        Some(_) | None => NOT_SUPPORTED,
    })
}

/// Of an instance: the device's, and its profile.
fn name_of(target: &Target) -> Option<String> {
    let device = match target.recorded() {
        Some(recorded) => recorded.identity.name.clone()?,
        None => target.gpu().name.clone(),
    };
    let profile = match target.recorded_instance() {
        Some(instance) => instance.profile.as_ref(),
        None => target.instance().map(|it| &it.profile),
    };
    Some(profile.map_or(device.clone(), |it| format!("{device} MIG {it}")))
}

fn capability_of(target: &Target) -> Option<(c_int, c_int)> {
    let own = match target.recorded() {
        Some(recorded) => recorded.identity.compute_capability.as_ref()?,
        None => &target.gpu().compute_capability,
    };
    let (major, minor) = own.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn numa_node_of(target: &Target) -> Option<u32> {
    match target.recorded() {
        Some(recorded) => recorded.identity.numa_node,
        None => target.gpu().numa_node,
    }
}

fn number(index: usize) -> c_uint {
    c_uint::try_from(index).expect("a node has few devices")
}

/// `None` for a bus id that is not `DOMAIN:BUS:DEVICE.FUNCTION` in hexadecimal.
fn pci_info(bus_id: &str) -> Option<nvmlPciInfo_t> {
    let hex = |text: &str| c_uint::from_str_radix(text, 16).ok();
    let mut parts = bus_id.split([':', '.']);
    let (domain, bus, slot) = (hex(parts.next()?)?, hex(parts.next()?)?, hex(parts.next()?)?);
    Some(nvmlPciInfo_t {
        busIdLegacy: padded(&format!("{domain:04X}:{bus:02X}:{slot:02X}.0")),
        domain,
        bus,
        device: slot,
        pciDeviceId: PCI_DEVICE_ID,
        pciSubSystemId: PCI_DEVICE_ID,
        busId: padded(bus_id),
    })
}

/// Cut to leave a terminating zero.
fn padded<const N: usize>(text: &str) -> [c_char; N] {
    let mut out = [0; N];
    for (to, from) in out[..N - 1].iter_mut().zip(text.bytes()) {
        *to = from.cast_signed();
    }
    out
}
