//! The collector, in reading order: configuration, the nouns, what arrives, what is kept, what is
//! shown.

pub mod clock;
pub mod config;
pub mod model;

pub mod ingest;
pub mod ledger;
pub mod state;

pub mod capacity;
pub mod outputs;

pub mod metrics;
pub mod run;
