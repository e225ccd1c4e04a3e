//! The calls that are measured, made through pointers as programs make them.

#![expect(unsafe_code, reason = "calls C functions of a library that is opened at run time")]

use std::ffi::{c_int, c_uint, c_void};
use std::path::Path;
use std::time::Duration;

use agent::samplers::cuda::bpf::driver::Moment;
use anyhow::{Context, ensure};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::median;

/// What is called in a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Call {
    /// A launch that is refused at once.
    Launch,
    /// A copy that is refused at once.
    Copy,
    /// An allocation that succeeds, and its release.
    Allocation,
}

impl Call {
    pub(crate) const ALL: [Self; 3] = [Self::Launch, Self::Copy, Self::Allocation];

    pub(crate) fn symbols(self) -> &'static [&'static str] {
        match self {
            Self::Launch => &["cuLaunchKernel"],
            Self::Copy => &["cuMemcpyHtoD_v2"],
            Self::Allocation => &["cuMemAlloc_v2", "cuMemFree_v2"],
        }
    }

    /// Where our probes are: returns first, as the agent attaches them.
    pub(crate) fn moments(self) -> &'static [Moment] {
        match self {
            Self::Launch | Self::Copy => &[Moment::Entry],
            Self::Allocation => &[Moment::Return, Moment::Entry],
        }
    }
}

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
type CuMemcpyHtoD = unsafe extern "C" fn(u64, *const c_void, usize) -> c_int;
type CuMemAlloc = unsafe extern "C" fn(*mut u64, usize) -> c_int;
type CuMemFree = unsafe extern "C" fn(u64) -> c_int;
type CuInit = unsafe extern "C" fn(c_uint) -> c_int;
type CuCtxCreate = unsafe extern "C" fn(*mut u64, c_uint, c_int) -> c_int;

const BYTES: usize = 4096;
const BATCHES: usize = 9;
const CALLS: u32 = 4_000;

/// An open library.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Library {
    open: &'static libloading::Library,
    launch: CuLaunchKernel,
    copy: CuMemcpyHtoD,
    allocate: CuMemAlloc,
    free: CuMemFree,
}

impl Library {
    /// It stays open until the process ends.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        // SAFETY: what the library runs when it is opened is ours.
        let open = unsafe { libloading::Library::new(path) };
        let open = open.with_context(|| format!("cannot open {}", path.display()))?;
        let open: &libloading::Library = Box::leak(Box::new(open));
        // SAFETY: the signature that cuda.h gives this name.
        let launch = *unsafe { open.get(b"cuLaunchKernel\0") }?;
        // SAFETY: as above.
        let copy = *unsafe { open.get(b"cuMemcpyHtoD_v2\0") }?;
        // SAFETY: as above.
        let allocate = *unsafe { open.get(b"cuMemAlloc_v2\0") }?;
        // SAFETY: as above.
        let free = *unsafe { open.get(b"cuMemFree_v2\0") }?;
        Ok(Self { open, launch, copy, allocate, free })
    }

    /// Makes a context, so that allocations succeed.
    pub(crate) fn initialise(&self) -> anyhow::Result<()> {
        // SAFETY: the signature that cuda.h gives this name.
        let init: CuInit = *unsafe { self.open.get(b"cuInit\0") }?;
        // SAFETY: as above.
        let create: CuCtxCreate = *unsafe { self.open.get(b"cuCtxCreate_v2\0") }?;
        // SAFETY: it takes flags.
        let code = unsafe { init(0) };
        ensure!(code == 0, "cuInit answers {code}");
        let mut context = 0;
        // SAFETY: room for one context.
        let code = unsafe { create(&raw mut context, 0, 0) };
        ensure!(code == 0, "cuCtxCreate_v2 answers {code}");
        Ok(())
    }

    /// Median over a few batches, after some calls that warm the caches. In time of this thread, so
    /// that what else the machine does is not in it.
    pub(crate) fn nanoseconds_per_call(&self, call: Call) -> anyhow::Result<f64> {
        self.make(call, CALLS / 4);
        let mut batches = Vec::new();
        for _ in 0..BATCHES {
            let began = thread_time()?;
            self.make(call, CALLS);
            let took = thread_time()?.saturating_sub(began);
            batches.push(took.as_secs_f64() * 1e9 / f64::from(CALLS));
        }
        Ok(median(batches))
    }

    fn make(&self, call: Call, calls: u32) {
        for _ in 0..calls {
            let code = match call {
                Call::Launch => self.launch_nothing(),
                // SAFETY: before `cuInit` it is refused before any pointer is looked at.
                Call::Copy => unsafe { (self.copy)(0, std::ptr::null(), BYTES) },
                Call::Allocation => self.allocate_and_free(),
            };
            std::hint::black_box(code);
        }
    }

    fn launch_nothing(&self) -> c_int {
        let nothing = std::ptr::null();
        // SAFETY: a grid without blocks is refused before any pointer is looked at.
        unsafe { (self.launch)(0, 0, 0, 0, 0, 0, 0, 0, 0, nothing, nothing) }
    }

    fn allocate_and_free(&self) -> c_int {
        let mut pointer = 0;
        // SAFETY: room for one device pointer.
        let code = unsafe { (self.allocate)(&raw mut pointer, BYTES) };
        assert_eq!(code, 0, "the stand-in has memory");
        // SAFETY: it takes a number.
        unsafe { (self.free)(pointer) }
    }
}

fn thread_time() -> anyhow::Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    Ok(Duration::from(time.context("the kernel keeps the time of a thread")?))
}
