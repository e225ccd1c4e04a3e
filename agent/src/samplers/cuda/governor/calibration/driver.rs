//! Functions that begin as the hooked ones do, in a file of their own that only this process maps,
//! and the real programs on them.

#![expect(unsafe_code, reason = "code is mapped and called here")]

use std::ffi::CString;
use std::io::Write as _;
use std::num::NonZero;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::cost;
use crate::clock;
use crate::model::readings::HitCosts;
use crate::samplers::cuda::bpf::driver::{Moment, Places};
use crate::samplers::cuda::bpf::multi::{MultiError, Programs};
use crate::samplers::cuda::driver::KernelError;
use crate::samplers::cuda::governor::driver::let_go;
use crate::samplers::cuda::hooks::{HOOKS, Hook};

/// Why hits could not be measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CalibrationError {
    #[error("there are no functions to measure for this processor")]
    Processor,
    #[error("cannot make a function of its own: {0}")]
    Code(#[from] std::io::Error),
    #[error(transparent)]
    Load(#[from] Box<KernelError>),
    #[error(transparent)]
    Attach(#[from] MultiError),
    #[error("hits cost nothing, which cannot be")]
    Nothing,
}

const PAGE: usize = 4_096;
/// Short ones: the scheduler disturbs few of them, and the middle one is not among these.
const ROUNDS: usize = 31;

/// Offsets of the functions in the page.
const ENTRY: usize = 0;
const PAIR: usize = 64;
const SLOW: usize = 128;

/// `je` to the next instruction, which the kernel emulates; `ret`.
const EMULATED: [u8; 3] = [0x74, 0x00, 0xc3];
/// `cmp eax, 0`, which it must step; `ret`.
const STEPPED: [u8; 6] = [0x3d, 0, 0, 0, 0, 0xc3];

/// What is hooked here: what has no return, and what has one.
const MEASURED: [&str; 2] = ["cuLaunchKernel", "cuCtxSynchronize"];

/// Whether this program is needed.
pub(crate) fn uses(program: &str) -> bool {
    let kinds = MEASURED.into_iter().map(|it| hook(it).kind);
    kinds
        .into_iter()
        .any(|it| it.entry_program() == program || it.return_program() == Some(program))
}

/// Takes some 100 ms, nearly all of which the kernel needs to put hooks on and off. The calls
/// count as this process's, in the maps that the programs were loaded on.
pub(crate) fn measure(programs: &Programs) -> Result<HitCosts, CalibrationError> {
    if !cfg!(target_arch = "x86_64") {
        return Err(CalibrationError::Processor);
    }
    let code = Code::new()?;
    let functions = [(ENTRY, 400), (PAIR, 200), (SLOW, 40)];
    let without = functions.map(|(offset, calls)| code.rounds(offset, calls));
    let links = code.hook(programs)?;
    let with = functions.map(|(offset, calls)| code.rounds(offset, calls));
    let_go(links);
    let [entry_ns, pair_ns, slow_ns] = {
        let pairs = with.into_iter().zip(without).zip(functions);
        let mut costs = pairs.map(|((with, without), (_, calls))| cost(with, without, calls));
        std::array::from_fn(|_| costs.next().unwrap_or(0))
    };
    if [entry_ns, pair_ns, slow_ns].contains(&0) {
        return Err(CalibrationError::Nothing);
    }
    Ok(HitCosts { entry_ns, pair_ns, slow_ns, measured: true })
}

/// One page with the functions.
struct Code {
    file: OwnedFd,
    page: NonNull<libc::c_void>,
}

impl Code {
    fn new() -> Result<Self, CalibrationError> {
        let file = memfd_create(c"gleaner-calibration", MFdFlags::MFD_CLOEXEC)
            .map_err(std::io::Error::from)?;
        let mut bytes = [0; PAGE];
        for (offset, function) in [(ENTRY, &EMULATED[..]), (PAIR, &EMULATED), (SLOW, &STEPPED)] {
            bytes[offset..offset + function.len()].copy_from_slice(function);
        }
        let mut writer = std::fs::File::from(file);
        writer.write_all(&bytes)?;
        let file = OwnedFd::from(writer);
        let length = NonZero::new(PAGE).expect("a page has bytes");
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_EXEC;
        // SAFETY: a new private mapping at an address of the kernel's choice, of a file that nobody
        // else knows.
        let page = unsafe { mmap(None, length, rights, MapFlags::MAP_PRIVATE, &file, 0) }
            .map_err(std::io::Error::from)?;
        Ok(Self { file, page })
    }

    fn hook(&self, programs: &Programs) -> Result<Vec<OwnedFd>, CalibrationError> {
        let path = format!("/proc/self/fd/{}", self.file.as_fd().as_raw_fd());
        let path = CString::new(path).expect("a number and a fixed text hold no zero byte");
        let [launch, wait] = MEASURED.map(hook);
        let mut links = Vec::new();
        for (offset, hook) in [(ENTRY, launch), (PAIR, wait), (SLOW, launch)] {
            let places = Places { offsets: vec![offset as u64], cookies: vec![hook.cookie.0] };
            let returns = hook.kind.return_program().map(|it| (it, Moment::Return));
            let entry = (hook.kind.entry_program(), Moment::Entry);
            for (name, moment) in returns.into_iter().chain([entry]) {
                links.push(programs.attach(name, &path, &places, moment)?);
            }
        }
        Ok(links)
    }

    /// CPU time of each round of calls, in nanoseconds.
    fn rounds(&self, offset: usize, calls: u32) -> Vec<u64> {
        // SAFETY: the page is longer than all offsets.
        let entry = unsafe { self.page.as_ptr().cast::<u8>().add(offset) };
        // SAFETY: a function that takes and returns nothing and changes no register begins there,
        // and the page is mapped as long as `self` lives.
        let function = unsafe { std::mem::transmute::<*mut u8, extern "C" fn()>(entry) };
        let round = |_| {
            let begun = clock::thread_cpu_ns();
            (0..calls).for_each(|_| function());
            clock::thread_cpu_ns().saturating_sub(begun)
        };
        (0..ROUNDS).map(round).collect()
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by `new`, and functions in it are called by methods only.
        if let Err(error) = unsafe { munmap(self.page, PAGE) } {
            tracing::debug!("a page of code stays mapped: {error}");
        }
    }
}

fn hook(symbol: &str) -> &'static Hook {
    HOOKS.iter().find(|it| it.symbol == symbol).expect("a library without it is not hooked")
}
