//! How long the threads of a process were on a CPU, to the microsecond.
//!
//! The CPU clock of another process is brought up to date at the scheduler's ticks only, 1 to 10 ms
//! apart. A window is not longer than that: what the clock says of it is nearly all chance. Task
//! clocks of the kernel's performance events are exact.

pub(crate) mod driver;
