//! Times as people type them.

use std::str::FromStr;

/// A moment: seconds since 1970, and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since 1970, UTC.
    pub seconds: i64,
    /// Nanoseconds of the second.
    pub nanoseconds: u32,
}

const RIGHT: &str = "a time is @SECONDS since 1970, or YYYY-MM-DD, or YYYY-MM-DD HH:MM[:SS], UTC";

impl FromStr for Moment {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(seconds) = text.strip_prefix('@') {
            let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
            return Ok(Self {
                seconds: whole.parse().map_err(|_| RIGHT)?,
                nanoseconds: nanoseconds(fraction)?,
            });
        }
        let (date, time) = text.split_once([' ', 'T']).unwrap_or((text, "00:00"));
        let [year, month, day] = numbers(date, '-')?[..] else {
            return Err(RIGHT);
        };
        let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
        let (hour, minute, second) = match numbers(time.trim_end_matches('Z'), ':')?[..] {
            [hour, minute] => (hour, minute, 0),
            [hour, minute, second] => (hour, minute, second),
            _ => return Err(RIGHT),
        };
        let is_right = (1..=12).contains(&month)
            && (1..=days_of(year, month)).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        if !is_right {
            return Err(RIGHT);
        }
        let days = days_since_1970(year, month, day);
        Ok(Self {
            seconds: ((days * 24 + hour) * 60 + minute) * 60 + second,
            nanoseconds: nanoseconds(fraction.trim_end_matches('Z'))?,
        })
    }
}

fn numbers(text: &str, separator: char) -> Result<Vec<i64>, &'static str> {
    let parts = text.split(separator).map(|part| match part.len() {
        1..=4 if part.bytes().all(|byte| byte.is_ascii_digit()) => part.parse().map_err(|_| RIGHT),
        _ => Err(RIGHT),
    });
    parts.collect()
}

fn nanoseconds(fraction: &str) -> Result<u32, &'static str> {
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(RIGHT);
    }
    format!("{fraction:0<9}").parse().map_err(|_| RIGHT)
}

const fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

const fn days_of(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap(year) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a day of the Gregorian calendar. Years begin in March here, so that a
/// leap day is the last day of its year.
const fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let of_year = (153 * month + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (text, seconds, nanoseconds) in [
            ("1970-01-01", 0, 0),
            ("@-1", -1, 0),
            ("@5.25", 5, 250_000_000),
            ("2000-02-28 23:59", 951_782_340, 0),
            ("2000-02-29T00:00", 951_782_400, 0),
            ("2000-03-01 00:00:01.5Z", 951_868_801, 500_000_000),
            ("2100-03-01", 4_107_542_400, 0),
        ] {
            let expected = Moment {
                seconds,
                nanoseconds,
            };
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn other_times_are_refused() {
        for text in [
            "",
            "@",
            "@x",
            "2001-02-29",
            "2001-13-01",
            "2001-1",
            "2001-01-01 24:00",
            "now",
        ] {
            assert_eq!(text.parse::<Moment>(), Err(RIGHT), "{text}");
        }
    }
}
