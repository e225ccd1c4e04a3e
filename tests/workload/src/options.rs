//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::phases::{Phases, length};

/// Makes a known number of known CUDA driver calls and prints the truth about them.
#[derive(Clone, Debug, clap::Parser)]
pub(crate) struct Options {
    /// The driver library; a name without a slash is searched for as the dynamic linker does.
    #[arg(long, default_value = "libcuda.so.1")]
    pub(crate) library: PathBuf,
    /// Ordinal of the device, among those that CUDA_VISIBLE_DEVICES leaves.
    #[arg(long, default_value_t = 0)]
    pub(crate) device: i32,
    /// Several devices instead: threads go from one to the next with every round, and the truth is
    /// told for each.
    #[arg(long, value_delimiter = ',')]
    pub(crate) devices: Vec<i32>,
    /// Contexts per device between which threads go; the first is the primary one.
    #[arg(long, default_value_t = 1)]
    pub(crate) contexts: usize,
    /// Reset each device's primary context at the end.
    #[arg(long)]
    pub(crate) reset: bool,
    /// Release each device's primary context when the work is done.
    #[arg(long)]
    pub(crate) release: bool,
    /// Device memory to allocate at the start and hold until the end.
    #[arg(long, default_value_t = 0)]
    pub(crate) memory_mib: usize,
    /// In so many allocations.
    #[arg(long, default_value_t = 1)]
    pub(crate) pieces: usize,
    /// Launches per second, over all threads; 0 = none, without `--launches` or `--rounds`.
    #[arg(long, default_value_t = 0)]
    pub(crate) launches_per_second: u64,
    /// Launches in all; with a rate of 0 they are made as fast as they return.
    #[arg(long)]
    pub(crate) launches: Option<u64>,
    /// Launch for so long as fast as anything can, and tell how many each tenth of a second had.
    /// Kernels take no time unless `--kernel-us` says so.
    #[arg(long, value_parser = length)]
    pub(crate) flat_out: Option<Duration>,
    /// With `--flat-out`: compute for about so many nanoseconds (at 3 GHz) before each launch. It is
    /// the same work on every run and whatever else runs on the machine.
    #[arg(long, default_value_t = 0, requires = "flat_out")]
    pub(crate) work_ns: u64,
    /// How long each kernel runs; 0 = as long as the stand-in's scenario says.
    #[arg(long, default_value_t = 0)]
    pub(crate) kernel_us: u32,
    /// A synchronise call after so many launches of a thread; 0 = never.
    #[arg(long, default_value_t = 0)]
    pub(crate) synchronize_every: u64,
    /// Copies per second, over all threads, of every kind in turn.
    #[arg(long, default_value_t = 0)]
    pub(crate) copies_per_second: u64,
    /// Changes of the current context per second, over all threads, through all contexts in turn.
    #[arg(long, default_value_t = 0)]
    pub(crate) switches_per_second: u64,
    /// Each thread makes every known call so often, as fast as they return.
    #[arg(long, default_value_t = 0)]
    pub(crate) rounds: u64,
    /// Each round also has the calls that are counted only where somebody asks for it.
    #[arg(long)]
    pub(crate) extra: bool,
    /// Each round also has the first versions of functions.
    #[arg(long)]
    pub(crate) legacy: bool,
    /// Each round also allocates in a context of its own, and destroys that.
    #[arg(long)]
    pub(crate) implicit: bool,
    /// Each round also hands memory out to others, and gives it back.
    #[arg(long)]
    pub(crate) exports: bool,
    /// Each round also has calls that fail, in every way.
    #[arg(long)]
    pub(crate) fail: bool,
    /// Each round also has a wait in which the driver calls back, and calls inside it.
    #[arg(long)]
    pub(crate) nested: bool,
    /// The calls inside also have the one that they are inside of.
    #[arg(long, requires = "nested")]
    pub(crate) recursive: bool,
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
    /// Have the work done by so many children that end when they have done it, each as a whole. The
    /// truth is that of all of them together.
    #[arg(long, conflicts_with = "fork")]
    pub(crate) churn: Option<u64>,
    /// How many of these children there are at a time.
    #[arg(long, default_value_t = 1)]
    pub(crate) at_a_time: u64,
    /// Overwrite the entries of cuMemAlloc_v2 and cuMemFree_v2 with a jump, as UCX does.
    #[arg(long)]
    pub(crate) patch_entry: Option<PatchEntry>,
    /// At the end become the same program with these arguments, in the same process.
    #[arg(long, allow_hyphen_values = true, value_delimiter = ' ')]
    pub(crate) then: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PatchEntry {
    /// Before the driver is initialised.
    Before,
    /// When SIGUSR2 comes.
    OnSignal,
}

impl Options {
    /// Ordinals of all devices that are used.
    pub(crate) fn ordinals(&self) -> Vec<i32> {
        if self.devices.is_empty() { vec![self.device] } else { self.devices.clone() }
    }
}
