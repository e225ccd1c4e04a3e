//! Reads `/proc` and the kernel's type information, and hooks process life. Meaning is in
//! `decode.rs` and `probe.rs`. The only place that knows what is where in `/proc`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{DirEntryExt, FileExt};
use std::path::{Path, PathBuf};

use agent_ebpf::Offsets;
use aya::Ebpf;
use aya::programs::{ProgramError, ProgramFd, RawTracePoint};

use super::decode::{self, FileId};
use super::probe::{self, BtfError};
use crate::model::ids::ProcessId;

/// The host's, because this agent sees its PID namespace.
const INIT: u32 = 1;

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Program and tracepoint, in the order of attaching: an exit must not be missed for a process that
/// was seen to start.
const TRACEPOINTS: [(&str, &str); 3] = [
    ("process_exit", "sched_process_exit"),
    ("process_fork", "sched_process_fork"),
    ("process_exec", "sched_process_exec"),
];

/// Text of one process that is read: many times what a large one has. A process with more is as one
/// that may not be looked at.
const MOST_TEXT: u64 = 16 * 1024 * 1024;

/// Descriptors of one process that are looked at.
const MOST_DESCRIPTORS: usize = 4_096;

/// Why process life is not observed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    #[error("cannot read {BTF}: {0}")]
    ReadBtf(#[source] io::Error),
    #[error("{BTF} {0}")]
    Btf(#[source] BtfError),
    #[error("this agent sees a PID namespace of its own, the kernel programs see the host's")]
    Namespace,
    #[error("the eBPF object has no program {0}")]
    NoProgram(&'static str),
    #[error("cannot load the eBPF program for the tracepoint {name}: {source}")]
    Load { name: &'static str, source: ProgramError },
    #[error("cannot attach to the tracepoint {name}: {source}")]
    Attach { name: &'static str, source: io::Error },
}

/// Where the running kernel keeps what the programs read.
pub(crate) fn offsets() -> Result<Offsets, ProcessError> {
    let bytes = std::fs::read(BTF).map_err(ProcessError::ReadBtf)?;
    probe::offsets(&bytes).map_err(ProcessError::Btf)
}

/// Names this boot of the kernel: boot-time nanoseconds compare only within it.
pub fn boot_id(proc_root: &Path) -> io::Result<String> {
    let text = std::fs::read_to_string(proc_root.join("sys/kernel/random/boot_id"))?;
    Ok(text.trim().to_owned())
}

/// Whether this process numbers others as the host does; `None` = that cannot be read.
pub(crate) fn in_initial_pid_namespace() -> Option<bool> {
    let link = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(decode::is_initial_pid_namespace(&link.to_string_lossy()))
}

/// A loaded program, and the tracepoint that it is for.
#[derive(Debug)]
pub(crate) struct Tracepoint {
    pub(crate) name: &'static str,
    pub(crate) program: ProgramFd,
}

/// The programs for exec, fork and exit, loaded, in the order of attaching.
pub(crate) fn tracepoints(ebpf: &mut Ebpf) -> Result<Vec<Tracepoint>, ProcessError> {
    let load = |(program, name)| {
        let found = ebpf.program_mut(program).ok_or(ProcessError::NoProgram(program))?;
        let loaded = <&mut RawTracePoint>::try_from(found).and_then(|it| {
            it.load()?;
            Ok(it.fd()?.try_clone()?)
        });
        let program = loaded.map_err(|source| ProcessError::Load { name, source })?;
        Ok(Tracepoint { name, program })
    };
    TRACEPOINTS.into_iter().map(load).collect()
}

/// What `/proc` shows of processes. Every answer may be missing: the process may be gone, or this
/// user may not look.
#[derive(Clone, Debug)]
pub(crate) struct Proc {
    root: PathBuf,
}

impl Proc {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The kernel programs name processes as the initial PID namespace does: `/proc` must, too.
    pub(crate) fn check_namespace(&self) -> Result<(), ProcessError> {
        if self.root != Path::new("/proc") {
            return Ok(()); // somebody mounted the host's for us
        }
        match in_initial_pid_namespace() {
            Some(false) => Err(ProcessError::Namespace),
            Some(true) | None => Ok(()),
        }
    }

    /// Unit of the start times in `/proc`.
    pub(crate) fn ticks_per_second() -> u64 {
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
        ticks.ok().flatten().and_then(|it| u64::try_from(it).ok()).unwrap_or(100)
    }

    /// Processors that are running.
    pub(crate) fn cpus() -> u64 {
        let cpus = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
        cpus.ok().flatten().and_then(|it| u64::try_from(it).ok()).unwrap_or(1).max(1)
    }

    /// This life of a process.
    pub(crate) fn process_id(&self, tgid: u32) -> Option<ProcessId> {
        let stat = self.text(tgid, "stat").ok()?;
        Some(ProcessId { tgid, start_ticks: decode::start_ticks(&stat)? })
    }

    /// The real user, as the namespace of this agent numbers it. Who owns the files in `/proc` is
    /// another question: those of a process that changed its user are root's.
    pub(crate) fn uid(&self, tgid: u32) -> Option<u32> {
        decode::real_uid(&self.text(tgid, "status").ok()?)
    }

    /// Every mapped file that calls itself the CUDA driver library, or is `known` to be one.
    pub(crate) fn mapped_libcuda(
        &self,
        tgid: u32,
        known: &BTreeSet<FileId>,
    ) -> Option<BTreeSet<FileId>> {
        let maps = self.maps(tgid).ok()?;
        let cuda = decode::mappings(&maps)
            .filter(|it| known.contains(&it.file) || decode::looks_like_libcuda(it.path));
        Some(cuda.map(|it| it.file).collect())
    }

    /// The threads of a process.
    pub(crate) fn threads(&self, tgid: u32) -> io::Result<Vec<u32>> {
        let entries = std::fs::read_dir(self.folder(tgid).join("task"))?.flatten();
        Ok(entries.filter_map(|it| it.file_name().to_str()?.parse().ok()).collect())
    }

    /// Every process but the host's init, with a number that no later process of the same PID gets.
    /// Init uses no GPU, and is often guarded more than any other process.
    pub(crate) fn list(&self) -> io::Result<Vec<(u32, u64)>> {
        let entries = std::fs::read_dir(&self.root)?.flatten();
        let process =
            |it: std::fs::DirEntry| Some((it.file_name().to_str()?.parse().ok()?, it.ino()));
        Ok(entries.filter_map(process).filter(|(tgid, _)| *tgid != INIT).collect())
    }

    /// Kernel threads run none.
    pub(crate) fn runs_program(&self, tgid: u32) -> bool {
        let link = std::fs::read_link(self.folder(tgid).join("exe"));
        !link.is_err_and(|it| it.kind() == io::ErrorKind::NotFound)
    }

    /// Whether it has a device of the GPU's driver open; `None` when that cannot be seen. Nothing is
    /// opened or asked of what its descriptors are open on: that might never answer.
    pub(crate) fn holds_gpu(&self, tgid: u32) -> Option<bool> {
        let mut entries = std::fs::read_dir(self.folder(tgid).join("fd")).ok()?;
        for entry in entries.by_ref().take(MOST_DESCRIPTORS) {
            let target = match std::fs::read_link(entry.ok()?.path()) {
                Ok(target) => target,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return None,
                // It was closed just now.
                Err(_) => continue,
            };
            if target.to_str().is_some_and(decode::is_gpu_device) {
                return Some(true);
            }
        }
        entries.next().is_none().then_some(false)
    }

    /// Its mappings. Empty for a kernel thread and for a process that has exited.
    pub(crate) fn maps(&self, tgid: u32) -> io::Result<String> {
        self.text(tgid, "maps")
    }

    /// Its mappings, with what is in memory of each.
    pub(crate) fn smaps(&self, tgid: u32) -> io::Result<String> {
        self.text(tgid, "smaps")
    }

    /// Whether processes can be read here at all.
    pub(crate) fn check_readable(&self) -> Result<(), (PathBuf, io::Error)> {
        let own = self.root.join("self/cgroup");
        std::fs::read(&own).map(drop).map_err(|error| (own, error))
    }

    /// The names of its cgroups.
    pub(crate) fn cgroup(&self, tgid: u32) -> io::Result<String> {
        self.text(tgid, "cgroup")
    }

    /// What the kernel says about single pages of its memory; not what is in them.
    pub(crate) fn pages(&self, tgid: u32) -> io::Result<Pages> {
        let page_bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
        let page_bytes = page_bytes.ok().flatten().and_then(|it| u64::try_from(it).ok());
        let page_bytes = page_bytes.filter(|it| *it > 0).unwrap_or(4_096);
        Ok(Pages { pagemap: File::open(self.folder(tgid).join("pagemap"))?, page_bytes })
    }

    pub(crate) fn folder(&self, tgid: u32) -> PathBuf {
        self.root.join(tgid.to_string())
    }

    fn text(&self, tgid: u32, name: &str) -> io::Result<String> {
        let mut text = Vec::new();
        let file = File::open(self.folder(tgid).join(name))?;
        if file.take(MOST_TEXT).read_to_end(&mut text)? as u64 == MOST_TEXT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // Names of files and of processes need not be UTF-8.
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// `/proc/PID/pagemap`.
#[derive(Debug)]
pub(crate) struct Pages {
    pagemap: File,
    pub(crate) page_bytes: u64,
}

impl Pages {
    /// The entry of the page that an address lies in.
    pub(crate) fn entry(&self, address: u64) -> io::Result<u64> {
        let mut entry = [0; 8];
        self.pagemap.read_exact_at(&mut entry, address / self.page_bytes * 8)?;
        Ok(u64::from_ne_bytes(entry))
    }
}
