//! Which processes are on a device, and how much each of them used it.

pub(crate) mod driver;
