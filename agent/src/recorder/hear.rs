//! One device's answers, put on top of what it had answered before. Values in, values out.

use std::collections::BTreeMap;
use std::sync::Arc;

use recording::{Fabric, Identity, Instance, Memory, Recorded, WHOLE, Word, field};

use crate::model::figures::{FABRIC_FAILED, Figure};
use crate::model::readings;
use crate::samplers::nvml::answers::{self, Answers, Call, FieldSaid, Listed, MigDevice, Report};
use crate::samplers::nvml::figures::Raw;
use crate::samplers::nvml::gpm::{self, Sampled};

use super::names::Names;

/// `nvmlGpuFabricState_t`: a fabric that failed had ended.
const FABRIC_ENDED: u32 = 3;
const NOT_SUPPORTED: u32 = 3;
const SUCCESS: u32 = 0;

/// What was answered replaces what was answered before; what was not asked stays as it was.
pub(super) fn hear(recorded: &mut Recorded, report: &Report, names: &mut Names) {
    let answers = &report.answers;
    if let Some(identity) = &report.identity {
        hear_identity(&mut recorded.identity, identity, names);
    }
    hear_state(recorded, answers);
    // Outside of the host's PID namespace lists leave out who is not visible there: they are no answer.
    if report.plan.lists_processes {
        hear_processes(recorded, report, names);
    }
    if let Some(mig) = &answers.mig {
        let lists_processes = report.plan.lists_processes;
        let instances = mig.iter().map(|it| instance(it, lists_processes, names)).collect();
        answered(recorded, Call::MigDevices);
        recorded.mig = Some(instances);
    }
    if let Some(sampled) = &answers.gpm {
        answered(recorded, Call::Gpm);
        hear_gpm(recorded, sampled);
    }
    if let Some(raw) = &answers.figures {
        hear_figures(recorded, raw);
        hear_fields(recorded, &answers.fields);
    }
    let codes = answers.codes.iter().map(|(call, code)| (call.as_str().to_owned(), *code));
    recorded.refused.extend(codes);
}

fn hear_identity(identity: &mut Identity, new: &readings::Identity, names: &mut Names) {
    // A device that was lost while it was looked up says nothing, and is what it was.
    let text = |it: &Arc<str>| it.as_ref().to_owned();
    *identity = Identity {
        name: new.model.as_ref().map(text).or(identity.name.take()),
        index: new.index.or(identity.index),
        pci_bus_id: new
            .pci_bus_id
            .as_ref()
            .map(|it| names.place(it))
            .or(identity.pci_bus_id.take()),
        compute_capability: new
            .compute_capability
            .as_ref()
            .map(text)
            .or(identity.compute_capability.take()),
        numa_node: new.numa_node.or(identity.numa_node),
        power_limit_mw: new.power_limit_mw.or(identity.power_limit_mw),
    };
}

fn hear_state(recorded: &mut Recorded, answers: &Answers) {
    let utilization = answers.utilization.map(|it| (it.gpu, it.memory));
    let memory = answers.memory.map(memory);
    let energy = answers.energy_mj.map(Word);
    let celsius = answers.temperature_celsius;
    let mut taken = Vec::new();
    taken.extend(take(&mut recorded.mig_on, answers.mig_on, Call::MigMode));
    taken.extend(take(&mut recorded.utilization, utilization, Call::Utilization));
    taken.extend(take(&mut recorded.memory, memory, Call::Memory));
    taken.extend(take(&mut recorded.power_mw, answers.power_mw, Call::Power));
    taken.extend(take(&mut recorded.energy_mj, energy, Call::Energy));
    taken.extend(take(&mut recorded.temperature_celsius, celsius, Call::Temperature));
    taken.extend(take(&mut recorded.sm_clock_mhz, answers.sm_clock_mhz, Call::SmClock));
    let memory_clock = answers.memory_clock_mhz;
    taken.extend(take(&mut recorded.memory_clock_mhz, memory_clock, Call::MemoryClock));
    // Whatever a handle was asked for, the handle was there.
    if !answers.refused.contains_key(&Call::Handle) {
        taken.push(Call::Handle);
    }
    taken.into_iter().for_each(|it| answered(recorded, it));
}

fn hear_processes(recorded: &mut Recorded, report: &Report, names: &mut Names) {
    let answers = &report.answers;
    let mut list = |listed: &Option<Vec<Listed>>| listed.as_deref().map(|it| rows(it, names));
    let lists = [list(&answers.compute), list(&answers.graphics), list(&answers.mps)];
    let [compute, graphics, mps] = lists;
    let taken = [
        take(&mut recorded.compute, compute, Call::ComputeProcesses),
        take(&mut recorded.graphics, graphics, Call::GraphicsProcesses),
        take(&mut recorded.mps, mps, Call::MpsProcesses),
    ];
    taken.into_iter().flatten().for_each(|it| answered(recorded, it));
    // Which of the two calls told of the samples is which of them was asked and not refused. "Nobody was
    // active" is no refusal: a step without samples says so.
    if answers.samples.is_some() || answers.nobody_was_active() {
        let is_refused = answers.codes.contains_key(&Call::ProcessesUtilization);
        let by_newer = report.plan.asks(Call::ProcessesUtilization) && !is_refused;
        let call = if by_newer { Call::ProcessesUtilization } else { Call::ProcessUtilization };
        answered(recorded, call);
    }
}

fn rows(listed: &[Listed], names: &mut Names) -> Vec<(u32, Word)> {
    listed.iter().map(|it| (names.pid(it.pid), Word(it.memory))).collect()
}

fn memory(memory: answers::Memory) -> Memory {
    Memory {
        total: Word(memory.total),
        used: Word(memory.used),
        free: Word(memory.free),
        reserved: memory.reserved.map(Word),
    }
}

fn instance(device: &MigDevice, lists_processes: bool, names: &mut Names) -> Instance {
    let listed = device.processes.as_deref().filter(|_| lists_processes);
    Instance {
        uuid: names.instance(&device.uuid),
        profile: device.identity.profile.as_ref().map(|it| it.as_ref().to_owned()),
        gpu_instance: device.identity.gpu_instance,
        compute_instance: device.identity.compute_instance,
        memory: device.memory.map(memory),
        processes: listed.map(|it| rows(it, names)),
    }
}

/// A metric that had a value and has none now is not a number.
fn hear_gpm(recorded: &mut Recorded, sampled: &Sampled) {
    let known = recorded.gpm.get_or_insert_default();
    for (instance, values) in sampled {
        let key = instance.map_or_else(|| WHOLE.to_owned(), |it| it.to_string());
        let metrics = known.entry(key).or_default();
        metrics.values_mut().for_each(|it| *it = f64::NAN);
        let named = values.iter().filter_map(|(figure, value)| {
            Some((gpm::driver::number(*figure)?.to_string(), *value))
        });
        metrics.extend(named);
    }
}

fn hear_figures(recorded: &mut Recorded, raw: &Raw) {
    let whole = |figure| raw.get(&figure).copied();
    let narrow = |figure| whole(figure).map(|it| u32::try_from(it).unwrap_or(u32::MAX));
    let switch = |figure| whole(figure).map(|it| it == 1);
    let bar1 = whole(Figure::Bar1Total).zip(whole(Figure::Bar1Used));
    let fabric = narrow(Figure::FabricState).map(|state| {
        let failed = u64::from(state) == FABRIC_FAILED;
        let state = if failed { FABRIC_ENDED } else { state };
        Fabric { state, failed, degraded: switch(Figure::FabricDegraded) }
    });
    let taken = [
        take(&mut recorded.encoder, narrow(Figure::EncoderBusy), Call::Encoder),
        take(&mut recorded.decoder, narrow(Figure::DecoderBusy), Call::Decoder),
        take(&mut recorded.jpeg, narrow(Figure::JpegBusy), Call::Jpeg),
        take(&mut recorded.optical_flow, narrow(Figure::OpticalFlowBusy), Call::OpticalFlow),
        take(&mut recorded.video_clock_mhz, narrow(Figure::VideoClock), Call::VideoClock),
        take(&mut recorded.bar1, bar1.map(|(all, used)| (Word(all), Word(used))), Call::Bar1),
        take(&mut recorded.fabric, fabric, Call::Fabric),
        take(&mut recorded.accounting_on, switch(Figure::AccountingOn), Call::AccountingMode),
    ];
    taken.into_iter().flatten().for_each(|it| answered(recorded, it));
}

/// What a device does not have is left out.
fn hear_fields(recorded: &mut Recorded, said: &[FieldSaid]) {
    if !said.is_empty() {
        answered(recorded, Call::Fields);
    }
    for (number, said) in said {
        let (key, question) = (number.to_string(), field(*number));
        match said {
            Ok(value) => {
                clear(&mut recorded.refused, &question);
                recorded.fields.insert(key, Word(*value));
            }
            Err(NOT_SUPPORTED) if !recorded.fields.contains_key(&key) => {}
            Err(code) => drop(recorded.refused.insert(question, *code)),
        }
    }
}

/// The call that gave the new value, where there is one.
fn take<T>(slot: &mut Option<T>, new: Option<T>, call: Call) -> Option<Call> {
    let taken = new.is_some().then_some(call);
    *slot = new.or(slot.take());
    taken
}

fn answered(recorded: &mut Recorded, call: Call) {
    clear(&mut recorded.refused, call.as_str());
}

/// A refusal that is over stays, as success: a step can say so.
fn clear(refused: &mut BTreeMap<String, u32>, question: &str) {
    if let Some(code) = refused.get_mut(question) {
        *code = SUCCESS;
    }
}
