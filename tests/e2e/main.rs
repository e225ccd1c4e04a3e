//! The product end to end: its real binaries, on a simulated node, through their real surfaces.
//!
//! One file per behaviour. Needs root for cgroups and for tracing; without it the tests fail and say
//! so. The stand-ins themselves are tested in `stand_ins`.

mod cause_and_effect;
mod client;
mod counters;
mod failures;
mod grpc;
mod handover;
mod ledger_once;
mod metering;
mod nvml_sampler;
mod offers;
mod page;
mod pid_namespace;
mod privacy;
mod prometheus;
mod recorder;
mod release;
mod self_metrics;
mod stand_ins;
mod suggestions;
mod trouble;
