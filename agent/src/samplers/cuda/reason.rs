//! Why nothing is traced, in words: what failed, what that costs, what to do.

use std::error::Error;

use super::driver::{Bounds, KernelError};
use crate::samplers::process::driver::ProcessError;

const COST: &str = "running without per-process CUDA activity: idle time of held GPUs is judged by \
                    NVML alone; metering of allocations is unaffected";

/// For the log, `/status` and `doctor`.
pub(super) fn of(error: &KernelError) -> String {
    let remedy = if is_denied(error) {
        "needs CAP_BPF and CAP_PERFMON, and CAP_SYS_ADMIN too where the kernel is older than 6.6"
    } else {
        match error {
            KernelError::Process(ProcessError::ReadBtf(_) | ProcessError::Btf(_)) => {
                "needs a kernel with type information (CONFIG_DEBUG_INFO_BTF)"
            }
            KernelError::Process(ProcessError::Namespace) => {
                "share the host's PID namespace (Kubernetes: hostPID: true) or set proc_root to \
                 the host's /proc"
            }
            _ => "needs Linux 5.15 or newer with eBPF and uprobes",
        }
    };
    format!("{error}; {remedy}; {COST}")
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
    use super::{COST, of};
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
}
