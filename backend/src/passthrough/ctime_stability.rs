//! Which ctimes are reliable.

use std::time::Duration;

/// How old a ctime must be, and for how long it must have been recorded, to be relied on.
#[derive(Debug, Clone, Copy)]
pub(super) struct CtimeStability {
    /// Longer than the kernel keeps a page dirty: `vm.dirty_expire_centisecs` plus
    /// `vm.dirty_writeback_centisecs`, 35 seconds by default.
    pub(super) min_age: Duration,
    /// Longer than a reply takes to reach the guest, in whole seconds.
    pub(super) min_known_secs: u16,
}

impl Default for CtimeStability {
    fn default() -> Self {
        Self {
            min_age: Duration::from_mins(2),
            min_known_secs: 2,
        }
    }
}

impl CtimeStability {
    /// The ctime (seconds, nanoseconds) in nanoseconds since the epoch if it is old enough at
    /// `now`, else 0.
    pub(super) fn stable_ctime(self, (seconds, nanoseconds): (i64, u32), now: Duration) -> i64 {
        let Ok(seconds) = u64::try_from(seconds) else {
            return 0;
        };
        let ctime =
            Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanoseconds.into()));
        match now.checked_sub(ctime) {
            Some(age) if age >= self.min_age => i64::try_from(ctime.as_nanos()).unwrap_or(0),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_not_changed_for_a_while_has_a_change_time_to_rely_on() {
        let (ctime_stability, now) = (CtimeStability::default(), Duration::from_secs(10_000));
        let of = |sec, nsec| ctime_stability.stable_ctime((sec, nsec), now);
        assert_eq!(of(9_880, 0), 9_880_000_000_000);
        assert_eq!(of(9_879, 999_999_999), 9_879_999_999_999);
        for (sec, nsec) in [(9_880, 1), (10_000, 0), (20_000, 0), (i64::MAX, 0), (-1, 0)] {
            assert_eq!(of(sec, nsec), 0, "{sec}.{nsec}");
        }
    }
}
