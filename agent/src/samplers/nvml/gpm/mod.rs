//! How much of a device or instance worked, by its own counters (GPM, from Hopper on).
//!
//! Two samples make a value: the one of this tick and the one before. The counters are read without
//! the lock that profilers take, so that they get in nobody's way. `driver.rs` samples, `decode.rs`
//! says what a value means.

pub(crate) mod decode;
pub(crate) mod driver;

use std::collections::BTreeMap;

use crate::model::figures::Figure;

/// Values as the driver says them, by GPU instance; `None` is a device without MIG.
pub(crate) type Sampled = BTreeMap<Option<u32>, Vec<(Figure, f64)>>;
