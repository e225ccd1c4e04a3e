//! Who holds each instance and what is known of their use: readings in, views out.
//!
//! Joins the driver's process lists with the holders and the CUDA counts. No I/O, no clock, and no
//! judgement: what a view means for time is in `accounting.rs`, for the class in `classify.rs`.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::ids::{Holder, InstanceId, ProcessId};
use crate::model::readings::{
    CudaCounts, CudaMemory, CudaProcess, InstanceReading, ProcessReading, Readings,
};
use crate::model::usage::{HolderView, InstanceView, LastLaunch};

/// One view per instance that `next` names. `previous` is the tick before, for what happened since.
#[must_use]
pub fn attribute(
    previous: Option<&Readings>,
    next: &Readings,
) -> BTreeMap<InstanceId, InstanceView> {
    next.nvml
        .devices
        .values()
        .flat_map(|device| &device.instances)
        .map(|instance| (instance.id.clone(), view(previous, next, instance)))
        .collect()
}

/// Kernel and graph launches of one process between two ticks. `None` when silence of the process
/// would not be evidence: tracing is off at an end, or not every libcuda that it maps is hooked.
#[must_use]
pub fn launches_between(
    previous: Option<&Readings>,
    next: &Readings,
    process: ProcessId,
) -> Option<u64> {
    let previous = previous.filter(|it| it.cuda.tracing.on)?;
    let now = traced(next, process)?;
    let before = previous.cuda.processes.get(&process);
    if before.is_some_and(|it| !it.fully_hooked) {
        return None;
    }
    // Every program that it was in between, each with totals of its own.
    let mut before = before.map(|it| it.counts).unwrap_or_default();
    let mut launched = 0_u64;
    let replaced = next.cuda.replaced.iter().filter(|(id, _)| *id == process).map(|(_, it)| it);
    for program in replaced.chain([now]) {
        launched = launched.saturating_add(program.counts.since(&before).launches());
        before = CudaCounts::default();
    }
    Some(launched)
}

fn traced(readings: &Readings, process: ProcessId) -> Option<&CudaProcess> {
    let found = readings.cuda.processes.get(&process)?;
    (readings.cuda.tracing.on && found.fully_hooked).then_some(found)
}

fn view(previous: Option<&Readings>, next: &Readings, instance: &InstanceReading) -> InstanceView {
    let Some(processes) = &instance.processes else {
        return InstanceView { id: instance.id.clone(), holders: None, unresolved_processes: 0 };
    };
    let mut by_holder: BTreeMap<&Holder, Vec<(ProcessId, &ProcessReading)>> = BTreeMap::new();
    let mut unresolved_processes = 0_u32;
    for process in processes {
        match holder_of(next, process) {
            Some((id, holder)) => by_holder.entry(holder).or_default().push((id, process)),
            None => unresolved_processes = unresolved_processes.saturating_add(1),
        }
    }
    let holders = by_holder
        .into_iter()
        .map(|(holder, processes)| holder_view(previous, next, holder, &processes))
        .collect();
    InstanceView { id: instance.id.clone(), holders: Some(holders), unresolved_processes }
}

fn holder_of<'a>(
    readings: &'a Readings,
    process: &ProcessReading,
) -> Option<(ProcessId, &'a Holder)> {
    let id = process.process?;
    Some((id, readings.holders.get(&id)?))
}

fn holder_view(
    previous: Option<&Readings>,
    next: &Readings,
    holder: &Holder,
    processes: &[(ProcessId, &ProcessReading)],
) -> HolderView {
    let launched = processes.iter().map(|(id, _)| launches_between(previous, next, *id));
    HolderView {
        holder: holder.clone(),
        processes: u32::try_from(processes.len()).unwrap_or(u32::MAX),
        memory_bytes: total(processes.iter().map(|(_, it)| it.memory_bytes)),
        sm_weight: total(processes.iter().map(|(_, it)| it.sm_weight)),
        launches: total(launched),
        last_launch: last_launch(next, processes),
        cuda: counts(next, processes),
    }
}

/// The sum; `None` when any part is unknown, because a partial sum would pass for the whole.
pub(crate) fn total(parts: impl IntoIterator<Item = Option<u64>>) -> Option<u64> {
    parts.into_iter().try_fold(0_u64, |sum, part| Some(sum.saturating_add(part?)))
}

fn last_launch(next: &Readings, processes: &[(ProcessId, &ProcessReading)]) -> LastLaunch {
    let mut newest = LastLaunch::Never;
    for (id, _) in processes {
        let Some(process) = traced(next, *id) else { return LastLaunch::Unknown };
        newest = match (newest, process.last_launch) {
            (LastLaunch::At(old), Some(new)) => LastLaunch::At(old.max(new)),
            (_, Some(new)) => LastLaunch::At(new),
            (kept, None) => kept,
        };
    }
    newest
}

/// Totals over the processes that are traced at all; a count that is known stays visible although
/// another process of the holder is not traced.
fn counts(next: &Readings, processes: &[(ProcessId, &ProcessReading)]) -> Option<CudaCounts> {
    processes
        .iter()
        .filter_map(|(id, _)| next.cuda.processes.get(id))
        .map(|it| it.counts)
        .reduce(|sum, it| sum.plus(&it))
}

/// Memory that each holder's processes have allocated now, as their traced calls tell it. `None` = there
/// is one of which that is not known.
#[must_use]
pub fn memory(readings: &Readings) -> BTreeMap<&Holder, Option<CudaMemory>> {
    let cuda = &readings.cuda;
    let lives = |it: &CudaProcess| !it.exited;
    let traced = cuda.processes.iter().filter(|(_, it)| lives(it)).map(|(id, _)| *id);
    let instances = readings.nvml.devices.values().flat_map(|it| &it.instances);
    let listed =
        instances.filter_map(|it| it.processes.as_ref()).flatten().filter_map(|it| it.process);
    let processes: BTreeSet<ProcessId> = traced.chain(listed).collect();
    let mut sums = BTreeMap::new();
    for id in processes {
        let Some(holder) = readings.holders.get(&id) else { continue };
        let process = cuda.processes.get(&id).filter(|_| cuda.tracing.on);
        let memory = process.and_then(|it| it.memory).filter(|it| !it.at_least);
        let sum = sums.entry(holder).or_insert(Some(CudaMemory::default()));
        *sum = sum.zip(memory).map(|(sum, it)| sum.plus(&it));
    }
    sums
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
