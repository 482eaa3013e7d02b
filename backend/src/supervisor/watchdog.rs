//! The supervisor's answer to the service manager's watchdog: it is alive if its acceptor answers.

use std::io;
use std::time::Duration;

use gangplank_service::watchdog::Watchdog;

use crate::handover::channel::{Channel, Message};

/// Asks the acceptor at each interval, and reports its answers.
#[derive(Debug)]
pub(super) struct AcceptorWatchdog {
    /// `None` if the service manager has no watchdog.
    watchdog: Option<Watchdog>,
    /// Whether an answer is outstanding. Then nothing more is asked: the channel must not fill.
    is_asking: bool,
}

impl AcceptorWatchdog {
    pub(super) fn from_environment() -> Self {
        Self {
            watchdog: Watchdog::from_environment(),
            is_asking: false,
        }
    }

    /// Time until [`Self::ask`] has something to do.
    pub(super) fn left(&self) -> Option<Duration> {
        self.watchdog.as_ref().map(Watchdog::left)
    }

    /// Asks the acceptor at the other end of `channel`, if it is time.
    ///
    /// # Errors
    /// Those of sendmsg(2).
    pub(super) fn ask(&mut self, channel: &Channel) -> io::Result<()> {
        let Some(watchdog) = &mut self.watchdog else {
            return Ok(());
        };
        if !watchdog.is_due() {
            return Ok(());
        }
        if self.is_asking {
            log::error!(
                "the acceptor does not answer, so the service manager's watchdog is not told"
            );
            return Ok(());
        }
        self.is_asking = true;
        match channel.send(&Message::Ping, &[]) {
            // It has ended, which the supervisor finds out by itself.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            sent => sent,
        }
    }

    /// There is no acceptor, and the next one is about to be started: the guests go on meanwhile,
    /// and the supervisor works.
    pub(super) fn go_on_without(&mut self) {
        if let Some(watchdog) = &mut self.watchdog
            && watchdog.is_due()
        {
            watchdog.alive();
        }
    }

    /// The acceptor has answered.
    pub(super) fn answered(&mut self) {
        self.is_asking = false;
        if let Some(watchdog) = &self.watchdog {
            watchdog.alive();
        }
    }

    /// Another acceptor may be in the place of the one that was asked.
    pub(super) const fn forget(&mut self) {
        self.is_asking = false;
    }
}
