//! How values are written for people. What is not known is a dash, never 0.

use proto::telemetry::v1::{Holder, holder::Kind};

pub(crate) const NOT_KNOWN: &str = "–";

/// `7s`, `5m 03s`, `2h 04m`, `3d 4h`.
pub(crate) fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m {:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// A duration that somebody chose: `age` without an empty tail.
pub(crate) fn span(ms: u64) -> String {
    let text = age(ms);
    let tail = [" 00s", " 00m", " 0h"].into_iter().find_map(|it| text.strip_suffix(it));
    tail.map_or_else(|| text.clone(), str::to_owned)
}

/// In GiB, or in MiB below one.
pub(crate) fn bytes(bytes: u64) -> String {
    let mib = bytes >> 20;
    if mib < 1024 {
        return format!("{mib} MiB");
    }
    let tenths = u128::from(bytes) * 10 / (1 << 30);
    if tenths >= 1000 {
        format!("{} GiB", tenths / 10)
    } else {
        format!("{}.{} GiB", tenths / 10, tenths % 10)
    }
}

/// `27.0/80.0 GiB`.
pub(crate) fn part(some: Option<u64>, of: Option<u64>) -> String {
    match (some.map(bytes), of.map(bytes)) {
        (None, None) => NOT_KNOWN.to_owned(),
        (some, None) => some.unwrap_or_default(),
        (None, Some(of)) => format!("{NOT_KNOWN}/{of}"),
        (Some(some), Some(of)) => match some.strip_suffix(" GiB") {
            Some(number) if of.ends_with(" GiB") => format!("{number}/{of}"),
            _ if some == "0 MiB" => format!("0/{of}"),
            _ => format!("{some}/{of}"),
        },
    }
}

pub(crate) fn percent(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| NOT_KNOWN.to_owned(), |it| format!("{:.0}%", it * 100.0))
}

/// What the holder is: a pod by its names, anything else by its kind and id.
pub(crate) fn holder(holder: &Holder) -> String {
    let names = [&holder.tenant_namespace, &holder.tenant_pod, &holder.tenant_container];
    let names: Vec<&str> = names.into_iter().filter_map(|it| it.as_deref()).collect();
    if names.is_empty() {
        format!("{} {}", kind(holder.kind()), holder.id)
    } else {
        names.join("/")
    }
}

/// The first group of a UUID, which tells the devices of a node apart.
pub(crate) fn short_uuid(uuid: &str) -> &str {
    &uuid[..uuid.floor_char_boundary(12)]
}

pub(crate) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Unspecified => "unknown",
        Kind::Pod => "pod",
        Kind::SlurmStep => "slurm_step",
        Kind::Container => "container",
        Kind::Unit => "unit",
        Kind::User => "user",
    }
}

/// The tenants of some holders, each once, in order.
pub(crate) fn tenants<'a>(holders: impl Iterator<Item = &'a Holder>) -> String {
    let mut names: Vec<&str> = holders.map(|it| it.tenant.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

/// UTC time of day.
pub(crate) fn clock(unix_ns: u64) -> String {
    let seconds = unix_ns / 1_000_000_000 % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

pub(crate) fn plural(count: usize, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

#[cfg(test)]
mod tests {
    use super::{age, bytes, clock, holder, part, percent, span};
    use proto::telemetry::v1::{Holder, holder::Kind};

    #[test]
    fn ages_have_two_units() {
        let ages = [999, 59_999, 60_000, 303_000, 7_440_000, 273_600_000].map(age);
        assert_eq!(ages, ["0s", "59s", "1m 00s", "5m 03s", "2h 04m", "3d 4h"]);
        assert_eq!([60_000, 300_000, 7_200_000, 90_000].map(span), ["1m", "5m", "2h", "1m 30s"]);
    }

    #[test]
    fn memory_names_its_unit_once_and_what_is_not_known() {
        let gib = |it: u64| Some(it << 30);
        assert_eq!(part(gib(27), gib(80)), "27.0/80.0 GiB");
        assert_eq!(part(Some(0), gib(80)), "0/80.0 GiB");
        assert_eq!(part(Some(5 << 20), gib(80)), "5 MiB/80.0 GiB");
        assert_eq!(part(None, gib(80)), "–/80.0 GiB");
        assert_eq!(part(None, None), "–");
        assert_eq!(bytes(150 << 30), "150 GiB");
        assert_eq!((percent(Some(0.0)), percent(None)), ("0%".to_owned(), "–".to_owned()));
    }

    #[test]
    fn a_holder_is_named_by_what_is_known() {
        let unit = Holder { kind: Kind::Unit.into(), id: "a.service".into(), ..Holder::default() };
        assert_eq!(holder(&unit), "unit a.service");
        let pod = Holder {
            tenant_namespace: Some("ml".into()),
            tenant_pod: Some("train-0".into()),
            ..unit
        };
        assert_eq!(holder(&pod), "ml/train-0");
    }

    #[test]
    fn the_clock_is_utc() {
        assert_eq!(clock(1_763_791_872_000_000_000), "06:11:12");
    }
}
