//! What the governor decides, done to the hooks; and what it estimates, added to the counts.

use std::collections::BTreeMap;

use super::Running;
use super::driver::Kernel;
use super::governor::driver::Governing;
use super::governor::{Budget, Change, Governor};
use super::library::Libraries;
use crate::config;
use crate::model::ids::ProcessId;
use crate::model::readings::{CudaCounts, CudaProcess, Sampling};
use crate::model::units::BootNs;
use crate::samplers::process::driver::Proc;

/// `None` = nothing is bounded: the configuration says so, or this kernel cannot take hooks off
/// quickly.
pub(super) fn start(config: &config::Cuda, kernel: &Kernel, proc: &Proc) -> Option<Governing> {
    let share = u64::try_from(config.budget?.as_micros()).unwrap_or(u64::MAX);
    let budget = Budget { share, cpus: Proc::cpus() };
    let hands = match kernel.hands(proc) {
        Ok(Some(hands)) => hands,
        Ok(None) => {
            tracing::warn!(
                "cuda.budget_percent is not kept: this kernel takes hooks off one by one, which \
                 needs Linux 6.6 to be quick"
            );
            return None;
        }
        Err(error) => {
            tracing::warn!("cuda.budget_percent is not kept: {error}");
            return None;
        }
    };
    match Governing::start(Governor::new(budget, fastrand::u64(..)), hands) {
        Ok(governing) => Some(governing),
        Err(error) => {
            tracing::warn!("cuda.budget_percent is not kept: cannot start a thread: {error}");
            None
        }
    }
}

impl Running {
    /// Which files are hooked now, and what calls cost there.
    pub(super) fn tell_files(&self, libraries: &Libraries) {
        if let Some(governing) = &self.governing {
            governing.lock().hook(libraries.call_costs(self.costs));
        }
    }

    /// Which of them processes map.
    pub(super) fn tell_mappings(&self) {
        if let Some(governing) = &self.governing {
            governing.lock().map(&self.lives.files());
        }
    }

    /// Does whatever the governor has asked for meanwhile, and what failed before.
    pub(super) fn govern_all(&mut self, libraries: &mut Libraries) {
        for (file, groups) in self.unrestored.clone() {
            self.govern(Change::PutOn(file, groups), libraries);
        }
        while let Some(change) = self.governing.as_mut().and_then(|it| it.changes.try_recv().ok()) {
            self.govern(change, libraries);
        }
    }

    pub(super) fn govern(&mut self, change: Change, libraries: &mut Libraries) {
        let Some(governing) = &self.governing else { return };
        match change {
            Change::TakeOff(file, groups) => {
                self.unrestored.remove(&file);
                match libraries.take_off(&mut self.kernel, file, &groups) {
                    Ok(Some(links)) => {
                        for it in links {
                            // The kernel takes its time; the breakpoints go at once.
                            drop(std::thread::spawn(move || drop(it)));
                        }
                    }
                    Ok(None) => return,
                    Err(error) => {
                        tracing::warn!("calls go on being counted: cannot close a gate: {error}");
                        // The governor decides again.
                        if libraries.is_all_on(file) {
                            governing.restored(file);
                        }
                        return;
                    }
                }
                match libraries.target(file) {
                    Some(Ok(target)) => governing.sample(file, groups, target),
                    Some(Err(error)) => tracing::warn!("calls are not counted: {error}"),
                    None => {}
                }
            }
            Change::PutOn(file, groups) => {
                if let Err(error) = libraries.put_on(&mut self.kernel, file, &groups) {
                    tracing::warn!(
                        "hooks could not be put on again, trying at each reading: {error}"
                    );
                    self.unrestored.insert(file, groups);
                    return;
                }
                if self.unrestored.remove(&file).is_some() {
                    tracing::info!("hooks are on again");
                }
                governing.restored(file);
            }
        }
    }

    /// Counts are what was seen, and what is estimated to have happened between two windows.
    pub(super) fn add_missed(
        &self,
        at: BootNs,
        replaced: &mut [(ProcessId, CudaProcess)],
        processes: &mut BTreeMap<ProcessId, CudaProcess>,
    ) {
        let Some(governing) = &self.governing else { return };
        let mut governor = governing.lock();
        // The next program of the process starts from nothing.
        for (process, it) in replaced {
            if let Some(missed) = governor.replace(at, process, it.counts.as_array()) {
                it.estimated = CudaCounts::from(missed);
                it.counts = it.counts.plus(&it.estimated);
            }
        }
        for (process, it) in processes {
            let missed = if it.exited {
                governor.end(at, process, it.counts.as_array())
            } else {
                governor.missed(at, process, it.counts.as_array())
            };
            if let Some(missed) = missed {
                it.estimated = CudaCounts::from(missed);
                it.counts = it.counts.plus(&it.estimated);
            }
        }
    }

    /// Waits of which it is not known how long they took.
    pub(super) fn waits_cut(&self) -> u64 {
        self.governing.as_ref().map_or(0, |it| it.lock().waits_cut())
    }

    pub(super) fn sampling(&self) -> Option<Sampling> {
        let factor = self.governing.as_ref()?.lock().factor()?;
        Some(Sampling {
            factor: f64::from(factor) / 1_000.0,
            reason: "all calls together would cost a process more than cuda.budget_percent of its \
                     time: they are counted in windows, and scaled"
                .to_owned(),
        })
    }
}
