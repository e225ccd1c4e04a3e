//! A libnvidia-ml.so with the real ABI, for tests and the demo.
//!
//! The node that it shows is the one in its own folder (`gpu-state`); layouts and codes are those of
//! `nvml-wrapper-sys`. It exports what the agent can ask for. A call that it does not know is missing
//! from the library, as in an older driver, and so shows as an error and not as a value.
//!
//! Each function keeps the contract of `nvml.h`: a pointer is null, or valid for what the function
//! writes there.

mod codes;
mod engines;
mod events;
mod gauges;
mod gpm;
mod identity;
mod mig;
mod out;
mod processes;
mod recorded;
mod session;
mod system;
