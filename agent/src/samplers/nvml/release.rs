//! Letting go of NVML on request, so that the driver can be replaced, cut anew or reset.
//!
//! As long as one thread of ours is in the library the driver cannot be unloaded. Everything is told to
//! end, and what does not end is named: a call into the driver cannot be broken off.

use std::sync::Arc;
use std::time::Duration;

use crate::model::readings::{NvmlReadings, NvmlState};
use crate::model::units::BootNs;
use crate::samplers::nvml::Sampler;
use crate::samplers::nvml::tracked::Tracked;

/// How long is waited for threads to end. Those that wait for errors look once a second whether they
/// should.
const LETTING_GO: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Whoever has one of these may be inside the library, or have it loaded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hold(Arc<()>);

/// What was asked for.
#[derive(Debug)]
pub(super) struct Release {
    until: BootNs,
    /// Until when and by whom, for people.
    terms: String,
}

// === impl Hold ===

impl Hold {
    /// Nobody but its owner has one.
    pub(super) fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

// === impl Release ===

impl Release {
    /// `inside`: what of ours has not come back from the library.
    fn state(&self, inside: &[String]) -> NvmlState {
        let held = match inside {
            [] => "nothing of this agent holds the driver".to_owned(),
            inside => {
                format!("{}; the driver cannot be unloaded until that returns", inside.join(", "))
            }
        };
        NvmlState::Released(format!("NVML is {}: {held}", self.terms))
    }
}

// === impl Sampler ===

impl Sampler {
    /// Lets go of the library until then, and waits a little for its threads. Returns whether all of
    /// it is free; the next reading says what is not. Asked again, it only ends at another time.
    pub async fn release(&mut self, at: BootNs, until: BootNs, terms: String) -> bool {
        tracing::info!("NVML is {terms}");
        self.release = Some(Release { until, terms });
        self.close();
        self.devices.values_mut().for_each(Tracked::release);
        let free = async {
            while !self.is_free(at) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::time::timeout(LETTING_GO, free).await.is_ok()
    }

    /// Opens the library again with the next reading. Returns whether it was released.
    pub fn take(&mut self) -> bool {
        let released = self.release.take().is_some();
        if released {
            self.devices.values_mut().for_each(Tracked::take);
            self.list_at = BootNs::default();
        }
        released
    }

    pub(super) fn take_when_due(&mut self, at: BootNs) {
        if self.release.as_ref().is_some_and(|it| it.until <= at) && self.take() {
            tracing::info!("the release of NVML has ended");
        }
    }

    /// Nothing is asked; what a device was is still known.
    pub(super) fn released_reading(&mut self, at: BootNs) -> Option<NvmlReadings> {
        let inside = self.inside();
        let state = self.release.as_ref()?.state(&inside);
        self.become_state(state.clone());
        Some(self.readings(at, state))
    }

    /// A message may bring a library along.
    fn is_free(&mut self, at: BootNs) -> bool {
        self.receive_waiting(at);
        self.hold.is_alone()
    }

    /// Devices whose thread has not come back; what was closed has no other.
    pub(super) fn inside_devices(&self) -> impl Iterator<Item = String> {
        let devices = self.devices.iter().filter(|(_, it)| it.has_thread());
        devices.map(|(id, _)| format!("GPU {} is still inside a call", id.0))
    }

    /// Who has not come back, for people.
    fn inside(&self) -> Vec<String> {
        let mut inside: Vec<String> = self.inside_devices().collect();
        let listeners = self.events.ending();
        inside.extend(listeners.map(|id| format!("errors of GPU {} are still waited for", id.0)));
        if inside.is_empty() && !self.hold.is_alone() {
            inside.push("the library is still inside a call".to_owned());
        }
        inside
    }
}

#[cfg(test)]
mod tests {
    use super::{Hold, Release};
    use crate::model::readings::NvmlState;
    use crate::model::units::BootNs;

    fn check(inside: &[&str], expected: &str) {
        let release = Release { until: BootNs(1), terms: "released until noon".to_owned() };
        let inside: Vec<String> = inside.iter().map(|it| (*it).to_owned()).collect();
        assert_eq!(release.state(&inside), NvmlState::Released(expected.to_owned()));
    }

    #[test]
    fn who_is_still_inside_is_named() {
        check(&[], "NVML is released until noon: nothing of this agent holds the driver");
        check(
            &["GPU a is still inside a call", "GPU b is still inside a call"],
            "NVML is released until noon: GPU a is still inside a call, GPU b is still inside a \
             call; the driver cannot be unloaded until that returns",
        );
    }

    #[test]
    fn the_last_hold_is_its_owners() {
        let hold = Hold::default();
        let other = hold.clone();
        assert!(!hold.is_alone());
        drop(other);
        assert!(hold.is_alone());
    }
}
