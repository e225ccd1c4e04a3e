//! Idle capacity for schedulers.
//!
//! `policy` decides what is offered (pure), `offers` keeps what is offered now, in the order in which it
//! changed (pure), `board` shares that table, and `stream` serves it; `wire` knows the messages. Nothing here measures, and nothing
//! here owns a GPU: an offer is a statement that a scheduler must still check.

pub mod board;
pub mod offers;
pub mod policy;
pub mod stream;
#[cfg(test)]
mod tests;
mod wire;
