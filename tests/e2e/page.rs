//! The page in a real browser.

use std::time::Duration;

use tests::browser::Browser;
use tests::collector::Collector;
use tests::node::Setup;
use tests::wait::{check, eventually};

const SOON: Duration = Duration::from_secs(15);

#[test]
fn the_page_shows_the_fleet_and_an_offer_and_follows_both() {
    let collector = Collector::start();
    let node = Setup::gpus(2).named("rack-9").reporting_to(&collector).start();
    let tenant = node.tenant("trainer", &["--launches-per-second=100", "--kernel-us=5000"]);
    collector.scheduler().until_offered(SOON, node.gpu_uuid(1));
    let browser = Browser::open(&collector.url("/"));
    let shows = |texts: &[&str]| {
        eventually(SOON, "the page shows it", || {
            let page = browser.text()?;
            texts.iter().try_for_each(|it| check(page.contains(it), || format!("no {it}: {page}")))
        });
    };
    shows(&["rack-9", "trainer", "active", "offered", "free"]);
    tenant.kill();
    // Without a reload: nobody holds anything any more, and both devices are offered.
    eventually(SOON, "the page follows", || {
        let page = browser.text()?;
        check(!page.contains("trainer"), || page)
    });
}
