//! The service manager's watchdog (`WatchdogSec=`, `sd_watchdog_enabled(3)`): when the program has
//! to say that it is alive.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::readiness::report;

/// The service manager's watchdog, which ends the program if it is silent for too long.
#[derive(Debug)]
pub struct Watchdog {
    /// Half of the time that the service manager permits.
    interval: Duration,
    due: Instant,
}

impl Watchdog {
    /// The watchdog that the environment asks for (`WATCHDOG_USEC`, `WATCHDOG_PID`), if any.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let permitted = sd_notify::watchdog_enabled()?;
        Some(Self::new(permitted / 2))
    }

    fn new(interval: Duration) -> Self {
        Self {
            interval,
            due: Instant::now() + interval,
        }
    }

    /// Half of the time that the service manager permits.
    #[must_use]
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// Time until the program has to look whether it is alive.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.due.saturating_duration_since(Instant::now())
    }

    /// Whether the program has to look now whether it is alive. True once an interval.
    pub fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = now >= self.due;
        if is_due {
            self.due = now + self.interval;
        }
        is_due
    }

    /// Tells the service manager that the program is alive.
    pub fn alive(&self) {
        report(sd_notify::notify(&[NotifyState::Watchdog]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_once_an_interval() {
        let mut watchdog = Watchdog::new(Duration::from_secs(3600));
        assert!(!watchdog.is_due());
        assert!(watchdog.left() > Duration::from_secs(3500));
        watchdog.due = Instant::now();
        assert_eq!(watchdog.left(), Duration::ZERO);
        assert!(watchdog.is_due());
        assert!(!watchdog.is_due());
    }
}
