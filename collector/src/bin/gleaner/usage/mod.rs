//! `gleaner usage`: GPU time by tenant, exact, from the ledger.
//!
//! The table shows GPU-hours, rounded down; `--json` has every nanosecond, as strings, since readers of
//! JSON round large integers.

mod gpu_time;
mod times;

use std::io::Write;

use collector::clock;
use comfy_table::{CellAlignment, Table, presets};
use proto::cuda::{self, Counts};
use proto::telemetry::v1::{CudaCounter, CudaCounts};
use proto::usage::v1::{Energy, GetUsageRequest, GetUsageResponse, Nanoseconds, TenantUsage};
use serde_json::{Map, Value, json};

use crate::connect::{ClientError, Collector};
use crate::usage::gpu_time::{Clock, hours, ns, parts};
use crate::usage::times::time;
use crate::words;

const MJ_PER_KWH: u128 = 3_600_000_000;

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
    let clock = Clock::of(usage);
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "TENANT",
        "ACTIVE",
        "HELD IDLE",
        "HELD UNKNOWN",
        "TOTAL",
        "KWH",
        "LAUNCHES",
        "COPIED",
    ]);
    for it in &usage.tenants {
        table.add_row(tenant_row(clock, it));
    }
    for it in &usage.unowned {
        let name = match it.reason.as_str() {
            "" => format!("({})", it.share),
            reason => format!("({}: {reason})", it.share),
        };
        let energy = energy(it.energy.as_ref(), ns(it.time));
        table.add_row(sum_row(name, hours(clock.unowned(it)), energy));
    }
    let (total, wall) = (clock.sum(usage), clock.wall(usage));
    let drawn = energy(usage.energy.as_ref(), ns(usage.wall));
    let drawn = if tenant.is_none() { drawn } else { String::new() };
    table.add_row(sum_row("= total".to_owned(), hours(total), drawn));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = format!(
        "{table}\n\nGPU-hours, rounded down to a millionth; --json has every nanosecond.\n"
    );
    text.push_str(clock.note());
    if text.contains('≥') {
        text.push_str(
            "≥ the energy of a part of the time is not known: --json says of how much.\n",
        );
    }
    if usage.tenants.iter().any(is_sampled) {
        text.push_str("~ calls were not counted all the time: --json says for how long not.\n");
    }
    if tenant.is_none() {
        text.push_str(&conservation(total, wall));
    }
    text
}

fn tenant_row(clock: Clock, it: &TenantUsage) -> [String; 8] {
    let about = if is_sampled(it) { "~" } else { "" };
    let [active, held_idle, held_unknown] = clock.shares(it);
    [
        it.tenant.clone(),
        hours(active),
        hours(held_idle),
        hours(held_unknown),
        hours(active + held_idle + held_unknown),
        energy(it.energy.as_ref(), owned(it)),
        it.launches.map_or_else(unknown, |count| format!("{about}{count}")),
        it.copied_bytes.map_or_else(unknown, |bytes| format!("{about}{}", words::bytes(bytes))),
    ]
}

fn sum_row(name: String, total: String, energy: String) -> [String; 8] {
    let none = String::new;
    [name, none(), none(), none(), total, energy, none(), none()]
}

/// Its counts are scaled, or too small.
fn is_sampled(it: &TenantUsage) -> bool {
    ns(it.sampled) > 0
}

/// What was not measured is not zero.
fn unknown() -> String {
    "–".to_owned()
}

/// Kilowatt-hours of `time`, rounded down like hours.
fn energy(energy: Option<&Energy>, time: u128) -> String {
    let Some(energy) = energy else { return unknown() };
    let about = if ns(energy.known) < time { "≥ " } else { "" };
    let mj = u128::from(energy.millijoules);
    format!("{about}{}.{:06}", mj / MJ_PER_KWH, mj % MJ_PER_KWH / (MJ_PER_KWH / 1_000_000))
}

fn conservation(total: u128, wall: u128) -> String {
    if total == wall {
        "The rows sum to the wall time of all instances, to the nanosecond.\n".to_owned()
    } else {
        format!(
            "The rows sum to {total} and the wall time is {wall} 840ths of a nanosecond: the ledger \
             does not conserve. Please report this with the output of --json.\n"
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
            "energy": it.energy.as_ref().map(drawn),
            "weighed": it.weighed.map(|it| json!({
                "active_840ths_ns": parts(it.active).to_string(),
                "held_idle_840ths_ns": parts(it.held_idle).to_string(),
                "held_unknown_840ths_ns": parts(it.held_unknown).to_string(),
            })),
        })
    };
    let unowned = usage.unowned.iter().map(|it| {
        json!({
            "share": it.share,
            "reason": it.reason,
            "ns": exact(it.time),
            "energy": it.energy.as_ref().map(drawn),
            "weighed_840ths_ns": it.weighed.map(|it| parts(Some(it)).to_string()),
        })
    });
    json!({
        "ledger_id": hex::encode(&usage.ledger_id),
        "wall_ns": exact(usage.wall),
        "wall_weighed_840ths_ns": usage.wall_weighed.map(|it| parts(Some(it)).to_string()),
        "sum_ns": sum(usage).to_string(),
        "energy": usage.energy.as_ref().map(drawn),
        "tenants": usage.tenants.iter().map(tenant).collect::<Vec<_>>(),
        "unowned": unowned.collect::<Vec<_>>(),
    })
}

fn drawn(energy: &Energy) -> Value {
    let methods = energy.methods.iter();
    let methods = methods.map(|it| (it.method.clone(), it.millijoules.to_string().into()));
    json!({
        "mj": energy.millijoules.to_string(),
        "known_ns": ns(energy.known).to_string(),
        "mj_by_method": methods.collect::<Map<_, Value>>(),
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

#[cfg(test)]
mod tests {
    use super::{people, program};
    use proto::cuda::Counts;
    use proto::telemetry::v1::CudaCounter;
    use proto::usage::v1::{
        Energy, GetUsageResponse, MethodEnergy, MethodUsage, Nanoseconds, TenantUsage,
        UnownedUsage, WeighedShares, WeighedTime,
    };

    const HOUR_NS: u64 = 3_600_000_000_000;

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
            energy: None,
            weighed: None,
        };
        let free = UnownedUsage {
            share: "unobserved".to_owned(),
            reason: "agent_down".to_owned(),
            time: ns(2),
            energy: None,
            weighed: None,
        };
        GetUsageResponse {
            tenants: vec![tenant],
            unowned: vec![free],
            wall: Some(Nanoseconds { high: 1, low: wall }),
            ledger_id: vec![0xab],
            wall_weighed: None,
            energy: None,
        }
    }

    /// An hour of 1 of 7 slices and of what nobody configured, of which half drew energy.
    fn mig() -> GetUsageResponse {
        let hour = HOUR_NS;
        let ns = |low| Some(Nanoseconds { high: 0, low });
        let weighed = |low| Some(WeighedTime { high: 0, low });
        let drawn = |millijoules, known| {
            let method = MethodEnergy { method: "slices".to_owned(), millijoules };
            Some(Energy { millijoules, known: ns(known), methods: vec![method] })
        };
        let tenant = TenantUsage {
            tenant: "ml".to_owned(),
            active: ns(hour),
            weighed: Some(WeighedShares {
                active: weighed(120 * hour),
                ..WeighedShares::default()
            }),
            energy: drawn(3_600_000_000, hour),
            ..TenantUsage::default()
        };
        let free = UnownedUsage {
            share: "free".to_owned(),
            reason: "unconfigured".to_owned(),
            time: ns(hour),
            energy: drawn(7_200_000, hour / 2),
            weighed: weighed(720 * hour),
        };
        GetUsageResponse {
            tenants: vec![tenant],
            unowned: vec![free],
            wall: ns(2 * hour),
            wall_weighed: weighed(840 * hour),
            ..GetUsageResponse::default()
        }
    }

    #[test]
    fn instances_count_by_their_slices_where_all_sizes_are_known() {
        let text = people(&mig(), None);
        assert!(text.contains("(free: unconfigured)") && text.contains("0.857142"), "{text}");
        assert!(text.contains("0.142857") && text.contains("sum to the wall time"), "{text}");
        assert!(text.contains(" 1.000000") && !text.contains("whole GPU"), "{text}");

        let mut unknown = mig();
        unknown.tenants[0].weighed = None;
        let text = people(&unknown, None);
        assert!(text.contains("Each MIG instance counts as a whole GPU"), "{text}");
        assert!(text.contains("2.000000") && text.contains("sum to the wall time"), "{text}");
    }

    #[test]
    fn energy_that_is_known_in_part_is_marked() {
        let text = people(&mig(), None);
        assert!(text.contains("≥ 0.002000") && text.contains("energy of a part"), "{text}");
        let value = program(&mig());
        assert_eq!(value["tenants"][0]["energy"]["mj_by_method"]["slices"], "3600000000");
        assert_eq!(value["unowned"][0]["weighed_840ths_ns"], (720 * HOUR_NS).to_string());
        assert!(program(&usage(10))["tenants"][0]["energy"].is_null());
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
