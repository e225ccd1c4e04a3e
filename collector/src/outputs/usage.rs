//! `usage.v1`: the ledger's sums on the wire, in whole nanoseconds.

use proto::cuda::Totals;
use proto::usage::v1 as pb;
use proto::usage::v1::usage_server::{Usage as UsageApi, UsageServer};
use tonic::{Request, Response, Status};

use crate::ledger::LedgerHandle;
use crate::ledger::usage::{Query, TenantUsage, Usage};
use crate::model::cuda::CudaSums;

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
    let tenants = usage.tenants.iter().map(|(name, it)| tenant(name, it)).collect();
    let unowned = usage
        .unowned
        .iter()
        .map(|((share, reason), time)| pb::UnownedUsage {
            share: share.clone(),
            reason: reason.clone(),
            time: Some(nanoseconds(*time)),
        })
        .collect();
    let wall = Some(nanoseconds(usage.wall_ns));
    pb::GetUsageResponse { tenants, unowned, wall, ledger_id: Vec::new() }
}

fn tenant(name: &str, usage: &TenantUsage) -> pb::TenantUsage {
    let methods = usage
        .active
        .iter()
        .map(|(method, active)| pb::MethodUsage {
            method: method.clone(),
            active: Some(nanoseconds(*active)),
        })
        .collect();
    let cuda = usage.cuda.as_ref().map(CudaSums::totals);
    pb::TenantUsage {
        tenant: name.to_owned(),
        active: Some(nanoseconds(usage.active_ns())),
        held_idle: Some(nanoseconds(usage.held_idle)),
        held_unknown: Some(nanoseconds(usage.held_unknown)),
        methods,
        launches: cuda.as_ref().map(|it| it.counts.launches()),
        copied_bytes: cuda.as_ref().map(|it| it.counts.copied_bytes()),
        memory_known: cuda.as_ref().is_some_and(Totals::knows_memory),
        sampled: cuda.as_ref().map(|it| nanoseconds(it.sampled_ns)),
        cuda: cuda.as_ref().map(|it| it.counts.message()),
    }
}

/// Half of a 128-bit number.
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
    use crate::ledger::usage::{TenantUsage, Usage};
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

    #[test]
    fn wall_time_keeps_every_nanosecond() {
        let tenant = TenantUsage {
            active: [("measured".to_owned(), 1_u128 << 70)].into(),
            held_idle: 5,
            ..TenantUsage::default()
        };
        let usage = Usage {
            tenants: [("a".to_owned(), tenant)].into(),
            unowned: [(("free".to_owned(), String::new()), 7)].into(),
            wall_ns: (1 << 70) + 12,
        };
        let response = encode(&usage);
        assert_eq!(response.wall, Some(nanoseconds((1_u128 << 70) + 12)));
        assert_eq!(response.wall, Some(pb::Nanoseconds { high: 64, low: 12 }));
    }
}
