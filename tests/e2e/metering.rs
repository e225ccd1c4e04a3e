//! Energy, slices and work: from the driver's counters to the client, exactly.

use std::time::Duration;

use gpu_state::scenario::MigInstance;
use proto::usage::v1::GetUsageResponse;
use tests::collector::Collector;
use tests::node::Setup;
use tests::program::run;
use tests::prometheus::promtool_findings;
use tests::scrape::Scrape;
use tests::usage::conserved_wall;
use tests::wait::{check, eventually};

const SOON: Duration = Duration::from_secs(20);

const TENANTS: &str = "gleaner_tenant_gpu_energy_joules_total";
const NOBODY: &str = "gleaner_gpu_unowned_energy_joules_total";
const METERED: &str = "gleaner_gpu_metered_energy_joules_total";
const CLASSES: &str = "gleaner_gpu_class_energy_joules_total";
const TENANT_SECONDS: &str = "gleaner_tenant_gpu_seconds_total";
const GPU_SECONDS: &str = "gleaner_gpu_seconds_total";

/// Tenants and nobody have what the devices counted, and so have the classes, to the millijoule.
fn conserves(scrape: &Scrape) -> Result<(), String> {
    // In billionths, whatever the unit is.
    let exact = |name| scrape.nanoseconds(name, &[]).unwrap_or(0);
    let (owned, nobodys, metered) = (exact(TENANTS), exact(NOBODY), exact(METERED));
    let classes = exact(CLASSES);
    check(metered > 0 && owned + nobodys == metered && classes == metered, || {
        format!("{owned} + {nobodys}, by class {classes}, of {metered}")
    })
}

/// Watts of a tenant in one kind of its time.
fn watts(scrape: &Scrape, tenant: &str, share: &str) -> Result<f64, String> {
    let labels = [("tenant", tenant), ("share", share)];
    let energy = scrape.sum(TENANTS, &labels).ok_or(format!("no energy of {tenant} {share}"))?;
    let time = scrape.sum(TENANT_SECONDS, &labels).filter(|it| *it > 2.0);
    time.map(|it| energy / it).ok_or(format!("little time of {tenant} {share}"))
}

fn usage_conserves(usage: &GetUsageResponse) -> Result<(), String> {
    conserved_wall(usage);
    let tenants = usage.tenants.iter().map(|it| &it.energy);
    let parts = tenants.chain(usage.unowned.iter().map(|it| &it.energy)).flatten();
    let parts: u64 = parts.map(|it| it.millijoules).sum();
    let whole = usage.energy.as_ref().map(|it| it.millijoules);
    check(whole == Some(parts), || format!("{parts} mJ of {whole:?}"))
}

#[test]
fn energy_sums_to_what_the_device_counted() {
    let collector = Collector::start();
    let node = Setup::gpus(3).reporting_to(&collector).start();
    node.until(SOON, "what an idle device draws was seen", |it| {
        let by_floor = it.sum(NOBODY, &[("method", "floor_dynamic"), ("share", "free")]);
        check(by_floor > Some(0.0), || format!("{by_floor:?}"))
    });
    let _worker = node.tenant("worker", &["--launches-per-second=40", "--kernel-us=10000"]);
    let _holder = node.tenant("holder", &["--device=1", "--memory-mib=900", "--hold"]);
    // 70 W idle and 700 W at work; a kernel ran in at most a half of the time.
    let right = |scrape: &Scrape| {
        conserves(scrape)?;
        let [active, idle] =
            [watts(scrape, "worker", "active")?, watts(scrape, "worker", "held_idle")?];
        check(active > 300.0 && active > 3.0 * idle, || format!("{active} W, {idle} W idle"))?;
        let held = watts(scrape, "holder", "held_idle")?;
        check((60.0..80.0).contains(&held), || format!("the holder has {held} W"))
    };
    node.until(SOON, "each has what it drew", right);
    collector.until(SOON, "the collector has it too", right);
    for scrape in [node.metrics(), collector.metrics()] {
        assert_eq!(promtool_findings(scrape.text()), "");
        let healthy = scrape.sum("gleaner_gpu_healthy_seconds_total", &[]);
        let process = scrape.sum("gleaner_gpu_process_seconds_total", &[]);
        assert!(healthy > process && process > Some(2.0), "{healthy:?} {process:?}");
        assert_eq!(scrape.sum("gleaner_gpu_sm_active_seconds_total", &[]), None, "not measurable");
    }
    eventually(SOON, "the ledger conserves it", || usage_conserves(&collector.usage()?));
    assert!(run(&collector.client(&["usage"])).output.contains("KWH"));
}

fn part(index: u32, profile: &str) -> MigInstance {
    let gpm = [("1".to_owned(), 50_000), ("2".to_owned(), 43_000)];
    MigInstance {
        uuid: format!("MIG-{index}"),
        profile: profile.to_owned(),
        gpu_instance: index,
        memory_mib: 9_856,
        gpm: Some(gpm.into()),
        ..MigInstance::default()
    }
}

#[test]
fn a_device_that_mig_has_cut_is_metered_once_and_by_slices() {
    let collector = Collector::start();
    let setup = Setup::gpus(1).reporting_to(&collector);
    let parts = vec![part(1, "3g.40gb"), part(2, "1g.10gb")];
    let node = setup.with(|it| it.scenario.gpus[0].mig = Some(parts)).start();
    let by_slices = |scrape: &Scrape| {
        conserves(scrape)?;
        let [three, one, rest] = ["MIG-1", "MIG-2", "unconfigured"]
            .map(|it| scrape.sum(METERED, &[("mig_uuid", it)]).unwrap_or(0.0));
        // A millijoule of rounding for every tick.
        let near = |a: f64, b: f64| (a - b).abs() < 0.2;
        check(one > 20.0 && near(three, 3.0 * one) && near(three, rest), || {
            format!("{three} J, {one} J, {rest} J")
        })?;
        let labels = [("mig_uuid", "unconfigured"), ("share", "free"), ("reason", "unconfigured")];
        let free = scrape.sum(GPU_SECONDS, &labels);
        check(free > Some(1.0), || format!("{free:?} s unconfigured"))?;
        let sm = |name: &str| {
            let name = format!("gleaner_gpu_sm_{name}_seconds_total");
            scrape.sum(&name, &[("mig_uuid", "MIG-1")]).ok_or(name)
        };
        let ratio = sm("active")? / sm("measured")?;
        check((0.429..0.431).contains(&ratio), || format!("{ratio} of the multiprocessors"))
    };
    node.until(SOON, "every part has its slices", by_slices);
    collector.until(SOON, "at the collector too", by_slices);
    eventually(SOON, "the parts weigh as one device", || {
        let usage = collector.usage()?;
        usage_conserves(&usage)?;
        let wall = conserved_wall(&usage);
        let weighed = usage.wall_weighed.map(|it| u128::from(it.high) << 64 | u128::from(it.low));
        // Three parts of one device, each there all the time.
        check(wall > 0 && weighed == Some(wall / 3 * 840), || format!("{weighed:?} of {wall}"))
    });
    let text = run(&collector.client(&["usage"])).output;
    assert!(text.contains("(free: unconfigured)") && !text.contains("whole GPU"), "{text}");
}
