//! What the running kernel calls itself, and what can be asked of it.

/// With attach cookies, which tell the functions apart.
const OLDEST: (u32, u32) = (5, 15);
/// With links to many places at once.
const MULTI: (u32, u32) = (6, 6);
/// Whose `CAP_PERFMON` lets one read where processes map what; before, that is `CAP_SYS_PTRACE`.
const MAPPINGS: (u32, u32) = (6, 13);

pub(crate) struct Kernel {
    pub(crate) release: String,
    version: (u32, u32),
}

impl Kernel {
    pub(crate) fn running() -> Self {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
        let release = release.expect("/proc is mounted").trim().to_owned();
        let mut numbers = release.split(['.', '-']).map(|it| it.parse().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        Self { release, version }
    }

    pub(crate) fn is_too_old(&self) -> bool {
        self.version < OLDEST
    }

    /// Whether hooks come and go many at a time, and can be pinned.
    pub(crate) fn has_multi(&self) -> bool {
        self.version >= MULTI
    }

    /// Of an agent that is not root.
    pub(crate) fn capabilities(&self) -> &'static str {
        if !self.has_multi() {
            "+bpf,+perfmon,+sys_ptrace,+sys_admin"
        } else if self.version < MAPPINGS {
            "+bpf,+perfmon,+sys_ptrace"
        } else {
            "+bpf,+perfmon"
        }
    }
}
