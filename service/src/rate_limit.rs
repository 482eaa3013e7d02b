//! Rate limits for log messages that a guest or another peer can cause.
//!
//! Each call site, or each connection, logs a few messages per interval.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Messages that one call site may log in one [`INTERVAL`].
pub const BURST: u32 = 5;

/// Length of the window in which a call site may log [`BURST`] messages.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// What a call site has logged lately. `rate_limited!` makes a static one for each use.
#[derive(Debug)]
pub struct RateLimit {
    burst: u32,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    since: Option<Instant>,
    logged: u32,
    suppressed: u64,
}

impl RateLimit {
    /// A call site that has not logged yet, and may log [`BURST`] messages per [`INTERVAL`].
    #[must_use]
    #[expect(clippy::new_without_default, reason = "made by the macro in a static")]
    pub const fn new() -> Self {
        Self::with_burst(BURST)
    }

    /// A call site that may log one message per [`INTERVAL`].
    #[must_use]
    pub const fn once() -> Self {
        Self::with_burst(1)
    }

    const fn with_burst(burst: u32) -> Self {
        Self {
            burst,
            window: Mutex::new(Window {
                since: None,
                logged: 0,
                suppressed: 0,
            }),
        }
    }

    /// Counts one message. `Some(n)`: log it, `n` messages before it were suppressed. `None`:
    /// suppress it.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock();
        let expired = window
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= INTERVAL);
        if expired {
            window.since = Some(now);
            window.logged = 0;
        }
        if window.logged >= self.burst {
            window.suppressed = window.suppressed.saturating_add(1);
            return None;
        }
        window.logged += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

/// Logs like the `log` macro of the given level, at most [`BURST`] times per [`INTERVAL`] from this
/// call site. The next message after that says how many were suppressed.
///
/// For everything that a guest or a frontend can cause repeatedly: `rate_limited!(warn, "queue
/// {index} stopped: {error}")`.
#[macro_export]
macro_rules! rate_limited {
    ($level:ident, $($message:tt)+) => {{
        static SITE: $crate::rate_limit::RateLimit = $crate::rate_limit::RateLimit::new();
        match SITE.admit() {
            None => {}
            Some(0) => log::$level!($($message)+),
            Some(suppressed) => {
                log::$level!(
                    "{} ({suppressed} more like this suppressed)",
                    format_args!($($message)+)
                );
            }
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admit_beyond_burst_is_silent_until_the_interval_is_over() {
        let site = RateLimit::new();
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(site.admit_at(start), Some(0));
        }
        assert_eq!(site.admit_at(start), None);
        assert_eq!(
            site.admit_at(start + INTERVAL - Duration::from_millis(1)),
            None
        );
        assert_eq!(site.admit_at(start + INTERVAL), Some(2));
        assert_eq!(site.admit_at(start + INTERVAL), Some(0));
    }

    #[test]
    fn a_limit_of_one_admits_one_message_per_interval() {
        let limit = RateLimit::once();
        let start = Instant::now();
        assert_eq!(limit.admit_at(start), Some(0));
        assert_eq!(limit.admit_at(start), None);
        assert_eq!(limit.admit_at(start + INTERVAL), Some(1));
    }

    #[test]
    fn macro_in_a_loop_shares_one_site() {
        let mut evaluated = 0;
        for _ in 0..1000 {
            rate_limited!(trace, "seen {}", {
                evaluated += 1;
                evaluated
            });
        }
        assert!(evaluated <= BURST);
    }
}
