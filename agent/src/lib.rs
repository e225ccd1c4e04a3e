//! The per-node agent, in reading order: configuration, the nouns, the sources, the pure middle
//! (who uses what, how long, what class), then disk and network.

pub mod config;
pub mod model;

pub mod clock;
pub mod recorder;
pub mod samplers;

pub mod advice;
pub mod attribution;
pub mod classify;

pub mod accounting;
pub mod totals;

pub mod pacing;
pub mod pipeline;
pub mod record;
pub mod spool;
pub mod uplink;

pub mod admin;
pub mod control;
pub mod doctor;
pub mod health;
pub mod metrics;
pub mod run;
pub mod status;
