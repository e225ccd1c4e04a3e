//! One line per thing told, for people or for programs. Pure.

use proto::capacity::v1::{Offer, Position, withdrawn::Reason};
use proto::names;
use serde_json::{Value, json};

use super::told::Told;
use crate::{json, words};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    People,
    Json,
}

// === impl Format ===

impl Format {
    /// `None` for what people need not be told.
    pub(super) fn line(self, told: &Told, at: Option<&Position>, unix_ns: u64) -> Option<String> {
        match self {
            Self::People => people(told).map(|it| format!("{}  {it}", words::clock(unix_ns))),
            Self::Json => {
                let mut value = program(told);
                // One may resume after any object that has a position; nothing was received with these.
                let at = at.filter(|_| !matches!(told, Told::Resumed { .. } | Told::Lost { .. }));
                value["position"] = at.map_or(Value::Null, json::position);
                value["unix_ms"] = (unix_ns / 1_000_000).into();
                Some(value.to_string())
            }
        }
    }
}

fn people(told: &Told) -> Option<String> {
    Some(match told {
        Told::Snapshot { address, resync: false } => format!("connected to {address}"),
        Told::Snapshot { address, resync: true } => {
            format!("connected to {address}, which cannot say what was missed: all offers anew")
        }
        Told::SnapshotWas { offers: 0 } => "no open offers".to_owned(),
        Told::SnapshotWas { offers: 1 } => "1 open offer, as above".to_owned(),
        Told::SnapshotWas { offers } => format!("{offers} open offers, as above"),
        Told::Resumed { address } => {
            format!("connected to {address} again; what was missed follows")
        }
        Told::Offered(it) => format!("offer      {}", described(it)),
        Told::Changed(it) => format!("changed    {}", described(it)),
        Told::Withdrawn { id, reason, was } => {
            let name = was.as_ref().map_or_else(|| id.clone(), |it| name(it));
            format!("withdrawn  {name}  {}", because(*reason))
        }
        Told::Heartbeat { offers, held, .. } if usize::try_from(*offers) != Ok(*held) => {
            format!("the collector has {offers} open offers and {held} arrived: start again")
        }
        Told::Heartbeat { offers, again: true, .. } => format!("offers that hold now: {offers}"),
        Told::Heartbeat { .. } => return None,
        Told::Lost { address, cause, held: 0 } => {
            format!("not connected to {address}: {cause}. Trying again")
        }
        Told::Lost { address, cause, held } => format!(
            "connection to {address} lost: {cause}. What was offered ({held}) no longer holds: \
             treat every GPU as used. Trying again"
        ),
    })
}

fn program(told: &Told) -> Value {
    match told {
        Told::Snapshot { resync, .. } => json!({ "type": "snapshot_begin", "resync": resync }),
        Told::SnapshotWas { offers } => json!({ "type": "snapshot_end", "offers": offers }),
        Told::Resumed { .. } => json!({ "type": "resumed" }),
        Told::Offered(it) | Told::Changed(it) => {
            json!({ "type": "offer", "offer": json::offer(it) })
        }
        Told::Withdrawn { id, reason, .. } => {
            let reason = reason.as_str_name().to_lowercase();
            json!({ "type": "withdrawn", "id": id, "reason": reason })
        }
        Told::Heartbeat { offers, .. } => json!({ "type": "heartbeat", "offers": offers }),
        Told::Lost { cause, .. } => {
            json!({ "type": "disconnected", "cause": cause, "offers_valid": false })
        }
    }
}

fn described(offer: &Offer) -> String {
    let memory = words::part(offer.memory_free_bytes, offer.memory_total_bytes);
    let idle = words::age(offer.idle_age_ms);
    let mut text = format!(
        "{}  {:<15}  {memory:>14} free  idle {idle}",
        name(offer),
        names::class_name(offer.class())
    );
    if offer.dwell_ms > 0 {
        text.push_str(&format!(" (dwell {})", words::span(offer.dwell_ms.into())));
    }
    if let Some(model) = &offer.model {
        text.push_str(&format!("  {model}"));
    }
    if !offer.holders.is_empty() {
        let holders: Vec<String> = offer
            .holders
            .iter()
            .map(|it| format!("{} ({})", it.tenant, words::holder(it)))
            .collect();
        text.push_str(&format!("  held by {}", holders.join(", ")));
    }
    text
}

/// As a person finds it: node and index; the UUID where there is no index.
fn name(offer: &Offer) -> String {
    let instance = offer.instance.clone().unwrap_or_default();
    let mut device = offer.index.map_or(instance.gpu_uuid, |it| format!("gpu {it}"));
    if let Some(mig_uuid) = &instance.mig_uuid {
        device.push_str(&format!(" {}", words::short_uuid(mig_uuid)));
    }
    format!("{:<12}  {device:<6}", offer.node)
}

fn because(reason: Reason) -> &'static str {
    match reason {
        Reason::Unspecified => "no reason given",
        Reason::Busy => "busy: it is being used",
        Reason::Silent => "silent: its node says nothing",
        Reason::Unknown => "unknown: it is not known to be idle",
        Reason::Health => "health: the device is not well",
        Reason::Gone => "gone: the device is away or its agent has stopped",
        Reason::ClassChanged => "class changed: idle in another way, and not for long enough yet",
    }
}

#[cfg(test)]
mod tests {
    use super::{Format, Told};
    use proto::capacity::v1::{Offer, Position, withdrawn::Reason};
    use proto::telemetry::v1::{Class, Holder, InstanceId, holder::Kind};

    const UNIX_NS: u64 = 1_763_791_872_000_000_000;

    fn offer() -> Box<Offer> {
        let holder = Holder {
            kind: Kind::Unit.into(),
            id: "a.service".to_owned(),
            tenant: "search".to_owned(),
            ..Holder::default()
        };
        let instance = InstanceId { gpu_uuid: "GPU-1".to_owned(), mig_uuid: None };
        Box::new(Offer {
            id: "n/GPU-1".to_owned(),
            node: "n".to_owned(),
            instance: Some(instance),
            index: Some(2),
            class: Class::MemoryHeld.into(),
            idle_age_ms: 61_000,
            dwell_ms: 60_000,
            memory_total_bytes: Some(80 << 30),
            holders: vec![holder],
            ..Offer::default()
        })
    }

    fn lost(held: usize) -> Told {
        Told::Lost { address: "there".to_owned(), cause: "cut".to_owned(), held }
    }

    fn check(told: &Told, expected: Option<&str>) {
        let line = Format::People.line(told, None, UNIX_NS);
        let line = line.map(|it| it.split_whitespace().collect::<Vec<_>>().join(" "));
        assert_eq!(line.as_deref(), expected);
    }

    #[test]
    fn people_read_who_where_and_why() {
        check(
            &Told::Offered(offer()),
            Some(
                "06:11:12 offer n gpu 2 memory_held –/80.0 GiB free idle 1m 01s (dwell 1m) \
                 held by search (unit a.service)",
            ),
        );
        let was = Some(offer());
        let told = Told::Withdrawn { id: "n/GPU-1".to_owned(), reason: Reason::Busy, was };
        check(&told, Some("06:11:12 withdrawn n gpu 2 busy: it is being used"));
        check(&Told::Heartbeat { offers: 1, held: 1, again: false }, None);
        check(
            &lost(1),
            Some(
                "06:11:12 connection to there lost: cut. What was offered (1) no longer holds: \
                 treat every GPU as used. Trying again",
            ),
        );
    }

    #[test]
    fn programs_read_one_object() {
        let at = Position { generation: "g".to_owned(), revision: 7 };
        let line = Format::Json.line(&Told::Offered(offer()), Some(&at), UNIX_NS).unwrap();
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["type"], "offer");
        assert_eq!(value["position"]["revision"], 7);
        assert_eq!(value["offer"]["memory_free_bytes"], serde_json::Value::Null);
        assert_eq!(value["offer"]["holders"][0]["tenant"], "search");
        let line = Format::Json.line(&lost(3), Some(&at), UNIX_NS).unwrap();
        assert!(line.contains("\"offers_valid\":false"), "{line}");
    }
}
