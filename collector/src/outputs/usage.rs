//! `usage.v1`: the ledger's sums on the wire, in whole nanoseconds.

use proto::cuda::Totals;
use proto::usage::v1 as pb;
use proto::usage::v1::usage_server::{Usage as UsageApi, UsageServer};
use tonic::{Request, Response, Status};

use crate::ledger::LedgerHandle;
use crate::ledger::amounts::{EnergyAmounts, ShareAmounts};
use crate::ledger::usage::{Query, TenantUsage, Usage};
use crate::model::cuda::CudaSums;
use crate::model::metering::EnergyMethod;

const HOUR_S: i64 = 3600;

#[derive(Debug)]
pub struct Service {
    ledger: LedgerHandle,
}

/// The server to add to the collector's.
#[must_use]
pub fn service(ledger: LedgerHandle) -> UsageServer<Service> {
    UsageServer::new(Service { ledger })
}

#[tonic::async_trait]
impl UsageApi for Service {
    async fn get_usage(
        &self,
        request: Request<pb::GetUsageRequest>,
    ) -> Result<Response<pb::GetUsageResponse>, Status> {
        let query = query(request.into_inner())?;
        let named = query.tenant.is_some();
        let usage = self
            .ledger
            .usage(query)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let mut response = encode(&usage);
        if named {
            response.unowned.clear();
        }
        response.ledger_id = self.ledger.id().0.to_vec();
        Ok(Response::new(response))
    }
}

/// Hours that cover the asked range: the first rounded down, the last rounded up.
fn query(request: pb::GetUsageRequest) -> Result<Query, Status> {
    let from_hour = request.from_seconds.map(|it| it.div_euclid(HOUR_S));
    let to_hour = request
        .to_seconds
        .map(|it| it.div_euclid(HOUR_S).saturating_add(i64::from(it.rem_euclid(HOUR_S) > 0)));
    if from_hour.zip(to_hour).is_some_and(|(from, to)| from >= to) {
        return Err(Status::invalid_argument(
            "the range ends before it begins; give `to` later than `from`",
        ));
    }
    Ok(Query { from_hour, to_hour, tenant: request.tenant.filter(|it| !it.is_empty()) })
}

fn encode(usage: &Usage) -> pb::GetUsageResponse {
    let unowned = usage.unowned.iter().map(|((share, reason), it)| pb::UnownedUsage {
        share: share.clone(),
        reason: reason.clone(),
        time: Some(nanoseconds(it.ns)),
        energy: energy(it.energy),
        weighed: weighed(it),
    });
    let wall = &usage.wall;
    let drawn = pb::Energy {
        millijoules: count(wall.energy_mj),
        known: Some(nanoseconds(wall.energy_ns)),
        methods: Vec::new(),
    };
    pb::GetUsageResponse {
        tenants: usage.tenants.iter().map(|(name, it)| tenant(name, it)).collect(),
        unowned: unowned.collect(),
        wall: Some(nanoseconds(wall.ns)),
        ledger_id: Vec::new(),
        wall_weighed: wall.weighed.complete(wall.ns).map(parts),
        energy: (wall.energy_ns > 0).then_some(drawn),
    }
}

fn tenant(name: &str, usage: &TenantUsage) -> pb::TenantUsage {
    let methods = usage
        .active
        .iter()
        .map(|(method, active)| pb::MethodUsage {
            method: method.clone(),
            active: Some(nanoseconds(active.ns)),
        })
        .collect();
    let (active, total) = (usage.active(), usage.total());
    let cuda = usage.cuda.as_ref().map(CudaSums::totals);
    pb::TenantUsage {
        tenant: name.to_owned(),
        active: Some(nanoseconds(active.ns)),
        held_idle: Some(nanoseconds(usage.held_idle.ns)),
        held_unknown: Some(nanoseconds(usage.held_unknown.ns)),
        methods,
        launches: cuda.as_ref().map(|it| it.counts.launches()),
        copied_bytes: cuda.as_ref().map(|it| it.counts.copied_bytes()),
        memory_known: cuda.as_ref().is_some_and(Totals::knows_memory),
        sampled: cuda.as_ref().map(|it| nanoseconds(it.sampled_ns)),
        cuda: cuda.as_ref().map(|it| it.counts.message()),
        energy: energy(total.energy),
        weighed: weighed(&total).map(|_known| pb::WeighedShares {
            active: weighed(&active),
            held_idle: weighed(&usage.held_idle),
            held_unknown: weighed(&usage.held_unknown),
        }),
    }
}

fn energy(energy: EnergyAmounts) -> Option<pb::Energy> {
    let methods = EnergyMethod::ALL.into_iter().zip(energy.mj).filter(|it| it.1 > 0);
    let methods = methods.map(|(method, mj)| pb::MethodEnergy {
        method: method.as_str().to_owned(),
        millijoules: count(mj),
    });
    Some(pb::Energy {
        millijoules: count(energy.total()?),
        known: Some(nanoseconds(energy.known_ns)),
        methods: methods.collect(),
    })
}

fn weighed(amounts: &ShareAmounts) -> Option<pb::WeighedTime> {
    amounts.weighed.complete(amounts.ns).map(parts)
}

fn parts(value: u128) -> pb::WeighedTime {
    let pb::Nanoseconds { high, low } = nanoseconds(value);
    pb::WeighedTime { high, low }
}

/// In 64 bits, which millijoules of a fleet fill in centuries; also half of a 128-bit number.
fn count(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

fn nanoseconds(value: u128) -> pb::Nanoseconds {
    let [high, low] = [value >> 64, value & u128::from(u64::MAX)];
    pb::Nanoseconds { high: count(high), low: count(low) }
}

#[cfg(test)]
mod tests {
    use super::{encode, nanoseconds, query};
    use crate::ledger::amounts::{EnergyAmounts, ShareAmounts, Weighed};
    use crate::ledger::usage::{TenantUsage, Usage, Wall};
    use proto::usage::v1 as pb;

    fn check(from: Option<i64>, to: Option<i64>, expected: Option<(Option<i64>, Option<i64>)>) {
        let request = pb::GetUsageRequest { from_seconds: from, to_seconds: to, tenant: None };
        assert_eq!(query(request).ok().map(|it| (it.from_hour, it.to_hour)), expected);
    }

    #[test]
    fn a_range_covers_whole_hours() {
        check(None, None, Some((None, None)));
        check(Some(3_599), Some(3_601), Some((Some(0), Some(2))));
        check(Some(-1), Some(7_200), Some((Some(-1), Some(2))));
        check(Some(7_200), Some(7_200), None);
    }

    /// Whole devices, of which no energy is known.
    fn time(ns: u128) -> ShareAmounts {
        ShareAmounts { ns, ..ShareAmounts::default() }.of_whole()
    }

    fn usage() -> Usage {
        let tenant = TenantUsage {
            active: [("measured".to_owned(), time(1_u128 << 70))].into(),
            held_idle: time(5),
            ..TenantUsage::default()
        };
        let ns = (1 << 70) + 12;
        Usage {
            tenants: [("a".to_owned(), tenant)].into(),
            unowned: [(("free".to_owned(), String::new()), time(7))].into(),
            wall: Wall { ns, weighed: Weighed::whole(ns), energy_mj: 0, energy_ns: 0 },
        }
    }

    #[test]
    fn wall_time_keeps_every_nanosecond() {
        let response = encode(&usage());
        assert_eq!(response.wall, Some(nanoseconds((1_u128 << 70) + 12)));
        assert_eq!(response.wall, Some(pb::Nanoseconds { high: 64, low: 12 }));
        let weighed = response.wall_weighed.unwrap();
        assert_eq!((weighed.high, weighed.low), (64 * 840, 12 * 840));
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let mut usage = usage();
        let before = encode(&usage);
        assert_eq!((before.energy, before.tenants[0].energy.clone()), (None, None));
        let energy = EnergyAmounts { known_ns: 3, mj: [40, 2, 0] };
        let a = usage.tenants.get_mut("a").unwrap();
        (a.held_idle.energy, a.held_idle.weighed) = (energy, Weighed::default());
        let tenant = &encode(&usage).tenants[0];
        let drawn = tenant.energy.as_ref().unwrap();
        assert_eq!((drawn.millijoules, drawn.known), (42, Some(nanoseconds(3))));
        let methods = drawn.methods.iter().map(|it| (it.method.as_str(), it.millijoules));
        assert_eq!(methods.collect::<Vec<_>>(), [("floor_dynamic", 40), ("time", 2)]);
        assert_eq!(tenant.weighed, None, "the size of a part is not known");
        assert!(before.tenants[0].weighed.is_some());
    }
}
