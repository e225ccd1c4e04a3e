//! Initialisation, devices, and the addresses of the entries.
#![expect(unsafe_code, reason = "answers a C ABI")]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulonglong, c_void};

use crate::codes::{Code, INVALID_DEVICE, INVALID_VALUE, NOT_FOUND, SUCCESS, UNKNOWN};
use crate::driver::{Driver, enter, initialize};
use crate::out::{store, store_made};

/// `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`.
const PER_THREAD: c_ulonglong = 2;

/// Suffixes of the versions of a function, newest first, and the CUDA version that brought them.
const VERSIONS: [(c_int, &str); 4] = [(13_000, "_v4"), (11_040, "_v3"), (3_020, "_v2"), (0, "")];

/// Versions that came later than others of their number.
const LATE: [(&str, c_int); 1] = [("cuMemcpyBatchAsync_v2", 13_000)];

pub extern "C" fn init(flags: c_uint) -> Code {
    if flags == 0 { initialize() } else { INVALID_VALUE }
}

pub unsafe extern "C" fn driver_get_version(version: *mut c_int) -> Code {
    let known = enter("cuDriverGetVersion").ok().and_then(|it| it.node.recent_scenario());
    // SAFETY: the caller gives one integer.
    unsafe { store(version, known.map_or(12_040, |it| it.cuda_version)) }
}

pub unsafe extern "C" fn device_get_count(count: *mut c_int) -> Code {
    let devices = || {
        let driver = enter("cuDeviceGetCount")?;
        c_int::try_from(driver.visible.len()).ok().ok_or(INVALID_VALUE)
    };
    // SAFETY: the caller gives one integer.
    unsafe { store_made(count, devices) }
}

pub unsafe extern "C" fn device_get(device: *mut c_int, ordinal: c_int) -> Code {
    let known = || enter("cuDeviceGet").and_then(|it| index_of(it, ordinal)).map(|_| ordinal);
    // SAFETY: the caller gives one integer.
    unsafe { store_made(device, known) }
}

pub unsafe extern "C" fn device_total_mem(bytes: *mut usize, device: c_int) -> Code {
    let total = || {
        let driver = enter("cuDeviceTotalMem_v2")?;
        let memory = driver.node.memory(index_of(driver, device)?).ok_or(INVALID_DEVICE)?;
        usize::try_from(memory.total_bytes).ok().ok_or(INVALID_VALUE)
    };
    // SAFETY: the caller gives one integer.
    unsafe { store_made(bytes, total) }
}

/// Of the whole device: there is no MIG here.
pub unsafe extern "C" fn device_get_uuid(uuid: *mut [u8; 16], device: c_int) -> Code {
    let known = || {
        let driver = enter("cuDeviceGetUuid")?;
        let index = index_of(driver, device)?;
        let scenario = driver.node.recent_scenario().ok_or(UNKNOWN)?;
        let name = &scenario.gpus.get(index).ok_or(INVALID_DEVICE)?.uuid;
        uuid_in(name).ok_or(UNKNOWN)
    };
    // SAFETY: the caller gives sixteen bytes.
    unsafe { store_made(uuid, known) }
}

/// As programs of CUDA 11 ask: without a place for the status.
pub unsafe extern "C" fn get_proc_address_v1(
    symbol: *const c_char,
    function: *mut *mut c_void,
    cuda_version: c_int,
    flags: c_ulonglong,
) -> Code {
    // SAFETY: by the same contract; the status is not wanted.
    unsafe { get_proc_address(symbol, function, cuda_version, flags, std::ptr::null_mut()) }
}

/// The exported entry itself, as the driver gives it: whoever calls through this pointer passes the
/// same first instruction as a caller by name.
pub unsafe extern "C" fn get_proc_address(
    symbol: *const c_char,
    function: *mut *mut c_void,
    cuda_version: c_int,
    flags: c_ulonglong,
    status: *mut c_uint,
) -> Code {
    if symbol.is_null() || function.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: not null, and the caller gives a string.
    let Ok(name) = unsafe { CStr::from_ptr(symbol) }.to_str() else { return NOT_FOUND };
    let found = entry_of(name, cuda_version, flags & PER_THREAD != 0);
    if !status.is_null() {
        // SAFETY: not null; 0 is success, 1 is "symbol not found".
        unsafe { status.write(found.is_none().into()) };
    }
    // SAFETY: not null, and the caller gives one pointer.
    unsafe { function.write(found.unwrap_or(std::ptr::null_mut())) };
    if found.is_some() { SUCCESS } else { NOT_FOUND }
}

/// The node's index of a device that this process sees.
pub(crate) fn index_of(driver: &Driver, ordinal: c_int) -> Result<usize, Code> {
    let ordinal = usize::try_from(ordinal).ok().ok_or(INVALID_DEVICE)?;
    driver.visible.get(ordinal).copied().ok_or(INVALID_DEVICE)
}

fn entry_of(name: &str, cuda_version: c_int, per_thread: bool) -> Option<*mut c_void> {
    let library = own_library()?;
    let suffixes: &[&str] = if per_thread { &["_ptsz", "_ptds", ""] } else { &[""] };
    let since =
        |name: &str, usual: c_int| LATE.iter().find(|it| it.0 == name).map_or(usual, |it| it.1);
    let versions = VERSIONS.iter().map(|(usual, suffix)| (*usual, format!("{name}{suffix}")));
    let versions = versions.filter(|(usual, name)| since(name, *usual) <= cuda_version);
    let mut names =
        versions.flat_map(|(_, name)| suffixes.iter().map(move |suffix| format!("{name}{suffix}")));
    names.find_map(|it| {
        let it = CString::new(it).ok()?;
        // SAFETY: the handle is this library's own, which stays loaded while its code runs.
        let entry = unsafe { libc::dlsym(library, it.as_ptr()) };
        (!entry.is_null()).then_some(entry)
    })
}

/// The bytes of `GPU-00112233-4455-…`.
fn uuid_in(name: &str) -> Option<[u8; 16]> {
    let digits: String = name.strip_prefix("GPU-")?.chars().filter(|it| *it != '-').collect();
    u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes)
}

/// A handle of the library that this code was linked into.
fn own_library() -> Option<*mut c_void> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr takes any address and writes one `Dl_info`.
    if unsafe { libc::dladdr(init as *const c_void, info.as_mut_ptr()) } == 0 {
        return None;
    }
    // SAFETY: zeroed above, and filled by dladdr when it does not return 0.
    let path = unsafe { info.assume_init() }.dli_fname;
    // SAFETY: the dynamic linker's own string; the library is loaded already and its count is raised.
    let library = unsafe { libc::dlopen(path, libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    (!library.is_null()).then_some(library)
}

#[cfg(test)]
mod tests {
    use super::uuid_in;

    #[test]
    fn a_uuid_is_sixteen_bytes() {
        let expected = [0x12, 0, 0, 0, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, 0x0f];
        assert_eq!(uuid_in("GPU-12000000-0000-4000-8000-00000000000f"), Some(expected));
        assert_eq!(uuid_in("MIG-12000000-0000-4000-8000-00000000000f"), None);
    }
}
