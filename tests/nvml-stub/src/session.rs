//! Which node this library shows, whether it is initialised, and what stands between a call and its
//! answer: the failures and delays that the scenario orders.

use std::ffi::c_void;
use std::fs::File;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gpu_state::node::Node;
use gpu_state::scenario::{Gpu, MigInstance, Scenario, State};
use nvml_wrapper_sys::bindings::nvmlDevice_t;

use crate::codes::{
    Code, DRIVER_NOT_LOADED, GPU_IS_LOST, INVALID_ARGUMENT, NOT_SUPPORTED, RESET_REQUIRED, SUCCESS,
    UNINITIALIZED, UNKNOWN,
};
use crate::recorded;

static SESSION: Mutex<Session> = Mutex::new(Session { users: 0, device: None, node: None });

/// How often a hanging call looks whether it still has to.
const HANG_STEP: Duration = Duration::from_millis(10);

/// Handles are not null and not small, so that an index given as a handle is refused.
const FIRST_HANDLE: usize = 0x7000;
const FIRST_MIG_HANDLE: usize = 0x9000;
const MIG_SLOTS: usize = 16;

#[derive(Debug)]
struct Session {
    /// `nvmlInit` calls without their `nvmlShutdown`.
    users: u32,
    /// Open while there are users, as `/dev/nvidiactl` is: a driver in use cannot be unloaded.
    device: Option<File>,
    /// Closed with the last user, so that a library that is unloaded leaves nothing behind.
    node: Option<Arc<Node>>,
}

/// One device, as one call sees it.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) node: Arc<Node>,
    pub(crate) scenario: Arc<Scenario>,
    pub(crate) index: usize,
    /// Of a MIG instance: its place in the scenario's list.
    pub(crate) slot: Option<usize>,
}

impl Target {
    pub(crate) fn gpu(&self) -> &Gpu {
        &self.scenario.gpus[self.index]
    }

    /// `None` for the device itself.
    pub(crate) fn instance(&self) -> Option<&MigInstance> {
        self.gpu().mig.as_ref()?.get(self.slot?)
    }
}

pub(crate) fn init() -> Code {
    let mut session = SESSION.lock().expect("nothing panics while it is held");
    let node = session.node.clone();
    let Some(node) = node.or_else(|| Node::beside(init as *const c_void).ok().map(Arc::new)) else {
        return DRIVER_NOT_LOADED;
    };
    let Some(scenario) = node.scenario() else { return DRIVER_NOT_LOADED };
    if let Some(code) = scenario.nvml_init_fails {
        return code;
    }
    if session.device.is_none() {
        session.device = node.open_device().ok();
    }
    session.node = Some(node);
    session.users += 1;
    SUCCESS
}

pub(crate) fn shutdown() -> Code {
    let mut session = SESSION.lock().expect("nothing panics while it is held");
    if session.users == 0 {
        return UNINITIALIZED;
    }
    session.users -= 1;
    if session.users == 0 {
        session.device = None;
        session.node = None;
    }
    SUCCESS
}

/// A call about the node.
pub(crate) fn about_node(answer: impl FnOnce(&Scenario) -> Code) -> Code {
    match opened() {
        Ok((_, scenario)) => answer(&scenario),
        Err(code) => code,
    }
}

/// A call about a device, under its exported name. MIG instances do not have it.
pub(crate) fn about(
    call: &str,
    device: nvmlDevice_t,
    answer: impl FnOnce(&Target) -> Code,
) -> Code {
    about_any(call, device, |it| if it.slot.is_none() { answer(it) } else { NOT_SUPPORTED })
}

/// The handle of a MIG instance.
pub(crate) fn mig_handle(index: usize, slot: usize) -> nvmlDevice_t {
    std::ptr::without_provenance_mut(FIRST_MIG_HANDLE + index * MIG_SLOTS + slot)
}

/// The device and the slot that a handle names.
fn named(device: nvmlDevice_t) -> Option<(usize, Option<usize>)> {
    match device.addr().checked_sub(FIRST_MIG_HANDLE) {
        Some(mig) => Some((mig / MIG_SLOTS, Some(mig % MIG_SLOTS))),
        None => Some((device.addr().checked_sub(FIRST_HANDLE)?, None)),
    }
}

/// A call about a device or a MIG instance.
pub(crate) fn about_any(
    call: &str,
    device: nvmlDevice_t,
    answer: impl FnOnce(&Target) -> Code,
) -> Code {
    let (node, scenario) = match opened() {
        Ok(it) => it,
        Err(code) => return code,
    };
    let Some((index, slot)) = named(device) else { return INVALID_ARGUMENT };
    if scenario.gpus.get(index).is_none() {
        return INVALID_ARGUMENT;
    }
    let target = Target { node, scenario, index, slot };
    // A layout that is gone takes its handles along.
    let is_there = target.instance().is_some() || target.recorded_instance().is_some();
    if slot.is_some() && !is_there {
        return INVALID_ARGUMENT;
    }
    hang(&target);
    match refusal(call, target.gpu()) {
        Some(code) => code,
        None => answer(&target),
    }
}

/// The handle of a device, unless the device does not answer.
pub(crate) fn handle(call: &str, find: impl Fn(&Gpu, usize) -> bool) -> Result<nvmlDevice_t, Code> {
    let (_, scenario) = opened()?;
    let index = scenario.gpus.iter().enumerate().position(|(index, gpu)| find(gpu, index));
    let index = index.ok_or(crate::codes::NOT_FOUND)?;
    let gpu = &scenario.gpus[index];
    let lost = gpu.recorded.as_ref().and_then(|it| recorded::refusal(it, "handle"));
    match lost.or_else(|| refusal(call, gpu)) {
        Some(code) => Err(code),
        None => Ok(std::ptr::without_provenance_mut(FIRST_HANDLE + index)),
    }
}

pub(crate) fn node() -> Result<Arc<Node>, Code> {
    let session = SESSION.lock().expect("nothing panics while it is held");
    if session.users == 0 {
        return Err(UNINITIALIZED);
    }
    session.node.clone().ok_or(UNINITIALIZED)
}

fn opened() -> Result<(Arc<Node>, Arc<Scenario>), Code> {
    let node = node()?;
    let scenario = node.scenario().ok_or(UNKNOWN)?;
    Ok((node, scenario))
}

fn refusal(call: &str, gpu: &Gpu) -> Option<Code> {
    match gpu.state {
        State::Lost => Some(GPU_IS_LOST),
        State::ResetRequired => Some(RESET_REQUIRED),
        State::Ok => gpu.nvml_fails.get(call).copied(),
    }
}

/// Waits as long as the scenario says, or until it no longer says so.
fn hang(target: &Target) {
    let mut waited = Duration::ZERO;
    while waited < Duration::from_millis(hang_ms(target)) {
        std::thread::sleep(HANG_STEP);
        waited += HANG_STEP;
    }
}

fn hang_ms(target: &Target) -> u64 {
    let scenario = target.node.scenario();
    scenario.and_then(|it| it.gpus.get(target.index).map(|gpu| gpu.hang_ms)).unwrap_or(0)
}
