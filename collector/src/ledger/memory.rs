//! What the writer keeps in memory between transactions, and counts in one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::ledger::names::Names;
use crate::ledger::view::View;
use crate::model::ids::LedgerId;

/// What the writer keeps between transactions.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) ledger_id: LedgerId,
    pub(super) max_nodes: usize,
    /// Hours up to this one are final.
    pub(super) closed_through: Option<i64>,
    pub(super) names: Names,
    pub(super) view: View,
    /// Nodes with an open stream, by row id.
    pub(super) connected: HashMap<i64, Connected>,
}

impl Memory {
    /// The stream of a node has ended, unless a later one has taken over.
    pub(super) fn close(&mut self, node: i64, epoch: u64) {
        if self.connected.get(&node).is_some_and(|it| it.epoch == epoch) {
            self.connected.remove(&node);
        }
    }
}

/// A node whose agent is connected.
#[derive(Clone, Debug)]
pub(super) struct Connected {
    pub(super) epoch: u64,
    pub(super) devices: HashSet<Arc<str>>,
}

/// How many records ended how: the reason, or `""` for applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcomes {
    pub(super) applied: u64,
    pub(super) duplicate: u64,
    pub(super) quarantined: BTreeMap<&'static str, u64>,
    pub(super) gaps: u64,
    /// Counts of applied activity that are in no sum.
    pub(super) unknown_counters: u64,
}
