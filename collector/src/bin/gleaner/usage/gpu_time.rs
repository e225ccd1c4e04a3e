//! GPU time as the table adds it up, and the numbers of the schema that are wider than 64 bits.

use proto::usage::v1::{GetUsageResponse, Nanoseconds, TenantUsage, UnownedUsage, WeighedTime};

const NS_PER_HOUR: u128 = 3_600_000_000_000;
/// A whole device, in the unit in which `usage.v1` weighs.
const WHOLE: u128 = 840;

/// In which unit time is added up: 840ths of a nanosecond, of whole devices or of instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clock {
    /// A MIG instance counts by its compute slices.
    Devices,
    /// The size of an instance is not known: each counts as one.
    Instances,
}

// === impl Clock ===

impl Clock {
    pub(super) fn of(usage: &GetUsageResponse) -> Self {
        let tenants = usage.tenants.iter().all(|it| it.weighed.is_some());
        let unowned = usage.unowned.iter().all(|it| it.weighed.is_some());
        let known = tenants && unowned && usage.wall_weighed.is_some();
        if known { Self::Devices } else { Self::Instances }
    }

    pub(super) fn shares(self, it: &TenantUsage) -> [u128; 3] {
        let weighed = it.weighed.unwrap_or_default();
        match self {
            Self::Devices => [weighed.active, weighed.held_idle, weighed.held_unknown].map(parts),
            Self::Instances => [it.active, it.held_idle, it.held_unknown].map(|it| ns(it) * WHOLE),
        }
    }

    pub(super) fn unowned(self, it: &UnownedUsage) -> u128 {
        match self {
            Self::Devices => parts(it.weighed),
            Self::Instances => ns(it.time) * WHOLE,
        }
    }

    pub(super) fn wall(self, usage: &GetUsageResponse) -> u128 {
        match self {
            Self::Devices => parts(usage.wall_weighed),
            Self::Instances => ns(usage.wall) * WHOLE,
        }
    }

    pub(super) fn sum(self, usage: &GetUsageResponse) -> u128 {
        let tenants = usage.tenants.iter().flat_map(|it| self.shares(it));
        tenants.chain(usage.unowned.iter().map(|it| self.unowned(it))).sum()
    }

    pub(super) fn note(self) -> &'static str {
        match self {
            Self::Devices => "",
            Self::Instances => {
                "Each MIG instance counts as a whole GPU: the size of some is not known.\n"
            }
        }
    }
}

pub(super) fn ns(it: Option<Nanoseconds>) -> u128 {
    it.map_or(0, |it| u128::from(it.high) << 64 | u128::from(it.low))
}

pub(super) fn parts(it: Option<WeighedTime>) -> u128 {
    it.map_or(0, |it| u128::from(it.high) << 64 | u128::from(it.low))
}

/// Of 840ths of a nanosecond.
pub(super) fn hours(parts: u128) -> String {
    let hour = NS_PER_HOUR * WHOLE;
    format!("{}.{:06}", parts / hour, parts % hour / (hour / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::{NS_PER_HOUR, WHOLE, hours};

    #[test]
    fn hours_are_never_rounded_up() {
        assert_eq!(hours(NS_PER_HOUR * WHOLE - 1), "0.999999");
        assert_eq!(hours(123 * NS_PER_HOUR * WHOLE), "123.000000");
    }
}
