//! Waiting for one device's errors: every call, and when to make the next.

use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{EventSet, Nvml};

use crate::clock;
use crate::model::ids::DeviceId;
use crate::samplers::nvml::answers::Refusal;
use crate::samplers::nvml::driver::{Library, refusal};
use crate::samplers::nvml::events::{Gap, Teller, Word};

/// How long one call waits. The driver stays loaded for this long after the thread was told to end.
const WAIT_MS: u32 = 1_000;
/// A wait that ends without an event before this did not wait, and would not the next time.
const TOO_SOON_NS: u64 = 100_000_000;
/// Before listening is tried again. Calls about a lost device can block for most of a minute.
const REST: Duration = Duration::from_secs(30);
/// What NVML says for an error whose number it does not know.
const UNKNOWN_XID: u64 = 999;

/// Until the other end of `stop` is dropped, or the driver has no events.
pub(crate) fn listen(library: &Library, id: &DeviceId, stop: &Receiver<()>, teller: &Teller) {
    loop {
        let why = match register(library.nvml(), id) {
            Ok(set) => {
                teller.tell(id, Word::Listening);
                match wait(&set, id, stop, teller) {
                    Some(why) => why,
                    None => return,
                }
            }
            Err(error) => refusal(&error),
        };
        match why {
            Refusal::GpuLost | Refusal::ResetRequired | Refusal::NotFound => {
                teller.tell(id, Word::Ended(Gap::Lost));
            }
            Refusal::NotSupported
            | Refusal::Denied
            | Refusal::DriverGone
            | Refusal::DriverReplaced => {
                teller.tell(id, Word::Ended(Gap::Failed));
                return;
            }
            Refusal::Failed => teller.tell(id, Word::Ended(Gap::Failed)),
        }
        if is_told_to_end_within(stop, REST) {
            return;
        }
    }
}

fn register<'nvml>(nvml: &'nvml Nvml, id: &DeviceId) -> Result<EventSet<'nvml>, NvmlError> {
    let device = nvml.device_by_uuid(&*id.0)?;
    let wanted = device.supported_event_types()? & EventTypes::CRITICAL_XID_ERROR;
    if wanted.is_empty() {
        return Err(NvmlError::NotSupported);
    }
    device.register_events(wanted, nvml.create_event_set()?).map_err(|it| it.error)
}

/// `None` when it was told to end.
fn wait(
    set: &EventSet<'_>,
    id: &DeviceId,
    stop: &Receiver<()>,
    teller: &Teller,
) -> Option<Refusal> {
    while stop.try_recv() != Err(TryRecvError::Disconnected) {
        let started = clock::boot();
        match set.wait(WAIT_MS) {
            Ok(event) => {
                let code = match event.event_data {
                    Some(XidError::Value(code)) => code,
                    Some(XidError::Unknown) => UNKNOWN_XID,
                    None => continue,
                };
                teller.tell(id, Word::Xid { code, real_ns: clock::real_ns() });
            }
            Err(NvmlError::Timeout) => {
                let pause = Duration::from_millis(WAIT_MS.into());
                if clock::boot().since(started) < TOO_SOON_NS && is_told_to_end_within(stop, pause)
                {
                    return None;
                }
            }
            Err(error) => return Some(refusal(&error)),
        }
    }
    None
}

fn is_told_to_end_within(stop: &Receiver<()>, time: Duration) -> bool {
    stop.recv_timeout(time) == Err(RecvTimeoutError::Disconnected)
}
