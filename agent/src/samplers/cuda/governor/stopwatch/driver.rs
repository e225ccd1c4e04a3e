//! Task clocks of threads.

#![expect(unsafe_code, reason = "libc has no wrapper for perf_event_open")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{FromRawFd as _, RawFd};

use crate::clock;
use crate::model::ids::ProcessId;
use crate::samplers::process::driver::Proc;

/// With more threads than this the scheduler's ticks are exact enough, and descriptors are few.
const MOST_THREADS: usize = 64;

const SOFTWARE: u64 = 1;
const TASK_CLOCK: u64 = 1;
const CLOSE_ON_EXEC: libc::c_ulong = 8;

/// `perf_event_attr` as of its first version.
type Attribute = [u64; 8];

/// CPU time of some processes since they are followed: differences tell, and only those.
#[derive(Debug, Default)]
pub(crate) struct Stopwatches {
    processes: BTreeMap<ProcessId, Stopwatch>,
}

#[derive(Debug)]
struct Stopwatch {
    /// Added to what the clocks show: threads that are gone, and clocks that were used before.
    base: u64,
    /// Of each thread; `None` = that of the process, which goes by ticks.
    threads: Option<BTreeMap<u32, File>>,
}

// === impl Stopwatches ===

impl Stopwatches {
    /// Follows the threads that these processes have now, and no others.
    pub(crate) fn follow(&mut self, proc: &Proc, processes: &[ProcessId]) {
        self.processes.retain(|key, _| processes.contains(key));
        for key in processes {
            let fresh = || Stopwatch { base: 0, threads: Some(BTreeMap::new()) };
            self.processes.entry(*key).or_insert_with(fresh).follow(proc, key.tgid);
        }
    }

    /// Nanoseconds on a CPU since some moment, by process.
    pub(crate) fn read(&self) -> BTreeMap<ProcessId, u64> {
        let read = |(key, it): (&ProcessId, &Stopwatch)| Some((*key, it.read(key.tgid)?));
        self.processes.iter().filter_map(read).collect()
    }
}

// === impl Stopwatch ===

impl Stopwatch {
    fn follow(&mut self, proc: &Proc, tgid: u32) {
        let Some(clocks) = &mut self.threads else { return };
        match refresh(clocks, proc, tgid) {
            Ok(gone_ns) => self.base = self.base.wrapping_add(gone_ns),
            Err(error) => {
                tracing::debug!(tgid, "its CPU time is known by ticks only: {error}");
                let shown = self.read(tgid).unwrap_or(self.base);
                self.threads = None;
                self.base = shown.wrapping_sub(clock::process_cpu_ns(tgid).unwrap_or(0));
            }
        }
    }

    fn read(&self, tgid: u32) -> Option<u64> {
        let shown = match &self.threads {
            Some(clocks) => clocks.values().try_fold(0_u64, |sum, it| Some(sum + read(it).ok()?)),
            None => clock::process_cpu_ns(tgid),
        };
        Some(self.base.wrapping_add(shown?))
    }
}

/// Returns what the threads that are gone have used.
fn refresh(clocks: &mut BTreeMap<u32, File>, proc: &Proc, tgid: u32) -> io::Result<u64> {
    let threads = proc.threads(tgid)?;
    if threads.len() > MOST_THREADS {
        return Err(io::Error::other("it has too many threads"));
    }
    let mut gone_ns = 0;
    clocks.retain(|tid, clock| {
        let stays = threads.contains(tid);
        if !stays {
            gone_ns += read(clock).unwrap_or(0);
        }
        stays
    });
    for tid in threads {
        if clocks.contains_key(&tid) {
            continue;
        }
        match open(tid) {
            Ok(clock) => drop(clocks.insert(tid, clock)),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(gone_ns)
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
    use super::{Proc, ProcessId, Stopwatches, clock};
    use std::path::Path;

    #[test]
    fn a_thread_that_computes_is_on_a_cpu() {
        let key = ProcessId { tgid: std::process::id(), start_ticks: 0 };
        let mut watches = Stopwatches::default();
        watches.follow(&Proc::new(Path::new("/proc")), &[key]);
        let before = watches.read()[&key];
        let begun = clock::boot();
        while clock::boot().since(begun) < 20_000_000 {}
        let ran = watches.read()[&key] - before;
        assert!(ran > 100_000, "{ran} ns of 20 ms");
        watches.follow(&Proc::new(Path::new("/proc")), &[]);
        assert!(watches.read().is_empty());
    }
}
