//! End-to-end tests.

mod nvml_sampler;
