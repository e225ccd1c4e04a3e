//! Why nothing is traced, in words: what failed, what that costs, what to do.

use std::error::Error;

use aya::programs::ProgramError;

use super::driver::{Bounds, KernelError};
use crate::samplers::process::driver::ProcessError;

const COST: &str = "running without per-process CUDA activity: idle time of held GPUs is judged by \
                    NVML alone; metering of allocations is unaffected";

/// On kernels before 6.6.
pub(super) const ONE_BY_ONE: &str = "this kernel puts hooks on and takes them off one by one (Linux 6.6 does many at a time): \
     cuda.budget_percent is not kept, hooks and counts end with the agent, and to stop takes it seconds";

/// For the log, `/status` and `doctor`.
pub(super) fn of(error: &KernelError) -> String {
    if let Some(verdict) = verdict(error) {
        return format!("{verdict}; {COST}");
    }
    let remedy = if is_denied(error) {
        "needs CAP_BPF and CAP_PERFMON, CAP_SYS_ADMIN too where the kernel is older than 6.6, and \
         Linux 5.15 or newer"
    } else {
        match error {
            KernelError::Process(ProcessError::ReadBtf(_) | ProcessError::Btf(_)) => {
                "needs a kernel with type information (CONFIG_DEBUG_INFO_BTF)"
            }
            KernelError::Process(ProcessError::Namespace) => {
                "share the host's PID namespace (Kubernetes: hostPID: true) or set proc_root to \
                 the host's /proc"
            }
            _ => OLDEST,
        }
    };
    format!("{error}; {remedy}; {COST}")
}

const OLDEST: &str = "needs Linux 5.15 or newer with eBPF and uprobes";

/// What the kernel objects to in a program, in place of all that it has to say about it: that is
/// thousands of lines.
fn verdict(error: &KernelError) -> Option<String> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(it) = cause {
        if let Some(ProgramError::LoadError { verifier_log, .. }) = it.downcast_ref() {
            return objection(&verifier_log.to_string());
        }
        cause = it.source();
    }
    None
}

/// `None` = the kernel has not looked at the program.
fn objection(said: &str) -> Option<String> {
    let is_figure = |it: &str| {
        ["processed ", "verification time", "stack depth"]
            .iter()
            .any(|figure| it.starts_with(figure))
    };
    let last = said.lines().rev().map(str::trim).find(|it| !it.is_empty() && !is_figure(it))?;
    // A function of the kernel that it has not.
    let remedy = if said.contains("invalid func") || said.contains("unknown func") {
        OLDEST
    } else {
        "its verifier is of a kind that this version does not know: report it with the kernel's version"
    };
    Some(format!("this kernel refuses a program ({last}); {remedy}"))
}

/// Why configured bounds do not hold.
pub(super) fn of_kept(kept: Bounds) -> String {
    let Bounds { max_processes, max_allocations } = kept;
    format!(
        "there is room for {max_processes} processes and {max_allocations} allocations, as the agent \
         before this one had it, so that nothing that it counted is lost: cuda.max_processes and \
         cuda.max_allocations hold after a stop (SIGTERM) and a start"
    )
}

/// Whether the kernel refused for lack of privilege, somewhere down the chain of causes.
fn is_denied(error: &KernelError) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(it) = cause {
        let io = it.downcast_ref::<std::io::Error>();
        if io.is_some_and(|it| it.kind() == std::io::ErrorKind::PermissionDenied) {
            return true;
        }
        cause = it.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::{COST, objection, of};
    use crate::samplers::cuda::driver::KernelError;
    use crate::samplers::process::driver::ProcessError;
    use std::io::{Error, ErrorKind};

    fn check(error: KernelError, remedy: &str) {
        let text = of(&error);
        assert!(text.contains(remedy) && text.ends_with(COST), "{text}");
    }

    #[test]
    fn each_failure_says_what_to_do() {
        check(KernelError::Read(Error::from_raw_os_error(1)), "needs CAP_BPF and CAP_PERFMON");
        let missing = ProcessError::ReadBtf(ErrorKind::NotFound.into());
        check(KernelError::Process(missing), "CONFIG_DEBUG_INFO_BTF");
        check(KernelError::Process(ProcessError::Namespace), "hostPID: true");
        check(KernelError::NoMap("COUNTERS"), "Linux 5.15");
    }

    #[test]
    fn of_what_the_verifier_says_the_objection_is_told() {
        let said = "0: R1=ctx() R10=fp0\n1: (85) call bpf_x#174\ninvalid func unknown#174\n\
                    processed 1 insns (limit 1000000)\n";
        let told = objection(said).unwrap();
        assert!(told.contains("(invalid func unknown#174); needs Linux 5.15"), "{told}");
        let said = "9: (db) lock *(u64 *)(r0 +0) += r1\nmisaligned access\nstack depth 8\n";
        let told = objection(said).unwrap();
        assert!(told.contains("(misaligned access); its verifier"), "{told}");
        assert_eq!(objection(""), None);
    }
}
