//! `gleaner usage`: GPU time by tenant, exact, from the ledger.
//!
//! The table shows GPU-hours, rounded down; `--json` has every nanosecond, as strings, since readers of
//! JSON round large integers.

use std::io::Write;

use collector::clock;
use comfy_table::{CellAlignment, Table, presets};
use proto::cuda::{self, Counts};
use proto::telemetry::v1::{CudaCounter, CudaCounts};
use proto::usage::v1::{GetUsageRequest, GetUsageResponse, Nanoseconds, TenantUsage};
use serde_json::{Map, Value, json};

use crate::connect::{ClientError, Collector};
use crate::words;

const NS_PER_HOUR: u128 = 3_600_000_000_000;
const TIMES: &str = "2026-11-22, 2026-11-22T06:00, 36h, 7d, or Unix seconds";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Start, rounded down to the hour, UTC: `2026-11-22`, `2026-11-22T06:00`, `36h` or `7d` ago, or
    /// Unix seconds. Without it, the beginning of the ledger.
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// End, exclusive, rounded up to the hour, UTC. Without it, now.
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Only this tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// One JSON object; nanoseconds are strings.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(
    arguments: &Arguments,
    collector: &Collector,
    out: &mut impl Write,
) -> Result<(), ClientError> {
    let now = i64::try_from(clock::real_ns() / 1_000_000_000).unwrap_or(i64::MAX);
    let request = GetUsageRequest {
        from_seconds: time("from", arguments.from.as_deref(), now)?,
        to_seconds: time("to", arguments.to.as_deref(), now)?,
        tenant: arguments.tenant.clone(),
    };
    let mut client = collector.usage().await?;
    let response = client.get_usage(request).await.map_err(|it| collector.failed(&it))?;
    let usage = response.into_inner();
    if arguments.json {
        writeln!(out, "{}", program(&usage))?;
    } else {
        write!(out, "{}", people(&usage, arguments.tenant.as_deref()))?;
    }
    Ok(())
}

fn people(usage: &GetUsageResponse, tenant: Option<&str>) -> String {
    if usage.tenants.is_empty() && usage.unowned.is_empty() {
        return match tenant {
            Some(tenant) => format!("the ledger has nothing of tenant {tenant} in this range\n"),
            None => "the ledger has nothing in this range; agents send their first records about \
                     10 s after they start\n"
                .to_owned(),
        };
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "TENANT",
        "ACTIVE",
        "HELD IDLE",
        "HELD UNKNOWN",
        "TOTAL",
        "LAUNCHES",
        "COPIED",
    ]);
    for it in &usage.tenants {
        table.add_row(tenant_row(it));
    }
    for it in &usage.unowned {
        let name = match it.reason.as_str() {
            "" => format!("({})", it.share),
            reason => format!("({}: {reason})", it.share),
        };
        let none = String::new;
        table.add_row([name, none(), none(), none(), hours(ns(it.time)), none(), none()]);
    }
    let total = sum(usage);
    let none = String::new;
    table.add_row(["= total".to_owned(), none(), none(), none(), hours(total), none(), none()]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = format!(
        "{table}\n\nGPU-hours, rounded down to a millionth; --json has every nanosecond.\n"
    );
    if usage.tenants.iter().any(is_sampled) {
        text.push_str("~ calls were not counted all the time: --json says for how long not.\n");
    }
    if tenant.is_none() {
        text.push_str(&conservation(total, ns(usage.wall)));
    }
    text
}

fn tenant_row(it: &TenantUsage) -> [String; 7] {
    let about = if is_sampled(it) { "~" } else { "" };
    [
        it.tenant.clone(),
        hours(ns(it.active)),
        hours(ns(it.held_idle)),
        hours(ns(it.held_unknown)),
        hours(owned(it)),
        it.launches.map_or_else(unknown, |count| format!("{about}{count}")),
        it.copied_bytes.map_or_else(unknown, |bytes| format!("{about}{}", words::bytes(bytes))),
    ]
}

/// Its counts are scaled, or too small.
fn is_sampled(it: &TenantUsage) -> bool {
    ns(it.sampled) > 0
}

/// What was not measured is not zero.
fn unknown() -> String {
    "–".to_owned()
}

fn conservation(total: u128, wall: u128) -> String {
    if total == wall {
        "The rows sum to the wall time of all instances, to the nanosecond.\n".to_owned()
    } else {
        format!(
            "The rows sum to {total} ns and the wall time is {wall} ns: the ledger does not conserve. \
             Please report this with the output of --json.\n"
        )
    }
}

fn program(usage: &GetUsageResponse) -> Value {
    let exact = |it: Option<Nanoseconds>| ns(it).to_string();
    let tenant = |it: &TenantUsage| {
        let methods = it.methods.iter().map(|it| (it.method.clone(), exact(it.active).into()));
        json!({
            "tenant": it.tenant,
            "active_ns": exact(it.active),
            "active_ns_by_method": methods.collect::<Map<_, Value>>(),
            "held_idle_ns": exact(it.held_idle),
            "held_unknown_ns": exact(it.held_unknown),
            "launches": it.launches.map(|it| it.to_string()),
            "copied_bytes": it.copied_bytes.map(|it| it.to_string()),
            "cuda": it.cuda.as_ref().map(|cuda| counts(cuda, it.memory_known)),
            "cuda_sampled_ns": it.sampled.map(|it| ns(Some(it)).to_string()),
        })
    };
    let unowned = usage
        .unowned
        .iter()
        .map(|it| json!({ "share": it.share, "reason": it.reason, "ns": exact(it.time) }));
    json!({
        "ledger_id": hex::encode(&usage.ledger_id),
        "wall_ns": exact(usage.wall),
        "sum_ns": sum(usage).to_string(),
        "tenants": usage.tenants.iter().map(tenant).collect::<Vec<_>>(),
        "unowned": unowned.collect::<Vec<_>>(),
    })
}

/// Every counter by name; those of memory are null where memory calls were never counted.
fn counts(message: &CudaCounts, memory_known: bool) -> Value {
    let counts = Counts::of(message);
    let value = |counter: CudaCounter| {
        let known = memory_known || !cuda::is_of_memory(counter);
        known.then(|| counts[counter].to_string())
    };
    cuda::counters().map(|it| (cuda::name(it), value(it).into())).collect::<Map<_, _>>().into()
}

fn sum(usage: &GetUsageResponse) -> u128 {
    let unowned = usage.unowned.iter().map(|it| ns(it.time));
    usage.tenants.iter().map(owned).chain(unowned).sum()
}

fn owned(it: &TenantUsage) -> u128 {
    ns(it.active) + ns(it.held_idle) + ns(it.held_unknown)
}

fn ns(it: Option<Nanoseconds>) -> u128 {
    it.map_or(0, |it| u128::from(it.high) << 64 | u128::from(it.low))
}

fn hours(ns: u128) -> String {
    format!("{}.{:06}", ns / NS_PER_HOUR, ns % NS_PER_HOUR / (NS_PER_HOUR / 1_000_000))
}

// === times ===

fn time(option: &'static str, text: Option<&str>, now: i64) -> Result<Option<i64>, ClientError> {
    let Some(text) = text else { return Ok(None) };
    let wrong = || ClientError::Option { option, got: text.to_owned(), expected: TIMES };
    parse_time(text, now).map(Some).ok_or_else(wrong)
}

fn parse_time(text: &str, now: i64) -> Option<i64> {
    if let Some(hours) = text.strip_suffix('h') {
        return now.checked_sub(hours.parse::<u32>().map(i64::from).ok()? * 3600);
    }
    if let Some(days) = text.strip_suffix('d') {
        return now.checked_sub(days.parse::<u32>().map(i64::from).ok()? * 86_400);
    }
    if let Ok(seconds) = text.parse::<i64>() {
        return Some(seconds);
    }
    let (date, time) = text.trim_end_matches('Z').split_once(['T', ' ']).unwrap_or((text, "00:00"));
    Some(days_from_date(date)? * 86_400 + seconds_of_day(time)?)
}

fn days_from_date(date: &str) -> Option<i64> {
    let [year, month, day] = numbers(date, '-')?;
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) {
        return None;
    }
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let before = usize::try_from(month - 1).ok()?;
    if !(1..=lengths[before]).contains(&day) {
        return None;
    }
    let whole = year - 1;
    let leap_days = whole / 4 - whole / 100 + whole / 400 - (1969 / 4 - 1969 / 100 + 1969 / 400);
    Some((year - 1970) * 365 + leap_days + lengths[..before].iter().sum::<i64>() + day - 1)
}

fn seconds_of_day(time: &str) -> Option<i64> {
    let [hour, minute, second] = match numbers::<2>(time, ':') {
        Some([hour, minute]) => [hour, minute, 0],
        None => numbers(time, ':')?,
    };
    let fits = (0..24).contains(&hour) && (0..60).contains(&minute) && (0..60).contains(&second);
    fits.then_some(hour * 3600 + minute * 60 + second)
}

fn numbers<const N: usize>(text: &str, separator: char) -> Option<[i64; N]> {
    let parts: Option<Vec<i64>> = text.split(separator).map(|it| it.parse().ok()).collect();
    parts?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::{NS_PER_HOUR, hours, parse_time, people, program};
    use proto::cuda::Counts;
    use proto::telemetry::v1::CudaCounter;
    use proto::usage::v1::{GetUsageResponse, MethodUsage, Nanoseconds, TenantUsage, UnownedUsage};

    fn check(text: &str, expected: Option<i64>) {
        assert_eq!(parse_time(text, 1_000_000), expected, "{text}");
    }

    #[test]
    fn times_are_utc() {
        check("1970-01-01", Some(0));
        check("1970-01-02T01:02:03Z", Some(86_400 + 3_723));
        check("2000-02-29", Some(951_782_400));
        check("2026-11-22T06:00", Some(1_795_327_200));
        check("2026-11-22 06:00", Some(1_795_327_200));
        check("1795327200", Some(1_795_327_200));
        check("2h", Some(992_800));
        check("1d", Some(913_600));
        for wrong in ["", "yesterday", "2026-02-29", "2026-13-01", "2026-11-22T24:00", "-2h", "h"] {
            check(wrong, None);
        }
    }

    #[test]
    fn hours_are_never_rounded_up() {
        assert_eq!(hours(NS_PER_HOUR - 1), "0.999999");
        assert_eq!(hours(123 * NS_PER_HOUR), "123.000000");
    }

    fn usage(wall: u64) -> GetUsageResponse {
        let ns = |low| Some(Nanoseconds { high: 0, low });
        let mut launched = Counts::default();
        launched[CudaCounter::KernelLaunches] = 104_729;
        let tenant = TenantUsage {
            tenant: "ml".to_owned(),
            active: Some(Nanoseconds { high: 1, low: 5 }),
            held_idle: ns(3),
            held_unknown: ns(0),
            methods: vec![MethodUsage {
                method: "exclusive".to_owned(),
                active: Some(Nanoseconds { high: 1, low: 5 }),
            }],
            launches: Some(104_729),
            copied_bytes: Some(1_009),
            cuda: Some(launched.message()),
            memory_known: false,
            sampled: ns(0),
        };
        let free = UnownedUsage {
            share: "unobserved".to_owned(),
            reason: "agent_down".to_owned(),
            time: ns(2),
        };
        GetUsageResponse {
            tenants: vec![tenant],
            unowned: vec![free],
            wall: Some(Nanoseconds { high: 1, low: wall }),
            ledger_id: vec![0xab],
        }
    }

    #[test]
    fn the_table_says_whether_it_conserves() {
        let text = people(&usage(10), None);
        assert!(text.contains("(unobserved: agent_down)") && text.contains("104729"), "{text}");
        assert!(text.contains("sum to the wall time"), "{text}");
        assert!(people(&usage(11), None).contains("does not conserve"));
        assert!(people(&GetUsageResponse::default(), None).contains("nothing in this range"));
        let none = people(&GetUsageResponse::default(), Some("ml"));
        assert!(none.contains("nothing of tenant ml"));
    }

    #[test]
    fn counts_that_are_scaled_are_marked() {
        let mut sampled = usage(10);
        sampled.tenants[0].sampled = Some(Nanoseconds { high: 0, low: 1 });
        assert!(people(&sampled, None).contains(" ~104729"));
        assert!(!people(&usage(10), None).contains('~'));
    }

    #[test]
    fn counters_of_memory_that_were_never_counted_are_null() {
        let cuda = program(&usage(10))["tenants"][0]["cuda"].clone();
        assert_eq!(cuda["kernel_launches"], "104729");
        assert_eq!(cuda["graph_launches"], "0");
        assert!(cuda["device_allocations"].is_null());
    }

    #[test]
    fn json_keeps_every_nanosecond() {
        let value = program(&usage(10));
        assert_eq!(value["tenants"][0]["active_ns"], "18446744073709551621");
        assert_eq!(value["tenants"][0]["active_ns_by_method"]["exclusive"], "18446744073709551621");
        assert_eq!(value["sum_ns"], value["wall_ns"]);
        assert_eq!(value["ledger_id"], "ab");
    }
}
