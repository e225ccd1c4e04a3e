//! What a device counts and measures beside its use: errors, links, clocks, engines, health.
//!
//! None of it decides whose a device is, and much of it is slow to read (PCIe counters take a driver
//! part of a millisecond), so it is read every ten seconds. `driver.rs` asks, `fields.rs` says which
//! fields the driver has, `decode.rs` what a value means, `odometer.rs` keeps counters that wrap.

pub(crate) mod decode;
pub(crate) mod driver;
pub(crate) mod fields;
pub(crate) mod odometer;

use std::collections::BTreeMap;

use crate::model::figures::Figure;

/// As the driver says it: nothing is judged yet.
pub(crate) type Raw = BTreeMap<Figure, u64>;
