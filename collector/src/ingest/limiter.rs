//! Lets a log line through once per source and while, so that a loud source cannot fill a disk.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A source is heard again after this long.
const QUIET: Duration = Duration::from_secs(600);
/// Sources that are remembered; while there are more, the others are not heard.
const SOURCES: usize = 1_024;

#[derive(Debug)]
pub(super) struct Limiter<K>(Mutex<HashMap<K, u64>>);

impl<K> Default for Limiter<K> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<K: Eq + Hash> Limiter<K> {
    /// Whether this source may be heard at `now_ns`, of any clock that does not go back.
    pub(super) fn allows(&self, source: K, now_ns: u64) -> bool {
        let quiet = u64::try_from(QUIET.as_nanos()).unwrap_or(u64::MAX);
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.get(&source).is_some_and(|it| now_ns.saturating_sub(*it) < quiet) {
            return false;
        }
        if heard.len() >= SOURCES {
            heard.retain(|_, it| now_ns.saturating_sub(*it) < quiet);
        }
        let room = heard.len() < SOURCES;
        if room {
            heard.insert(source, now_ns);
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use super::{Limiter, SOURCES};

    #[test]
    fn a_source_is_heard_once_in_a_while() {
        let limiter = Limiter::default();
        assert!(limiter.allows(1, 0));
        assert!(!limiter.allows(1, 599_999_999_999));
        assert!(limiter.allows(2, 0));
        assert!(limiter.allows(1, 600_000_000_000));
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let limiter = Limiter::default();
        let heard = (0..10 * SOURCES).filter(|it| limiter.allows(*it, 0)).count();
        assert_eq!(heard, SOURCES);
        assert!(limiter.allows(usize::MAX, 600_000_000_000));
    }
}
