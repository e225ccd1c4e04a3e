//! Waiting for what must happen, with a deadline and the reason when it does not.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(10);

/// Looks until `look` succeeds and gives its value. Panics at the deadline with what was waited for and
/// what `look` said last.
#[track_caller]
pub fn eventually<T>(
    deadline: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<T, String>,
) -> T {
    let start = now();
    loop {
        match look() {
            Ok(value) => return value,
            Err(why) if start.elapsed() >= deadline => {
                panic!("not within {deadline:?}: {what}; at last: {why}")
            }
            Err(_) => std::thread::sleep(STEP),
        }
    }
}

/// Looks for the whole of `span` and panics as soon as `look` fails.
#[track_caller]
pub fn throughout(span: Duration, what: &str, mut look: impl FnMut() -> Result<(), String>) {
    let start = now();
    while start.elapsed() < span {
        if let Err(why) = look() {
            panic!("after {:?} of {span:?} it is no longer so: {what}; {why}", start.elapsed());
        }
        std::thread::sleep(STEP);
    }
}

/// `Ok` when it holds, else what `why` says.
pub fn check(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

/// The clock of the tests.
#[expect(clippy::disallowed_methods, reason = "the product's clocks are not the tests'")]
pub fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::{check, eventually, throughout};
    use std::panic::catch_unwind;
    use std::time::Duration;

    fn message(run: impl FnOnce() + std::panic::UnwindSafe) -> String {
        let panic = catch_unwind(run).expect_err("it panics");
        panic.downcast_ref::<String>().expect("the message is formatted").clone()
    }

    #[test]
    fn what_never_happens_is_named_with_the_last_reason() {
        let said =
            message(|| eventually(Duration::from_millis(30), "rain", || Err("sun".to_owned())));
        assert_eq!(said, "not within 30ms: rain; at last: sun");
    }

    #[test]
    fn what_happens_ends_the_wait() {
        let mut looks = 0;
        let value = eventually(Duration::from_secs(5), "three looks", || {
            looks += 1;
            check(looks == 3, || format!("{looks} looks")).map(|()| looks)
        });
        assert_eq!(value, 3);
    }

    #[test]
    fn what_stops_being_so_is_named() {
        let said =
            message(|| throughout(Duration::from_secs(5), "calm", || Err("wind".to_owned())));
        assert!(said.ends_with("it is no longer so: calm; wind"), "{said}");
    }
}
