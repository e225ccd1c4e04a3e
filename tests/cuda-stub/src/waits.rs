//! Synchronise calls: they sleep until the device has done what this process queued.

use crate::codes::{Code, SUCCESS};
use crate::driver::enter_device;

pub extern "C" fn context() -> Code {
    wait("cuCtxSynchronize")
}

/// All streams are one queue here.
pub extern "C" fn stream(_stream: u64) -> Code {
    wait("cuStreamSynchronize")
}

/// As above: an event is done when everything is.
pub extern "C" fn event(_event: u64) -> Code {
    wait("cuEventSynchronize")
}

fn wait(call: &str) -> Code {
    match enter_device(call) {
        Ok((driver, device)) => {
            driver.node.synchronize(driver.seat, device);
            SUCCESS
        }
        Err(code) => code,
    }
}
