//! Series of the errors that a driver reports by number.
//!
//! `increase()` misses the first of a counter that was not there before, so the time of the newest one
//! has a series too: alerts ask for that.

use crate::exposition::{Labels, Text};
use crate::family::{FLAG, Family, Label, Subject};
use crate::telemetry::v1::{Device, Xid};

const ERRORS: Family = Family::counter(
    "gleaner_gpu_xid_errors_total",
    "Errors that the driver reported since the agent started, by number.",
)
.of(Subject::Device)
.by(&[Label::free("xid")])
.in_unit("errors")
.absent("none with this number was heard of")
.note("NVML events, as they happen; `xid` is `unknown` where the driver does not say.")
.experimental();
const LAST: Family = Family::gauge(
    "gleaner_gpu_xid_last_timestamp_seconds",
    "Unix time at which the agent heard of the newest error with this number.",
)
.of(Subject::Device)
.by(&[Label::free("xid")])
.absent("none with this number was heard of")
.note("Alert on this: `increase()` misses the first error of a kind.")
.experimental();
const HEARD: Family = Family::gauge(
    "gleaner_gpu_xid_heard",
    "1 while errors of the device are listened for; while it is 0, that none is counted means nothing.",
)
.of(Subject::Device)
.in_unit(FLAG)
.absent("never, for a device that the driver ever listed")
.note("0: the device is lost, or its driver reports no errors.")
.experimental();

/// What the driver says where it does not know the number.
const UNKNOWN: u64 = 999;

pub(super) fn families() -> Vec<Family> {
    vec![ERRORS, LAST, HEARD]
}

pub(super) fn write(text: &mut Text, devices: &[(Labels, &Device)]) {
    text.family(ERRORS);
    for (labels, xid) in xids(devices) {
        text.count(&labels, Some(xid.count));
    }
    text.family(LAST);
    for (labels, xid) in xids(devices) {
        if let Ok(nanoseconds) = u128::try_from(xid.last_real_ns) {
            text.seconds(&labels, nanoseconds);
        }
    }
    text.family(HEARD);
    for (labels, device) in devices {
        text.count(labels, Some(u64::from(device.hears_xids)));
    }
}

fn xids<'a>(devices: &'a [(Labels, &'a Device)]) -> impl Iterator<Item = (Labels, &'a Xid)> {
    devices.iter().flat_map(|(labels, device)| {
        device.xids.iter().map(|xid| {
            let code =
                if xid.code == UNKNOWN { "unknown".to_owned() } else { xid.code.to_string() };
            (labels.with("xid", &code), xid)
        })
    })
}
