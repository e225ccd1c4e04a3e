//! Times as people write them, in UTC.

use crate::connect::ClientError;

const TIMES: &str = "2026-11-22, 2026-11-22T06:00, 36h, 7d, or Unix seconds";

pub(super) fn time(
    option: &'static str,
    text: Option<&str>,
    now: i64,
) -> Result<Option<i64>, ClientError> {
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
    use super::parse_time;

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
}
