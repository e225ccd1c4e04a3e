//! Task clocks of threads.

#![expect(unsafe_code, reason = "libc has no wrapper for perf_event_open")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{FromRawFd as _, RawFd};

use crate::model::ids::ProcessId;
use crate::samplers::process::driver::Proc;

/// With more threads than this the scheduler's ticks are exact enough, and descriptors are few.
const MOST_THREADS: usize = 64;

const SOFTWARE: u64 = 1;
const TASK_CLOCK: u64 = 1;
const CLOSE_ON_EXEC: libc::c_ulong = 8;

/// `perf_event_attr` as of its first version.
type Attribute = [u64; 8];

/// Clocks of the threads of some processes. They run from when they were first asked for.
#[derive(Debug, Default)]
pub(crate) struct Stopwatches {
    threads: BTreeMap<ProcessId, BTreeMap<u32, File>>,
}

impl Stopwatches {
    /// Follows the threads that these processes have now, and no others. One that cannot be followed
    /// as a whole has no clock.
    pub(crate) fn follow(&mut self, proc: &Proc, processes: &[ProcessId]) {
        self.threads.retain(|key, _| processes.contains(key));
        for key in processes {
            let clocks = self.threads.remove(key).unwrap_or_default();
            match refresh(clocks, proc, key.tgid) {
                Ok(Some(clocks)) => {
                    self.threads.insert(*key, clocks);
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(tgid = key.tgid, "has no exact CPU time: {error}");
                }
            }
        }
    }

    /// Nanoseconds on a CPU since some moment, by process.
    pub(crate) fn read(&self) -> BTreeMap<ProcessId, u64> {
        let sum = |clocks: &BTreeMap<u32, File>| {
            clocks.values().try_fold(0, |sum: u64, it| Some(sum.wrapping_add(read(it).ok()?)))
        };
        self.threads.iter().filter_map(|(key, clocks)| Some((*key, sum(clocks)?))).collect()
    }
}

fn refresh(
    mut known: BTreeMap<u32, File>,
    proc: &Proc,
    tgid: u32,
) -> io::Result<Option<BTreeMap<u32, File>>> {
    let threads = proc.threads(tgid)?;
    if threads.len() > MOST_THREADS {
        return Ok(None);
    }
    let mut clocks = BTreeMap::new();
    for tid in threads {
        let clock = match known.remove(&tid) {
            Some(clock) => clock,
            None => match open(tid) {
                Ok(clock) => clock,
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
                Err(error) => return Err(error),
            },
        };
        clocks.insert(tid, clock);
    }
    Ok(Some(clocks))
}

fn open(tid: u32) -> io::Result<File> {
    let mut attribute: Attribute = [0; 8];
    attribute[0] = SOFTWARE | (size_of::<Attribute>() as u64) << 32;
    attribute[1] = TASK_CLOCK;
    let (any_cpu, no_group): (RawFd, RawFd) = (-1, -1);
    // SAFETY: the attribute is as long as it says, and outlives the call.
    let opened = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            attribute.as_ptr(),
            tid,
            any_cpu,
            no_group,
            CLOSE_ON_EXEC,
        )
    };
    match RawFd::try_from(opened) {
        // SAFETY: the kernel has just given this descriptor out, and nobody else knows it.
        Ok(opened) if opened >= 0 => Ok(unsafe { File::from_raw_fd(opened) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn read(mut clock: &File) -> io::Result<u64> {
    let mut bytes = [0; 8];
    clock.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::{Proc, ProcessId, Stopwatches};
    use crate::clock;
    use std::path::Path;

    #[test]
    fn a_thread_that_computes_is_on_a_cpu() {
        let key = ProcessId { tgid: std::process::id(), start_ticks: 0 };
        let mut watches = Stopwatches::default();
        watches.follow(&Proc::new(Path::new("/proc")), &[key]);
        // Where performance events are forbidden the scheduler's clock serves.
        let Some(before) = watches.read().get(&key).copied() else { return };
        let begun = clock::boot();
        while clock::boot().since(begun) < 20_000_000 {}
        let ran = watches.read()[&key] - before;
        assert!(ran > 100_000, "{ran} ns of 20 ms");
        watches.follow(&Proc::new(Path::new("/proc")), &[]);
        assert!(watches.read().is_empty());
    }
}
