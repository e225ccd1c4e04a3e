//! What is remembered of one device from tick to tick, and the rules about its thread.
//!
//! One thread per device, one request at a time: a thread that does not come back is left alone and
//! never doubled, and the device is `hung` until it answers a request of the same tick again.

use std::collections::BTreeMap;

use tokio::sync::mpsc::Sender;

use crate::model::figures::Figures;
use crate::model::ids::{DeviceId, InstanceId};
use crate::model::readings::{Counters, DeviceReading, Health, Identity, InstanceReading};
use crate::model::units::BootNs;
use crate::samplers::nvml::activity::Cursor;
use crate::samplers::nvml::answers::{Call, Report};
use crate::samplers::nvml::decode;
use crate::samplers::nvml::driver::{Library, now_us};
use crate::samplers::nvml::figures::odometer::Odometers;
use crate::samplers::nvml::validity::Validity;
use crate::samplers::nvml::workers::{Message, Visit, Worker};
use crate::samplers::nvml::{figures, health};

/// How long a lost device is left in peace, and how often what a device offers is looked at again.
const REST_NS: u64 = 30_000_000_000;

/// How often figures are read: counters lose nothing in between, and gauges that change faster are
/// read at each tick.
const FIGURES_NS: u64 = 10_000_000_000;

/// One device that was listed at least once.
#[derive(Debug)]
pub(crate) struct Tracked {
    id: DeviceId,
    worker: Option<Worker<Visit>>,
    /// Not to be asked, on request.
    released: bool,
    asked: Option<Visit>,
    /// The answer to this tick's request.
    report: Option<(Visit, Report)>,
    /// `None` until it was asked once.
    health: Option<Health>,
    identity: Identity,
    instances: Vec<InstanceId>,
    cursor: Cursor,
    /// Not asked before.
    rest_until: BootNs,
    probe_at: BootNs,
    figures: Figures,
    figures_at: BootNs,
    odometers: Odometers,
    validity: Validity,
    stats: DeviceStats,
}

/// How one device answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceStats {
    /// Time inside the driver for the newest answer; `None` before the first.
    pub last_read_ns: Option<u64>,
    pub read_ns_total: u64,
    pub reads: u64,
    /// Answers that came after their deadline and were thrown away.
    pub late: u64,
    /// What this device, driver or privilege does not offer, or what means nothing here.
    pub not_asked: Vec<&'static str>,
}

// === impl Tracked ===

impl Tracked {
    pub(crate) fn new(id: DeviceId) -> Self {
        Self {
            id,
            worker: None,
            released: false,
            asked: None,
            report: None,
            health: None,
            identity: Identity::default(),
            instances: Vec::new(),
            cursor: Cursor::default(),
            rest_until: BootNs::default(),
            probe_at: BootNs::default(),
            figures: Figures::default(),
            figures_at: BootNs::default(),
            odometers: Odometers::default(),
            validity: Validity::default(),
            stats: DeviceStats::default(),
        }
    }

    pub(crate) fn stats(&self) -> &DeviceStats {
        &self.stats
    }

    /// Lost or in need of a reset: a library that was opened before will not see it come back.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.health, Some(Health::Lost | Health::ResetRequired))
    }

    pub(crate) fn awaits(&self, at: BootNs) -> bool {
        self.asked.is_some_and(|it| it.at == at)
    }

    /// Lets the thread go. Where it hangs, it stays the device's only one.
    pub(crate) fn close(&mut self) {
        if let Some(worker) = &mut self.worker {
            worker.close();
        }
        self.probe_at = BootNs::default();
    }

    /// Figures are asked for at this tick, however long ago that was.
    pub(crate) fn want_figures(&mut self) {
        self.figures_at = BootNs::default();
    }

    /// As `close`; until it is taken again nothing is known of it.
    pub(crate) fn release(&mut self) {
        self.close();
        self.released = true;
        self.rest_until = BootNs::default();
    }

    pub(crate) fn take(&mut self) {
        self.released = false;
    }

    /// Its thread may be inside the library.
    pub(crate) fn has_thread(&self) -> bool {
        self.worker.as_ref().is_some_and(|it| !it.has_ended())
    }

    /// Asks the device for this tick, unless it rests or still owes an answer.
    pub(crate) fn ask(&mut self, at: BootNs, library: &Library, messages: &Sender<Message>) {
        self.forget_ended_worker();
        if self.asked.is_some() || at < self.rest_until {
            return;
        }
        let visit = Visit {
            at,
            last_seen_us: self.cursor.last_seen_us(now_us()),
            slow: at >= self.figures_at,
            probe: at >= self.probe_at,
        };
        if self.worker.is_none() {
            self.worker = Worker::device(self.id.clone(), library.clone(), messages.clone()).ok();
        }
        if self.worker.as_ref().is_some_and(|it| it.ask(visit)) {
            self.asked = Some(visit);
        } else {
            // Shown, although nothing is known of it.
            self.health = Some(Health::Degraded);
        }
    }

    /// Takes an answer. One that is late speaks of another time, and is only counted: false.
    pub(crate) fn accept(&mut self, at: BootNs, report: Report) -> bool {
        self.stats.last_read_ns = Some(report.spent_ns);
        self.stats.read_ns_total = self.stats.read_ns_total.saturating_add(report.spent_ns);
        self.stats.reads += 1;
        let asked = self.asked.take();
        match asked.filter(|it| it.at == at && report.at == at) {
            Some(visit) => self.report = Some((visit, report)),
            None => self.stats.late += 1,
        }
        self.report.is_some()
    }

    /// What this tick knows of the device; `None` before it was asked for the first time.
    pub(crate) fn reading(&mut self, at: BootNs) -> Option<DeviceReading> {
        let before = self.health;
        let (counters, instances) = match self.report.take() {
            Some((visit, report)) => self.decode(visit, &report),
            None => {
                self.health = self.health_unheard();
                self.say_nothing();
                (Counters::default(), self.unmeasured())
            }
        };
        let health = self.health?;
        if before != self.health {
            note_change(&self.id, before, health);
        }
        let (identity, figures) = (self.identity.clone(), self.figures.clone());
        let sources = if self.released { BTreeMap::new() } else { self.validity.sources() };
        Some(DeviceReading {
            at,
            health,
            inside_since: self.asked.map(|it| it.at),
            identity,
            counters,
            figures,
            xids: Vec::new(),
            hears_xids: false,
            sources,
            instances,
        })
    }

    /// A device that was not asked says nothing, and is no better than it was.
    fn health_unheard(&self) -> Option<Health> {
        if self.asked.is_some() {
            return Some(Health::Hung);
        }
        let unheard = if self.released { Health::Released } else { Health::Degraded };
        self.health.map(|it| if self.is_gone() && !self.released { it } else { unheard })
    }

    fn decode(&mut self, visit: Visit, report: &Report) -> (Counters, Vec<InstanceReading>) {
        let answers = &report.answers;
        self.health = Some(health::of_device(report.plan, answers));
        if answers.ended() || answers.refused.contains_key(&Call::Handle) {
            self.rest_until = if self.is_gone() { visit.at + REST_NS } else { visit.at };
            self.probe_at = visit.at;
            self.say_nothing();
            return (Counters::default(), self.unmeasured());
        }
        match &report.identity {
            Some(identity) => {
                self.identity = identity.clone();
                self.probe_at = visit.at + REST_NS;
                self.stats.not_asked = report.plan.not_asked().map(Call::as_str).collect();
            }
            None if health::plan_is_stale(answers) => self.probe_at = visit.at,
            None => {}
        }
        if let Some(raw) = &answers.figures {
            self.figures = figures::decode::figures(raw);
            self.odometers.advance(&mut self.figures);
            self.figures_at = visit.at + FIGURES_NS;
        }
        let activity = self.cursor.consume(visit.last_seen_us, report.now_us, answers);
        let instances = decode::instances(&self.id, report.plan, answers, &activity)
            .unwrap_or_else(|| self.unmeasured());
        self.instances = instances.iter().map(|it| it.id.clone()).collect();
        let counters = decode::counters(report.plan, answers);
        let plan = (report.plan, report.identity.is_some());
        self.validity.advance(plan, answers, &counters, report.now_us);
        (counters, instances)
    }

    /// What a silent device said before says nothing of it now.
    fn say_nothing(&mut self) {
        self.validity.silence();
        self.figures = Figures::default();
        self.figures_at = BootNs::default();
    }

    /// The instances that were last known, with nothing said about them.
    fn unmeasured(&self) -> Vec<InstanceReading> {
        if self.instances.is_empty() {
            let whole = InstanceId { device: self.id.clone(), mig: None };
            return vec![decode::unmeasured(whole)];
        }
        self.instances.iter().cloned().map(decode::unmeasured).collect()
    }

    /// A thread that ended without an answer owes none any more.
    fn forget_ended_worker(&mut self) {
        if self.worker.as_ref().is_some_and(Worker::has_ended) {
            self.worker = None;
            self.asked = None;
        }
    }
}

fn note_change(id: &DeviceId, before: Option<Health>, now: Health) {
    let device = &*id.0;
    match now {
        Health::Ok => tracing::info!(device, ?before, "the GPU answers"),
        Health::Released => tracing::info!(device, ?before, "the GPU is not asked, on request"),
        _ => tracing::warn!(device, ?before, ?now, "the GPU does not answer as it should"),
    }
}
