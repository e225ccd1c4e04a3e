//! The driver library as this program calls it, and the count of what it called.
#![expect(unsafe_code, reason = "calls a C ABI")]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::mem::transmute;
use std::path::Path;
use std::ptr::null;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use libloading::Library;
use serde::Serialize;

use crate::calls::{CALLS, PREPARE, UNDO};

/// Asks for per-thread-default-stream variants.
const PER_THREAD: c_ulonglong = 2;

/// Of the driver that the entries are asked for.
const CUDA_VERSION: c_int = 12_040;

type GetProcAddress =
    extern "C" fn(*const c_char, *mut *const c_void, c_int, c_ulonglong, *mut c_uint) -> c_int;
type Kernel = extern "C" fn(
    u64,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    u64,
    *const c_void,
    *const c_void,
) -> c_int;

/// How functions are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lookup {
    pub(crate) per_thread: bool,
    pub(crate) proc_address: bool,
}

/// Entries by the base name of their symbol. The library is never unloaded.
#[derive(Debug)]
pub(crate) struct Cuda {
    entries: BTreeMap<&'static str, Entry>,
    /// Held for reading during a call: whoever has it for writing sees no call under way.
    between_calls: RwLock<()>,
}

/// One function and how often it was called.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As exported, with its variant.
    name: String,
    address: usize,
    calls: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
}

/// What is known of one function.
#[derive(Debug, Serialize)]
pub(crate) struct Counted {
    pub(crate) calls: u64,
    pub(crate) failed: u64,
    /// Of the calls that succeeded.
    pub(crate) bytes: u64,
}

/// `CUlaunchConfig`.
#[derive(Debug)]
#[repr(C)]
struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    stream: u64,
    attributes: *const c_void,
    attribute_count: c_uint,
}

impl Cuda {
    pub(crate) fn open(path: &Path, lookup: Lookup) -> anyhow::Result<Self> {
        // SAFETY: loading a driver runs its initialisers, which is what was asked for.
        let library = unsafe { Library::new(path) }
            .with_context(|| format!("cannot load {}", path.display()))?;
        let library: &'static Library = Box::leak(Box::new(library));
        let variants = CALLS.iter().map(|it| (it.symbol, it.per_thread)).chain(UNDO);
        let plain = PREPARE.iter().map(|it| (*it, ""));
        let mut entries = BTreeMap::new();
        for (symbol, variant) in variants.chain(plain) {
            let variant = if lookup.per_thread { variant } else { "" };
            entries.insert(symbol, Entry::find(library, symbol, variant, lookup.proc_address)?);
        }
        Ok(Self { entries, between_calls: RwLock::new(()) })
    }

    pub(crate) fn entry(&self, symbol: &str) -> &Entry {
        self.entries.get(symbol).expect("`calls` lists every symbol that is called")
    }

    /// Makes one call and counts it once it has returned. `call` gives its result and its bytes.
    pub(crate) fn count(&self, entry: &Entry, call: impl FnOnce() -> (c_int, u64)) -> c_int {
        let _call = self.between_calls.read().expect("nothing panics while it is held");
        let (result, bytes) = call();
        entry.calls.fetch_add(1, Ordering::Relaxed);
        if result == 0 {
            entry.bytes.fetch_add(bytes, Ordering::Relaxed);
        } else {
            entry.failed.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    /// Every function that was called, by its exported name, while no call is under way.
    pub(crate) fn truth(&self) -> BTreeMap<String, Counted> {
        let _quiet = self.between_calls.write().expect("nothing panics while it is held");
        let called = self.entries.values().filter(|it| it.calls.load(Ordering::Relaxed) > 0);
        called.map(|it| (it.name.clone(), it.counted())).collect()
    }

    pub(crate) fn init(&self) -> anyhow::Result<()> {
        self.must("cuInit", |entry| entry.as_word()(0))
    }

    /// The primary context of a device.
    pub(crate) fn retain(&self, ordinal: c_int) -> anyhow::Result<u64> {
        let mut device: c_int = 0;
        self.must("cuDeviceGet", |entry| {
            // SAFETY: the driver's signature of this function.
            let get: extern "C" fn(*mut c_int, c_int) -> c_int =
                unsafe { transmute(entry.address) };
            get(&raw mut device, ordinal)
        })?;
        let mut context = 0;
        self.must("cuDevicePrimaryCtxRetain", |entry| {
            // SAFETY: the driver's signature of this function.
            let retain: extern "C" fn(*mut u64, c_int) -> c_int =
                unsafe { transmute(entry.address) };
            retain(&raw mut context, device)
        })?;
        Ok(context)
    }

    pub(crate) fn set_current(&self, context: u64) -> anyhow::Result<()> {
        self.must("cuCtxSetCurrent", |entry| entry.as_word()(context))
    }

    /// A kernel from a module of its own.
    pub(crate) fn function(&self, name: &str) -> anyhow::Result<u64> {
        let image = format!(
            ".version 6.4\n.target sm_50\n.address_size 64\n.visible .entry {name}() {{ ret; }}\n"
        );
        let image = CString::new(image).context("the kernel's name has no zero in it")?;
        let name = CString::new(name).context("the kernel's name has no zero in it")?;
        let mut module = 0;
        self.must("cuModuleLoadData", |entry| {
            // SAFETY: the driver's signature of this function.
            let load: extern "C" fn(*mut u64, *const c_char) -> c_int =
                unsafe { transmute(entry.address) };
            load(&raw mut module, image.as_ptr())
        })?;
        let mut function = 0;
        self.must("cuModuleGetFunction", |entry| {
            // SAFETY: the driver's signature of this function.
            let get: extern "C" fn(*mut u64, u64, *const c_char) -> c_int =
                unsafe { transmute(entry.address) };
            get(&raw mut function, module, name.as_ptr())
        })?;
        Ok(function)
    }

    /// A recorded event.
    pub(crate) fn event(&self) -> anyhow::Result<u64> {
        let mut event = 0;
        self.must("cuEventCreate", |entry| {
            // SAFETY: the driver's signature of this function.
            let create: extern "C" fn(*mut u64, c_uint) -> c_int =
                unsafe { transmute(entry.address) };
            create(&raw mut event, 0)
        })?;
        self.must("cuEventRecord", |entry| entry.as_two_words()(event, 0))?;
        Ok(event)
    }

    /// Device memory, or the driver's reason.
    pub(crate) fn allocate(&self, bytes: usize) -> anyhow::Result<u64> {
        let entry = self.entry("cuMemAlloc_v2");
        let mut pointer = 0;
        let result =
            self.count(entry, || (entry.as_allocate()(&raw mut pointer, bytes), bytes as u64));
        if result != 0 {
            bail!("cuMemAlloc_v2 of {bytes} bytes returned {result}");
        }
        Ok(pointer)
    }

    fn must(&self, symbol: &str, call: impl FnOnce(&Entry) -> c_int) -> anyhow::Result<()> {
        let entry = self.entry(symbol);
        match self.count(entry, || (call(entry), 0)) {
            0 => Ok(()),
            result => bail!("{symbol} returned {result}"),
        }
    }
}

impl Entry {
    fn find(
        library: &Library,
        symbol: &str,
        variant: &str,
        proc_address: bool,
    ) -> anyhow::Result<Self> {
        let name = format!("{symbol}{variant}");
        let address = if proc_address {
            by_proc_address(library, symbol, !variant.is_empty())?
        } else {
            by_name(library, &name)?
        };
        let (calls, failed, bytes) = Default::default();
        Ok(Self { name, address: address.addr(), calls, failed, bytes })
    }

    fn counted(&self) -> Counted {
        Counted {
            calls: self.calls.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn as_nothing(&self) -> extern "C" fn() -> c_int {
        // SAFETY: the driver's signature of the functions that this is asked for.
        unsafe { transmute(self.address) }
    }

    pub(crate) fn as_word(&self) -> extern "C" fn(u64) -> c_int {
        // SAFETY: as above; an integer is passed in the same register whatever its width.
        unsafe { transmute(self.address) }
    }

    pub(crate) fn as_two_words(&self) -> extern "C" fn(u64, u64) -> c_int {
        // SAFETY: as above.
        unsafe { transmute(self.address) }
    }

    pub(crate) fn as_allocate(&self) -> extern "C" fn(*mut u64, usize) -> c_int {
        // SAFETY: as above.
        unsafe { transmute(self.address) }
    }

    /// Also of the managed one (a flag) and the asynchronous one (a stream).
    pub(crate) fn as_allocate_with(&self) -> extern "C" fn(*mut u64, usize, u64, u64) -> c_int {
        // SAFETY: as above; a callee ignores registers beyond its arguments.
        unsafe { transmute(self.address) }
    }

    pub(crate) fn as_allocate_pitch(
        &self,
    ) -> extern "C" fn(*mut u64, *mut usize, usize, usize, c_uint) -> c_int {
        // SAFETY: as above.
        unsafe { transmute(self.address) }
    }

    pub(crate) fn as_create(
        &self,
    ) -> extern "C" fn(*mut u64, usize, *const c_uint, c_ulonglong) -> c_int {
        // SAFETY: as above.
        unsafe { transmute(self.address) }
    }

    /// Also with a stream.
    pub(crate) fn as_copy(&self) -> extern "C" fn(u64, u64, usize, u64) -> c_int {
        // SAFETY: as above; a callee ignores registers beyond its arguments.
        unsafe { transmute(self.address) }
    }

    /// Also with a stream.
    pub(crate) fn as_copy_peer(&self) -> extern "C" fn(u64, u64, u64, u64, usize, u64) -> c_int {
        // SAFETY: as above.
        unsafe { transmute(self.address) }
    }

    /// One block of one thread.
    pub(crate) fn launch(&self, function: u64) -> c_int {
        // SAFETY: the driver's signature of both functions; the cooperative one has no last argument.
        let kernel: Kernel = unsafe { transmute(self.address) };
        kernel(function, 1, 1, 1, 1, 1, 1, 0, 0, null(), null())
    }

    pub(crate) fn launch_ex(&self, function: u64) -> c_int {
        type LaunchEx =
            extern "C" fn(*const LaunchConfig, u64, *const c_void, *const c_void) -> c_int;
        // SAFETY: the driver's signature of this function.
        let launch: LaunchEx = unsafe { transmute(self.address) };
        let config = LaunchConfig {
            grid: [1; 3],
            block: [1; 3],
            shared_bytes: 0,
            stream: 0,
            attributes: null(),
            attribute_count: 0,
        };
        launch(&raw const config, function, null(), null())
    }
}

fn by_name(library: &Library, name: &str) -> anyhow::Result<*const c_void> {
    let symbol = CString::new(name)?;
    // SAFETY: only the address is taken; the call sites know the signatures.
    let address = unsafe { library.get::<*const c_void>(symbol.as_bytes_with_nul()) };
    Ok(*address.with_context(|| format!("the library has no {name}"))?)
}

fn by_proc_address(
    library: &Library,
    symbol: &str,
    per_thread: bool,
) -> anyhow::Result<*const c_void> {
    // SAFETY: the driver's signature of this function.
    let ask: GetProcAddress = unsafe { transmute(by_name(library, "cuGetProcAddress_v2")?) };
    // Callers ask for the base name; the driver picks the version that fits theirs.
    let base = symbol.strip_suffix("_v2").unwrap_or(symbol);
    let name: &CStr = &CString::new(base)?;
    let flags = if per_thread { PER_THREAD } else { 0 };
    let (mut address, mut status) = (null(), 0);
    match ask(name.as_ptr(), &raw mut address, CUDA_VERSION, flags, &raw mut status) {
        0 => Ok(address),
        result => bail!("cuGetProcAddress_v2 of {base} returned {result}"),
    }
}
