//! The call that is measured, made through a pointer as programs make it.

#![expect(unsafe_code, reason = "calls a C function of a library that is opened at run time")]

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};

type CuLaunchKernel = unsafe extern "C" fn(
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

pub(crate) struct Launch(CuLaunchKernel);

impl Launch {
    /// The library stays open until the process ends.
    pub(crate) fn open(library: &Path) -> anyhow::Result<Self> {
        use std::os::unix::ffi::OsStrExt as _;
        let path = CString::new(library.as_os_str().as_bytes()).context("a path with a NUL")?;
        // SAFETY: the path is a C string; what the library runs when it is opened is ours.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        if handle.is_null() {
            bail!("cannot open {}", library.display());
        }
        let name: *const c_char = c"cuLaunchKernel".as_ptr();
        // SAFETY: the handle is open and the name is a C string.
        let symbol = unsafe { libc::dlsym(handle, name) };
        if symbol.is_null() {
            bail!("{} has no cuLaunchKernel", library.display());
        }
        // SAFETY: the function has the signature that cuda.h gives this name.
        Ok(Self(unsafe { std::mem::transmute::<*mut c_void, CuLaunchKernel>(symbol) }))
    }

    /// After a few calls that warm the caches.
    pub(crate) fn nanoseconds_per_call(&self, calls: u32) -> f64 {
        self.make(calls / 20);
        #[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
        let began = Instant::now();
        self.make(calls);
        began.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
    }

    fn make(&self, calls: u32) {
        let nothing = std::ptr::null();
        for _ in 0..calls {
            // SAFETY: a grid without blocks is refused before any pointer is looked at.
            let code = unsafe { (self.0)(0, 0, 0, 0, 0, 0, 0, 0, 0, nothing, nothing) };
            std::hint::black_box(code);
        }
    }
}
