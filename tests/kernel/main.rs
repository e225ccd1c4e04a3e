//! The eBPF programs in the kernel of this machine, driven by the agent's own code, against the
//! stand-in drivers and a workload that knows what it did.
//!
//! Needs Linux 6.6 or newer with BTF, and root or CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN. Where that
//! is missing these tests fail and say so: a skipped test is green. Those about counts and process life
//! hold from Linux 5.15 on: `cargo xtask check-kernel` runs them on other kernels.

mod bounds;
mod busy;
mod counts;
mod coverage;
mod devices;
mod discovery;
mod expected;
mod governor;
mod harm;
mod life;
mod live;
mod maps;
mod places;
mod rig;
mod soak;
mod survival;
mod truth;
