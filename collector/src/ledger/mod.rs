//! The usage ledger.

pub mod totals;
