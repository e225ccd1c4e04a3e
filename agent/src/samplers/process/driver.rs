//! Reads `/proc` and the kernel's type information, and hooks process life. Meaning is in
//! `decode.rs` and `probe.rs`.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agent_ebpf::Offsets;
use aya::Ebpf;
use aya::programs::{ProgramError, ProgramFd, RawTracePoint};

use super::decode::{self, FileId};
use super::probe::{self, BtfError};
use crate::model::ids::ProcessId;

/// The kernel gives it this number, fixed since Linux 3.8.
const INITIAL_NAMESPACE: &str = "pid:[4026531836]";

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Program and tracepoint, in the order of attaching: an exit must not be missed for a process that
/// was seen to start.
const TRACEPOINTS: [(&str, &str); 3] = [
    ("process_exit", "sched_process_exit"),
    ("process_fork", "sched_process_fork"),
    ("process_exec", "sched_process_exec"),
];

/// Why process life is not observed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    #[error("cannot read {BTF}: {0}")]
    ReadBtf(#[source] std::io::Error),
    #[error("{BTF} {0}")]
    Btf(#[source] BtfError),
    #[error("this agent sees a PID namespace of its own, the kernel programs see the host's")]
    Namespace,
    #[error("the eBPF object has no program {0}")]
    NoProgram(&'static str),
    #[error("cannot load the eBPF program for the tracepoint {name}: {source}")]
    Load { name: &'static str, source: ProgramError },
    #[error("cannot attach to the tracepoint {name}: {source}")]
    Attach { name: &'static str, source: std::io::Error },
}

/// Where the running kernel keeps what the programs read.
pub(crate) fn offsets() -> Result<Offsets, ProcessError> {
    let bytes = std::fs::read(BTF).map_err(ProcessError::ReadBtf)?;
    probe::offsets(&bytes).map_err(ProcessError::Btf)
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
#[derive(Debug)]
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
        match std::fs::read_link("/proc/self/ns/pid") {
            Ok(own) if own != Path::new(INITIAL_NAMESPACE) => Err(ProcessError::Namespace),
            _ => Ok(()),
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
        // A process may give itself a name that is not UTF-8.
        let stat = std::fs::read(self.folder(tgid).join("stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        Some(ProcessId { tgid, start_ticks: decode::start_ticks(&stat)? })
    }

    /// The user that it runs as.
    pub(crate) fn uid(&self, tgid: u32) -> Option<u32> {
        std::fs::metadata(self.folder(tgid)).ok().map(|it| it.uid())
    }

    /// Every mapped file that calls itself the CUDA driver library, or is `known` to be one.
    pub(crate) fn mapped_libcuda(
        &self,
        tgid: u32,
        known: &BTreeSet<FileId>,
    ) -> Option<BTreeSet<FileId>> {
        let maps = std::fs::read(self.folder(tgid).join("maps")).ok()?;
        let maps = String::from_utf8_lossy(&maps);
        let cuda = decode::mappings(&maps)
            .filter(|it| known.contains(&it.file) || decode::looks_like_libcuda(it.path));
        Some(cuda.map(|it| it.file).collect())
    }

    fn folder(&self, tgid: u32) -> PathBuf {
        self.root.join(tgid.to_string())
    }
}
