//! When the next worker, or acceptor, starts after a death.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Deaths count for this long.
const WINDOW: Duration = Duration::from_secs(60);

/// A process that dies sooner delays the next one: a fault that comes back at once must not take a
/// whole CPU.
const SHORT_LIFE: Duration = Duration::from_millis(100);

/// The delay after the second short life in a row. Each further one doubles it.
const FIRST_DELAY: Duration = Duration::from_millis(10);

/// The longest delay.
const MAX_DELAY: Duration = Duration::from_secs(1);

/// The deaths of one guest's workers, of acceptors, or of a share's process.
#[derive(Debug)]
pub(crate) struct Deaths {
    limit: usize,
    recent: VecDeque<Instant>,
    /// Short lives since the last long one.
    short_lives: u32,
}

/// What follows from a death.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The next process starts after this time.
    RestartAfter(Duration),
    /// There is no next process.
    GiveUp,
}

impl Deaths {
    /// At the death number `limit` within a minute, there is no next process.
    pub(crate) const fn new(limit: usize) -> Self {
        Self {
            limit,
            recent: VecDeque::new(),
            short_lives: 0,
        }
    }

    /// A process has died `now` that lived for this long.
    pub(crate) fn add(&mut self, now: Instant, lived: Duration) -> Verdict {
        let is_recent = |death: &Instant| now.saturating_duration_since(*death) < WINDOW;
        self.recent.retain(is_recent);
        self.recent.push_back(now);
        if self.recent.len() >= self.limit {
            return Verdict::GiveUp;
        }
        self.short_lives = match lived < SHORT_LIFE {
            true => self.short_lives.saturating_add(1),
            false => 0,
        };
        // 0, 10 ms, 20 ms, 40 ms, ...
        let doublings = self.short_lives.checked_sub(2);
        let factor = doublings.map_or(0, |doublings| 1 << doublings.min(20));
        Verdict::RestartAfter(FIRST_DELAY.saturating_mul(factor).min(MAX_DELAY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG_LIFE: Duration = SHORT_LIFE;
    const NO_LIFE: Duration = Duration::ZERO;

    #[test]
    fn the_delay_grows_with_workers_that_die_at_once() {
        let start = Instant::now();
        let mut deaths = Deaths::new(1000);
        let delay = |deaths: &mut Deaths, lived| match deaths.add(start, lived) {
            Verdict::RestartAfter(delay) => u64::try_from(delay.as_millis()).expect("short"),
            Verdict::GiveUp => panic!("given up"),
        };
        for expected in [0, 10, 20, 40, 80, 160, 320, 640, 1000, 1000] {
            assert_eq!(delay(&mut deaths, NO_LIFE), expected);
        }
        for expected in [0, 0, 0] {
            assert_eq!(delay(&mut deaths, LONG_LIFE), expected);
        }
        assert_eq!(delay(&mut deaths, NO_LIFE), 0);
    }

    #[test]
    fn a_guest_is_given_up_at_the_limit_within_a_minute() {
        let start = Instant::now();
        let mut deaths = Deaths::new(3);
        let mut add = |seconds| deaths.add(start + Duration::from_secs(seconds), LONG_LIFE);
        for seconds in [0, 30, 61, 92, 123, 154] {
            let verdict = add(seconds);
            assert!(matches!(verdict, Verdict::RestartAfter(_)), "{seconds} s");
        }
        assert_eq!(add(155), Verdict::GiveUp);
        assert_eq!(Deaths::new(1).add(start, LONG_LIFE), Verdict::GiveUp);
    }
}
