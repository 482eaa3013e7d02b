//! Pauses a listener after accept has failed for lack of resources.

use std::io;
use std::time::{Duration, Instant};

use gangplank_service::rate_limit::RateLimit;
use rustix::event::PollFlags;
use rustix::io::Errno;

/// How long a listener pauses after accept has run out of descriptors or memory. The connection
/// stays in the system's queue and would otherwise wake poll at once, again and again.
const BACKOFF: Duration = Duration::from_millis(100);

/// Whether the listener is paused.
#[derive(Debug)]
pub(crate) struct AcceptBackoff {
    paused_until: Option<Instant>,
    log_limit: RateLimit,
}

impl Default for AcceptBackoff {
    fn default() -> Self {
        Self {
            paused_until: None,
            log_limit: RateLimit::once(),
        }
    }
}

impl AcceptBackoff {
    /// Notes that accept has failed. Returns whether to log it, since others can cause it as often
    /// as they like.
    pub(crate) fn failed(&mut self, error: &io::Error) -> bool {
        let lacking = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
        if Errno::from_io_error(error).is_some_and(|errno| lacking.contains(&errno)) {
            self.paused_until = Some(Instant::now() + BACKOFF);
        }
        self.log_limit.admit().is_some()
    }

    /// The poll events to wait for on the listener.
    pub(crate) fn interest(&self) -> PollFlags {
        match self.paused_for() {
            Some(_) => PollFlags::empty(),
            None => PollFlags::IN,
        }
    }

    /// How much longer the listener is paused, if it is.
    pub(crate) fn paused_for(&self) -> Option<Duration> {
        let left = self.paused_until?.checked_duration_since(Instant::now())?;
        (!left.is_zero()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_that_would_repeat_at_once_pause_accepting() {
        let mut backoff = AcceptBackoff::default();
        assert!(backoff.failed(&Errno::CONNABORTED.into()));
        assert_eq!(backoff.interest(), PollFlags::IN);
        assert!(!backoff.failed(&Errno::MFILE.into()), "it was just said");
        assert_eq!(backoff.interest(), PollFlags::empty());
        let left = backoff.paused_for().unwrap();
        assert!(left <= BACKOFF);
        backoff.paused_until = Instant::now().checked_sub(BACKOFF);
        assert_eq!(
            (backoff.interest(), backoff.paused_for()),
            (PollFlags::IN, None)
        );
    }
}
