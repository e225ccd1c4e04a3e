//! The NVIDIA library: which devices there are and what they say at each tick.
//!
//! No driver is a state, not an error, and is looked at again every few seconds. No call is made from
//! here: `workers.rs` has the threads, `driver.rs` the calls, `probe.rs` what to ask and `decode.rs`
//! what the answers mean. A device that does not answer never delays the others beyond the deadline,
//! and from the next tick on not at all.

pub mod activity;
pub mod answers;
pub mod decode;
pub mod driver;
pub mod events;
pub mod figures;
pub mod gpm;
pub mod health;
pub mod lister;
pub mod probe;
pub mod processes;
pub mod release;
pub mod tracked;
pub mod validity;
pub mod workers;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::config;
use crate::model::ids::{DeviceId, ProcessId};
use crate::model::readings::{NvmlReadings, NvmlState};
use crate::model::units::BootNs;
use crate::samplers::nvml::answers::{Call, Listing, Report};
use crate::samplers::nvml::driver::{Library, MAX_DEVICES};
use crate::samplers::nvml::events::Events;
use crate::samplers::nvml::lister::Lister;
use crate::samplers::nvml::release::{Hold, Release};
use crate::samplers::nvml::tracked::{DeviceStats, Tracked};
use crate::samplers::nvml::workers::{LibraryError, List, Message, Worker};

/// How often a library that is not there is looked for.
const RETRY_NS: u64 = 5_000_000_000;
/// How often the devices are listed again when all could be named.
const LIST_NS: u64 = 30_000_000_000;

const NO_THREAD: &str = "no thread could be started for NVML; it is tried again at the next tick, \
                         raise the limit of tasks of this service";

/// Reads every device once per tick.
#[derive(Debug)]
pub struct Sampler {
    path: PathBuf,
    deadline: Duration,
    /// Whether this agent is in the host's PID namespace, which it never leaves.
    sees_processes: bool,
    messages: Receiver<Message>,
    sender: Sender<Message>,
    /// Given to everything that may be inside the library.
    hold: Hold,
    release: Option<Release>,
    lister: Option<Worker<List>>,
    /// The tick whose list has not come yet.
    listing: Option<BootNs>,
    list_at: BootNs,
    library: Option<Library>,
    /// `None` before the first word about the library.
    state: Option<NvmlState>,
    devices: BTreeMap<DeviceId, Tracked>,
    unlisted: u32,
    /// Messages that were there before this tick asked for anything.
    waited: usize,
    /// Of every call whose answer came with the newest reading.
    durations: Vec<(Call, u64)>,
    errors: BTreeMap<Call, u64>,
    events: Events,
    /// Who records gets every answer as it came; `None` = nobody does.
    heard: Option<Vec<(DeviceId, Report)>>,
}

/// The sampler's own figures. The labels are a closed set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmlStats {
    /// Failed calls since the start, by call. What a device does not offer is not a failure.
    pub errors: BTreeMap<&'static str, u64>,
    pub devices: BTreeMap<DeviceId, DeviceStats>,
    /// Devices that the driver counts and that cannot be read: no permission, hung or lost before
    /// their UUID was known, or more than 64.
    pub unlisted: u32,
    /// Answers that waited for the newest reading.
    pub waiting_answers: usize,
    /// Words of those that wait for errors, likewise.
    pub waiting_events: usize,
    /// Times since the start at which the driver may have reported an error that nobody heard, by
    /// reason.
    pub event_gaps: BTreeMap<&'static str, u64>,
}

/// Names the processes of a reading; those that are gone keep `None`.
pub fn fill_processes(readings: &mut NvmlReadings, identify: impl Fn(u32) -> Option<ProcessId>) {
    let instances = readings.devices.values_mut().flat_map(|it| &mut it.instances);
    for process in instances.flat_map(|it| it.processes.iter_mut().flatten()) {
        process.process = identify(process.tgid);
    }
}

/// The last one shuts the library down, which can block like every call; not here.
fn let_go(library: Library) {
    let shut_down = std::thread::Builder::new().name("nvml-close".to_owned());
    if let Err(error) = shut_down.spawn(move || drop(library)) {
        tracing::warn!(%error, "no thread could be started to close NVML");
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.close();
    }
}

// === impl Sampler ===

impl Sampler {
    /// Opens nothing yet: that begins with the first reading, which also says what is wrong.
    #[must_use]
    pub fn start(config: &config::Nvml) -> Self {
        let (sender, messages) = channel(MAX_DEVICES + 1);
        Self {
            path: config.library.clone(),
            deadline: config.deadline,
            sees_processes: driver::in_host_pid_namespace(),
            messages,
            sender,
            hold: Hold::default(),
            release: None,
            lister: None,
            listing: None,
            list_at: BootNs::default(),
            library: None,
            state: None,
            devices: BTreeMap::new(),
            unlisted: 0,
            waited: 0,
            durations: Vec::new(),
            errors: Call::ALL.into_iter().map(|it| (it, 0)).collect(),
            events: Events::default(),
            heard: None,
        }
    }

    /// One that keeps what it hears, and asks for figures at every tick.
    #[must_use]
    pub(crate) fn start_recording(config: &config::Nvml) -> Self {
        let mut sampler = Self::start(config);
        sampler.heard = Some(Vec::new());
        sampler
    }

    /// Every answer that came in time since this was called last, in the order of their coming.
    pub(crate) fn take_heard(&mut self) -> Vec<(DeviceId, Report)> {
        self.heard.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Asks every device once. Returns when all have answered or at the deadline; it may be dropped
    /// before that, and then loses one tick.
    pub async fn read(&mut self, at: BootNs) -> NvmlReadings {
        self.durations.clear();
        self.receive_waiting(at);
        self.take_when_due(at);
        if let Some(readings) = self.released_reading(at) {
            return readings;
        }
        self.ask_library(at);
        if self.library.is_none() {
            self.wait(at).await;
        }
        if let Some(library) = &self.library {
            for device in self.devices.values_mut() {
                if self.heard.is_some() {
                    device.want_figures();
                }
                device.ask(at, library, &self.sender);
            }
            self.events.listen(library, self.devices.keys());
        }
        self.wait(at).await;
        self.note_silence(at);
        let state = self.state.clone();
        let state = state.unwrap_or_else(|| NvmlState::Failed("NVML was not asked yet".to_owned()));
        self.readings(at, state)
    }

    /// What every device has said by now.
    fn readings(&mut self, at: BootNs, state: NvmlState) -> NvmlReadings {
        self.events.hear(driver::now_us());
        let devices = self.devices.iter_mut().filter_map(|(id, it)| {
            let mut reading = it.reading(at)?;
            self.events.fill(id, &mut reading);
            Some((id.clone(), reading))
        });
        let devices = devices.collect();
        NvmlReadings { state, sees_processes: self.sees_processes, devices }
    }

    #[must_use]
    pub fn stats(&self) -> NvmlStats {
        let devices = self.devices.iter();
        NvmlStats {
            errors: self.errors.iter().map(|(call, count)| (call.as_str(), *count)).collect(),
            devices: devices.map(|(id, it)| (id.clone(), it.stats().clone())).collect(),
            unlisted: self.unlisted,
            waiting_answers: self.waited,
            waiting_events: self.events.waited(),
            event_gaps: self.events.gaps().collect(),
        }
    }

    fn receive_waiting(&mut self, at: BootNs) {
        self.waited = self.messages.len();
        while let Ok(message) = self.messages.try_recv() {
            self.receive(at, message);
        }
    }

    /// How long each call took whose answer came with the newest reading, in nanoseconds.
    pub fn take_durations(&mut self) -> Vec<(Call, u64)> {
        std::mem::take(&mut self.durations)
    }

    /// Until this tick's answers are here, or the deadline.
    async fn wait(&mut self, at: BootNs) {
        let deadline = tokio::time::sleep(self.deadline);
        tokio::pin!(deadline);
        while self.awaits(at) {
            tokio::select! {
                Some(message) = self.messages.recv() => self.receive(at, message),
                () = &mut deadline => return,
            }
        }
    }

    /// A list is waited for only where there is nothing to read without it.
    fn awaits(&self, at: BootNs) -> bool {
        let needs_list = self.library.is_none() && self.listing == Some(at);
        needs_list || self.devices.values().any(|it| it.awaits(at))
    }

    fn receive(&mut self, at: BootNs, message: Message) {
        match message {
            Message::Device(id, report) => self.receive_report(at, &id, *report),
            Message::Library(answer) if self.listing.take().is_some() => match answer {
                Ok((library, listing)) => self.adopt(at, library, listing),
                Err(error) => self.without_list(at, &error),
            },
            // Nobody waits for the list of a library that was closed meanwhile.
            Message::Library(Ok((library, _))) => let_go(library),
            Message::Library(Err(_)) => {}
        }
    }

    fn receive_report(&mut self, at: BootNs, id: &DeviceId, mut report: Report) {
        self.durations.append(&mut report.durations);
        for call in health::failures(report.plan, &report.answers) {
            *self.errors.entry(call).or_default() += 1;
        }
        let refused = report.answers.refused.values();
        let driver_gone = refused.copied().find(|it| it.is_about_the_driver());
        let Some(device) = self.devices.get_mut(id) else { return };
        let copy = self.heard.is_some().then(|| report.clone());
        // A late word may be about a driver that is no longer the one in use.
        if !device.accept(at, report) {
            return;
        }
        if let (Some(heard), Some(copy)) = (&mut self.heard, copy) {
            heard.push((id.clone(), copy));
        }
        if let Some(refusal) = driver_gone {
            self.without_list(at, &LibraryError::List(refusal));
        }
    }

    fn adopt(&mut self, at: BootNs, library: Library, mut listing: Listing) {
        self.durations.append(&mut listing.durations);
        self.become_state(NvmlState::Ok);
        self.library = Some(library);
        self.list_at = at + if listing.unlisted == 0 { LIST_NS } else { RETRY_NS };
        self.unlisted = listing.unlisted;
        for uuid in listing.uuids {
            let id = DeviceId(Arc::from(uuid));
            if self.devices.len() < MAX_DEVICES || self.devices.contains_key(&id) {
                self.devices.entry(id.clone()).or_insert_with(|| Tracked::new(id));
            } else {
                self.unlisted += 1;
            }
        }
    }

    /// The library failed to open or to list. Devices that answer go on; without a driver none does.
    fn without_list(&mut self, at: BootNs, error: &LibraryError) {
        let call = if matches!(error, LibraryError::Open(_)) { Call::Open } else { Call::List };
        let mut state = error.state(&self.path);
        if !matches!(state, NvmlState::Absent(_)) {
            *self.errors.entry(call).or_default() += 1;
        }
        self.list_at = at + RETRY_NS;
        if matches!(error, LibraryError::List(refusal) if refusal.is_about_the_driver()) {
            self.close();
        }
        if let NvmlState::Replaced(text) = &mut state {
            // The dynamic linker gives the library that is loaded, not the one that is new.
            for it in self.inside_devices() {
                *text += &format!("; {it} of the old library");
            }
        }
        if self.library.is_none() {
            self.become_state(state);
        }
    }

    fn ask_library(&mut self, at: BootNs) {
        if self.lister.as_ref().is_some_and(Worker::has_ended) {
            self.lister = None;
            self.listing = None;
        }
        if self.listing.is_some() || at < self.list_at {
            return;
        }
        if self.library.is_some() && self.all_gone() {
            self.reopen(at);
            return;
        }
        if self.lister.is_none() {
            // Half of it, so that the list is here before this tick's own deadline.
            let lister = Lister::new(self.path.clone(), self.hold.clone(), self.deadline / 2);
            self.lister = Worker::library(lister, self.sender.clone()).ok();
        }
        match &self.lister {
            Some(lister) if lister.ask(List) => self.listing = Some(at),
            // The thread of the library that was closed; there is never a second one.
            Some(_) => self.become_state(self.silence(at, at)),
            None => self.become_state(NvmlState::Failed(NO_THREAD.to_owned())),
        }
    }

    fn all_gone(&self) -> bool {
        !self.devices.is_empty() && self.devices.values().all(Tracked::is_gone)
    }

    /// A GPU that was reset is seen again only by a library that was opened after that. Done when
    /// no device answers any more, so that no reading is lost by it.
    fn reopen(&mut self, at: BootNs) {
        tracing::info!("every GPU is lost or needs a reset; NVML is opened afresh");
        self.close();
        self.list_at = at + RETRY_NS;
    }

    /// Lets go of the library and of every thread that uses it. It is unloaded once the last of them
    /// has come back from its call.
    fn close(&mut self) {
        if let Some(library) = self.library.take() {
            let_go(library);
        }
        self.listing = None;
        if let Some(lister) = &mut self.lister {
            lister.close();
        }
        self.events.close(driver::now_us());
        self.devices.values_mut().for_each(Tracked::close);
    }

    /// A library that is not open and does not answer is a failure to tell.
    fn note_silence(&mut self, at: BootNs) {
        if let Some(since) = self.listing.filter(|_| self.library.is_none()) {
            self.become_state(self.silence(since, at));
        }
    }

    fn silence(&self, since: BootNs, at: BootNs) -> NvmlState {
        let path = self.path.display();
        let waited = Duration::from_nanos(at.since(since)).max(self.deadline).as_millis();
        NvmlState::Failed(format!(
            "{path} has not answered for {waited} ms; the GPUs of this node are not metered until \
             it does, processes and CUDA calls still are. Look for NVRM in the kernel's log"
        ))
    }

    fn greet(&self) {
        tracing::info!(library = %self.path.display(), "NVML is open");
        if !self.sees_processes {
            tracing::warn!(
                "the agent is not in the host's PID namespace: who uses a GPU is unknown, the rest \
                 is read. Run it with hostPID, or outside of a container"
            );
        }
    }

    fn become_state(&mut self, state: NvmlState) {
        let kind = self.state.as_ref().map(std::mem::discriminant);
        if kind != Some(std::mem::discriminant(&state)) {
            match &state {
                NvmlState::Ok => self.greet(),
                NvmlState::Absent(text) | NvmlState::Released(text) => tracing::info!("{text}"),
                NvmlState::Failed(text) | NvmlState::Replaced(text) => tracing::warn!("{text}"),
            }
        }
        self.state = Some(state);
    }
}
