//! The driver library: its functions by name, and calling one of them.
#![expect(unsafe_code, reason = "calls a C ABI")]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::mem::transmute;
use std::path::Path;
use std::ptr::null;

use anyhow::{Context, bail};
use libloading::Library;

use crate::calls::{all, asked_as};

/// Asks for per-thread-default-stream variants.
const PER_THREAD: c_ulonglong = 2;

/// Words that a call passes: six in registers, the others on the stack.
pub(crate) type Words = [u64; 14];

type GetProcAddress =
    extern "C" fn(*const c_char, *mut *const c_void, c_int, c_ulonglong, *mut c_uint) -> c_int;

/// Every function of the driver, as it is passed integers and pointers. A callee ignores words
/// beyond its arguments, and an integer fills one word whatever its width.
type Function =
    extern "C" fn(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64) -> c_int;

/// How functions are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lookup {
    pub(crate) per_thread: bool,
    pub(crate) proc_address: bool,
}

/// One function.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As exported, with its variant.
    pub(crate) name: String,
    pub(crate) address: usize,
    /// Its place among all.
    pub(crate) index: usize,
}

/// Every function that this program can call, by the base name of its symbol. What the library
/// lacks is absent. The library is never unloaded.
pub(crate) fn open(path: &Path, lookup: Lookup) -> anyhow::Result<BTreeMap<&'static str, Entry>> {
    // SAFETY: loading a driver runs its initialisers, which is what was asked for.
    let library =
        unsafe { Library::new(path) }.with_context(|| format!("cannot load {}", path.display()))?;
    let library: &'static Library = Box::leak(Box::new(library));
    let variants: BTreeMap<_, _> = all().map(|it| (it.symbol, it.per_thread)).collect();
    let mut entries = BTreeMap::new();
    for (symbol, variant) in variants {
        let variant = if lookup.per_thread { variant } else { "" };
        let name = format!("{symbol}{variant}");
        let address = if lookup.proc_address {
            by_proc_address(library, symbol, !variant.is_empty())?
        } else {
            by_name(library, &name)
        };
        if let Some(address) = address {
            entries.insert(symbol, Entry { name, address, index: entries.len() });
        }
    }
    if entries.is_empty() {
        bail!("{} has no function of the CUDA driver", path.display());
    }
    Ok(entries)
}

impl Entry {
    pub(crate) fn call(&self, words: &Words) -> c_int {
        // SAFETY: `calls` passes each function the arguments of its signature in `cuda.h`.
        let function: Function = unsafe { transmute(self.address) };
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n] = *words;
        function(a, b, c, d, e, f, g, h, i, j, k, l, m, n)
    }
}

fn by_name(library: &Library, name: &str) -> Option<usize> {
    let symbol = CString::new(name).ok()?;
    // SAFETY: only the address is taken; `calls` knows the signatures.
    let address = unsafe { library.get::<*const c_void>(symbol.as_bytes_with_nul()) };
    address.ok().map(|it| it.addr())
}

fn by_proc_address(
    library: &Library,
    symbol: &str,
    per_thread: bool,
) -> anyhow::Result<Option<usize>> {
    let ask = by_name(library, "cuGetProcAddress_v2").context("there is no cuGetProcAddress_v2")?;
    // SAFETY: the driver's signature of this function.
    let ask: GetProcAddress = unsafe { transmute(ask) };
    // Callers ask for the base name; the driver picks the version that fits theirs.
    let base = ["_v2", "_v3", "_v4"].iter().find_map(|it| symbol.strip_suffix(it));
    let name: &CStr = &CString::new(base.unwrap_or(symbol))?;
    let flags = if per_thread { PER_THREAD } else { 0 };
    let (mut address, mut status) = (null(), 0);
    let result = ask(name.as_ptr(), &raw mut address, asked_as(symbol), flags, &raw mut status);
    Ok((result == 0).then_some(address.addr()))
}
