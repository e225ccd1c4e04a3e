//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::phases::Phases;

/// Makes a known number of known CUDA driver calls and prints the truth about them.
#[derive(Clone, Debug, clap::Parser)]
pub(crate) struct Options {
    /// The driver library; a name without a slash is searched for as the dynamic linker does.
    #[arg(long, default_value = "libcuda.so.1")]
    pub(crate) library: PathBuf,
    /// Ordinal of the device, among those that CUDA_VISIBLE_DEVICES leaves.
    #[arg(long, default_value_t = 0)]
    pub(crate) device: i32,
    /// Device memory to allocate at the start and hold until the end.
    #[arg(long, default_value_t = 0)]
    pub(crate) memory_mib: usize,
    /// Launches per second, over all threads; 0 = none, without `--launches` or `--rounds`.
    #[arg(long, default_value_t = 0)]
    pub(crate) launches_per_second: u64,
    /// Launches in all; with a rate of 0 they are made as fast as they return.
    #[arg(long)]
    pub(crate) launches: Option<u64>,
    /// How long each kernel runs; 0 = as long as the stand-in's scenario says.
    #[arg(long, default_value_t = 0)]
    pub(crate) kernel_us: u32,
    /// A synchronise call after so many launches of a thread; 0 = never.
    #[arg(long, default_value_t = 0)]
    pub(crate) synchronize_every: u64,
    /// Copies per second, over all threads, of every kind in turn.
    #[arg(long, default_value_t = 0)]
    pub(crate) copies_per_second: u64,
    /// Each thread makes every known call so often, as fast as they return.
    #[arg(long, default_value_t = 0)]
    pub(crate) rounds: u64,
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: u64,
    /// Call the per-thread-default-stream variants (`_ptsz`, `_ptds`).
    #[arg(long)]
    pub(crate) per_thread: bool,
    /// Ask `cuGetProcAddress_v2` for the functions, as the runtime library does.
    #[arg(long)]
    pub(crate) proc_address: bool,
    /// When to work and when not, over and over: `busy 10s, idle 500ms`.
    #[arg(long, default_value = "")]
    pub(crate) phases: Phases,
    /// When the work is done, keep what is held and wait for a signal.
    #[arg(long)]
    pub(crate) hold: bool,
    /// Fork before the driver is initialised: parent and child both do the work and tell the truth.
    #[arg(long)]
    pub(crate) fork: bool,
    /// At the end become the same program with these arguments, in the same process.
    #[arg(long, allow_hyphen_values = true, value_delimiter = ' ')]
    pub(crate) then: Vec<OsString>,
}
