//! The driver as this process has it initialised, and what every call checks first.
#![expect(unsafe_code, reason = "calls back into C")]

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use gpu_state::node::Node;
use gpu_state::process::Seat;
use gpu_state::scenario::{Scenario, State};

use crate::codes::{Code, INVALID_CONTEXT, NO_DEVICE, NOT_INITIALIZED, SUCCESS, UNKNOWN};
use crate::launches::HostFunction;
use crate::tables::{Tables, device_of};

static DRIVER: OnceLock<Driver> = OnceLock::new();

/// A child of an initialised process has the memory and not the driver.
static FORKED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// This thread's context stack; the last one is current.
    static CONTEXTS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };

    /// Host functions that this thread queued.
    static HOST_FUNCTIONS: RefCell<Vec<Queued>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) node: Node,
    pub(crate) seat: Seat,
    /// Indices on the node of the devices that this process may see, by ordinal.
    pub(crate) visible: Vec<usize>,
    tables: Mutex<Tables>,
}

/// What a call of a process with a current context works on.
pub(crate) struct Scene {
    pub(crate) driver: &'static Driver,
    pub(crate) device: usize,
    pub(crate) scenario: Arc<Scenario>,
}

/// A host function and its data.
type Queued = (HostFunction, *mut c_void);

impl Driver {
    pub(crate) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().expect("nothing panics while it is held")
    }

    fn open() -> Result<Self, Code> {
        let node = Node::beside(initialize as *const c_void).ok().ok_or(NO_DEVICE)?;
        let scenario = node.scenario().ok_or(NO_DEVICE)?;
        let visible = visible(&scenario, visible_devices().as_deref());
        if visible.is_empty() {
            return Err(NO_DEVICE);
        }
        let seat = node.join().ok_or(UNKNOWN)?;
        Ok(Self { node, seat, visible, tables: Mutex::default() })
    }
}

/// `cuInit`: a second time it does nothing.
pub(crate) fn initialize() -> Code {
    static STARTING: Mutex<()> = Mutex::new(());
    if FORKED.load(Ordering::Relaxed) {
        return NOT_INITIALIZED;
    }
    let _starting = STARTING.lock().expect("nothing panics while it is held");
    if DRIVER.get().is_some() {
        return SUCCESS;
    }
    match Driver::open() {
        Ok(driver) => {
            DRIVER.set(driver).expect("one thread at a time starts the driver");
            // SAFETY: the handler only stores to an atomic, which a forked child may do.
            unsafe { libc::pthread_atfork(None, None, Some(after_fork)) };
            SUCCESS
        }
        Err(code) => code,
    }
}

/// The initialised driver, unless the scenario wants this call to fail.
pub(crate) fn enter(call: &str) -> Result<&'static Driver, Code> {
    look(call).map(|(driver, _)| driver)
}

/// The driver and the device of the current context.
pub(crate) fn enter_device(call: &str) -> Result<(&'static Driver, usize), Code> {
    enter_scene(call).map(|it| (it.driver, it.device))
}

/// As above, with the scenario: a launch looks at it once and not three times.
pub(crate) fn enter_scene(call: &str) -> Result<Scene, Code> {
    let (driver, scenario) = look(call)?;
    let device = current().and_then(device_of).ok_or(INVALID_CONTEXT)?;
    match scenario.gpus.get(device).map(|it| it.state) {
        Some(State::Ok) => Ok(Scene { driver, device, scenario }),
        Some(State::Lost | State::ResetRequired) | None => Err(UNKNOWN),
    }
}

fn look(call: &str) -> Result<(&'static Driver, Arc<Scenario>), Code> {
    if FORKED.load(Ordering::Relaxed) {
        return Err(NOT_INITIALIZED);
    }
    let driver = DRIVER.get().ok_or(NOT_INITIALIZED)?;
    let scenario = driver.node.recent_scenario().ok_or(UNKNOWN)?;
    match scenario.cuda_fails.get(call) {
        Some(code) => Err(*code),
        None => Ok((driver, scenario)),
    }
}

pub(crate) fn current() -> Option<u64> {
    CONTEXTS.with_borrow(|it| it.last().copied())
}

/// 0 = none.
pub(crate) fn set_current(context: u64) {
    CONTEXTS.with_borrow_mut(|stack| {
        stack.pop();
        if context != 0 {
            stack.push(context);
        }
    });
}

pub(crate) fn push_current(context: u64) {
    CONTEXTS.with_borrow_mut(|it| it.push(context));
}

pub(crate) fn pop_current() -> Option<u64> {
    CONTEXTS.with_borrow_mut(Vec::pop)
}

pub(crate) fn queue_host_function(function: HostFunction, data: *mut c_void) {
    HOST_FUNCTIONS.with_borrow_mut(|it| it.push((function, data)));
}

/// Calls what this thread queued, in order. It may call the driver, so nothing is held meanwhile.
pub(crate) fn run_host_functions() {
    for (function, data) in HOST_FUNCTIONS.take() {
        // SAFETY: who queued it gave a function that takes this pointer.
        unsafe { function(data) };
    }
}

extern "C" fn after_fork() {
    FORKED.store(true, Ordering::Relaxed);
}

#[expect(clippy::disallowed_methods, reason = "CUDA reads this variable itself")]
fn visible_devices() -> Option<String> {
    std::env::var("CUDA_VISIBLE_DEVICES").ok()
}

/// Devices by ordinal. The list ends at the first name that is not a device, as CUDA's does.
fn visible(scenario: &Scenario, variable: Option<&str>) -> Vec<usize> {
    let Some(variable) = variable else { return (0..scenario.gpus.len()).collect() };
    let find = |name: &str| match name.parse::<usize>() {
        Ok(index) => (index < scenario.gpus.len()).then_some(index),
        Err(_) if name.starts_with("GPU-") => {
            scenario.gpus.iter().position(|it| it.uuid.starts_with(name))
        }
        Err(_) => None,
    };
    variable.split(',').map_while(|it| find(it.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::visible;
    use gpu_state::scenario::Scenario;

    fn check(variable: Option<&str>, expected: &[usize]) {
        let scenario = Scenario::with_gpus(3);
        assert_eq!(visible(&scenario, variable), expected, "{variable:?}");
    }

    #[test]
    fn the_visible_devices_are_those_of_the_variable() {
        let second = &Scenario::with_gpus(3).gpus[1].uuid;
        check(None, &[0, 1, 2]);
        check(Some("2,0"), &[2, 0]);
        check(Some(second), &[1]);
        check(Some("1,7,0"), &[1]);
        check(Some(""), &[]);
        check(Some("-1"), &[]);
    }
}
