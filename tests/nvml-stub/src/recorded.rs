//! A recorded device: it answers what the recording has, and nothing that the recorder did not ask.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::nvmlProcessInfo_t;
use recording::{Instance, Recorded, Word};

use crate::codes::{Code, NOT_SUPPORTED, SUCCESS};
use crate::session::Target;

/// What NVML fills in where there are no MIG instances.
const NO_INSTANCE: c_uint = c_uint::MAX;

/// The question, by the name that the recorder has for it, was refused; or this is its answer.
pub(crate) fn said<T>(recorded: &Recorded, question: &str, value: Option<T>) -> Result<T, Code> {
    match refusal(recorded, question) {
        Some(code) => Err(code),
        None => value.ok_or(NOT_SUPPORTED),
    }
}

pub(crate) fn refusal(recorded: &Recorded, question: &str) -> Option<Code> {
    recorded.refused.get(question).copied().filter(|it| *it != SUCCESS)
}

pub(crate) fn processes(rows: &[(u32, Word)]) -> Vec<nvmlProcessInfo_t> {
    let info = |(pid, memory): &(u32, Word)| nvmlProcessInfo_t {
        pid: *pid,
        usedGpuMemory: memory.0,
        gpuInstanceId: NO_INSTANCE,
        computeInstanceId: NO_INSTANCE,
    };
    rows.iter().map(info).collect()
}

impl Target {
    pub(crate) fn recorded(&self) -> Option<&Recorded> {
        self.gpu().recorded.as_ref()
    }

    /// Of a recorded device: the MIG instance that the handle names.
    pub(crate) fn recorded_instance(&self) -> Option<&Instance> {
        self.recorded()?.mig.as_ref()?.get(self.slot?)
    }

    /// What was recorded, or else what is simulated.
    pub(crate) fn answer<T>(
        &self,
        question: &str,
        recorded: impl FnOnce(&Recorded) -> Option<T>,
        simulated: impl FnOnce(&Self) -> Result<T, Code>,
    ) -> Result<T, Code> {
        match self.recorded() {
            Some(it) => said(it, question, recorded(it)),
            None => simulated(self),
        }
    }
}
