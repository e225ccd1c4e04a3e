//! Synchronise calls: they sleep until the device has done what this process queued.

use crate::codes::{Code, INVALID_HANDLE, SUCCESS};
use crate::driver::{Driver, enter_device, run_host_functions};

pub extern "C" fn context() -> Code {
    wait("cuCtxSynchronize", |_| true)
}

/// All streams are one queue here.
pub extern "C" fn stream(_stream: u64) -> Code {
    wait("cuStreamSynchronize", |_| true)
}

/// As above: an event is done when everything is.
pub extern "C" fn event(event: u64) -> Code {
    wait("cuEventSynchronize", |driver| driver.tables().has_handle(event))
}

/// The host functions that the thread queued run here. A driver has a thread of its own for them; here
/// they are the one way in which a program is called in the middle of a call that it makes.
fn wait(call: &str, exists: impl FnOnce(&Driver) -> bool) -> Code {
    match enter_device(call) {
        Ok((driver, _)) if !exists(driver) => INVALID_HANDLE,
        Ok((driver, device)) => {
            driver.node.synchronize(driver.seat, device);
            run_host_functions();
            SUCCESS
        }
        Err(code) => code,
    }
}
