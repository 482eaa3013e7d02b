//! Connecting to a daemon, and handing it all that the guest has set up.

use std::path::Path;
use std::time::{Duration, Instant};

use gangplank_service::{error_chain, rate_limited};
use gangplank_vhost_backend::Ring;
use log::debug;

use super::{Device, Fatal, Phase, Retry};
use crate::daemon::{Daemon, DaemonError};

/// Pause after the first failed attempt to connect. Each further pause is twice as long.
const MIN_RETRY_BACKOFF: Duration = Duration::from_millis(20);

/// Pause between two attempts to connect at most: how late a guest notices a daemon.
const MAX_RETRY_BACKOFF: Duration = Duration::from_secs(1);

/// A daemon whose rings have been empty for this long has left them.
const LEAVING_TIME: Duration = Duration::from_micros(500);

/// A daemon that has completed nothing for this long has left its rings, although there are
/// requests in them, or waits for a disk. It is a part of the pause that a guest notices.
const STALLED_TIME: Duration = Duration::from_millis(5);

/// Limit for a daemon to leave its rings.
const MAX_LEAVING_TIME: Duration = Duration::from_millis(20);

/// A daemon could not be set up.
#[derive(Debug)]
pub(super) struct StartError {
    /// Why.
    pub(super) why: DaemonError,
    /// Whether the daemon had a ring for a moment. No other process knows what it did with the
    /// requests in it.
    pub(super) had_rings: bool,
}

impl From<DaemonError> for StartError {
    fn from(why: DaemonError) -> Self {
        Self {
            why,
            had_rings: false,
        }
    }
}

impl Retry {
    /// At once, and then with the shortest pause.
    pub(super) fn now() -> Self {
        Self {
            at: Instant::now(),
            backoff: MIN_RETRY_BACKOFF,
            is_logged: false,
        }
    }

    fn later(&mut self) {
        self.at = Instant::now() + self.backoff;
        self.backoff = MAX_RETRY_BACKOFF.min(self.backoff * 2);
        self.is_logged = true;
    }
}

impl Device {
    /// Connects to a daemon if the device waits for one and the pause since the last attempt is
    /// over.
    pub(crate) fn connect_if_due(&mut self) -> Result<(), Fatal> {
        if self.next_attempt().is_none_or(|at| Instant::now() < at) {
            return Ok(());
        }
        let started = self
            .connect()
            .map_err(StartError::from)
            .and_then(|daemon| self.start(daemon));
        match started {
            Ok(()) => {
                rate_limited!(
                    info,
                    "guest {} is served by the daemon at {}",
                    self.guest,
                    self.backend.display()
                );
                self.retry = Retry::now();
            }
            Err(error) if error.had_rings => self.lose_with_rings(&error.why)?,
            Err(StartError { why: error, .. }) => {
                if self.retry.is_logged {
                    debug!(
                        "guest {} still waits for a daemon: {}",
                        self.guest,
                        error_chain(&error)
                    );
                } else {
                    rate_limited!(
                        info,
                        "guest {} waits for a daemon: {}",
                        self.guest,
                        error_chain(&error)
                    );
                }
                self.retry.later();
            }
        }
        Ok(())
    }

    /// [`Self::connect_to`] the device's socket.
    pub(super) fn connect(&self) -> Result<Daemon, DaemonError> {
        self.connect_to(&self.backend)
    }

    /// Connects to the daemon at `path`, and checks that it has what the device needs.
    pub(super) fn connect_to(&self, path: &Path) -> Result<Daemon, DaemonError> {
        let daemon = match self.options.return_time {
            Some(_) => Daemon::connect_with_inflight(path, self.limits())?,
            None => Daemon::connect(path, self.limits())?,
        };
        self.check(&daemon)?;
        Ok(daemon)
    }

    /// Fails unless the daemon has the features and rings that the guest was offered.
    fn check(&self, daemon: &Daemon) -> Result<(), DaemonError> {
        let missing = self.features.unwrap_or(0) & !daemon.offered();
        if missing != 0 {
            return Err(daemon.lacks(format!("the virtio features {missing:#x}")));
        }
        let wanted = self.queues.map_or(0, |queues| u64::from(queues) + 1);
        match daemon.max_rings() {
            Some(rings) if rings < wanted => {
                Err(daemon.lacks(format!("{wanted} queues, but {rings}")))
            }
            _ => Ok(()),
        }
    }

    /// Hands a daemon all that the guest has set up, and starts the rings. After an error the
    /// daemon is dropped, and a ring is started only if the daemon hung up with it.
    pub(super) fn start(&mut self, mut daemon: Daemon) -> Result<(), StartError> {
        let started = self.start_rings(&mut daemon);
        match started {
            Ok(()) => {
                self.counters.daemons += 1;
                self.successor_until = None;
                self.served_since = Instant::now();
                self.phase = Phase::Served(daemon);
                Ok(())
            }
            Err(why) => {
                let had_rings = self.rings.iter().any(|ring| ring.is_started);
                // A daemon that has hung up keeps its rings: the caller loses it with them.
                let _ = self.stop_rings(&mut daemon);
                Err(StartError { why, had_rings })
            }
        }
    }

    fn start_rings(&mut self, daemon: &mut Daemon) -> Result<(), DaemonError> {
        if let Some(features) = self.features {
            daemon.set_features(features)?;
        }
        if let Some(memory) = &self.memory {
            daemon.set_memory(memory)?;
        }
        match (&self.inflight, self.successor_until) {
            (Some(_), Some(_)) if !daemon.has_inflight() => {
                return Err(daemon.lacks("VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD"));
            }
            (Some(inflight), Some(_)) => daemon.set_inflight(inflight)?,
            // Its rings are where they stopped.
            _ => self.inflight = None,
        }
        self.keep_inflight(daemon)?;
        for (index, ring) in (0..).zip(&mut self.rings) {
            if ring.is_ready() && self.features.is_some() {
                // A ring of which only some messages arrived counts as started.
                ring.is_started = true;
                daemon.start_ring(index, ring)?;
            }
        }
        Ok(())
    }

    /// Has a daemon that is about to get its first ring note its requests in flight, if it can.
    pub(super) fn keep_inflight(&mut self, daemon: &mut Daemon) -> Result<(), DaemonError> {
        let is_ready = self.rings.iter().any(Ring::is_ready) && self.features.is_some();
        if !is_ready || self.inflight.is_some() || !daemon.has_inflight() {
            return Ok(());
        }
        let rings = u16::try_from(self.rings.len()).unwrap_or(u16::MAX);
        // Drivers give all rings of a device the same size.
        let size = self.rings.iter().map(|ring| ring.size).max();
        let inflight = daemon.new_inflight(rings, size.unwrap_or_default())?;
        daemon.set_inflight(&inflight)?;
        self.inflight = Some(inflight);
        Ok(())
    }

    /// Stops all rings of a daemon. The guest may still put requests into them, which wait there.
    pub(super) fn stop_rings(&mut self, daemon: &mut Daemon) -> Result<(), DaemonError> {
        for (index, ring) in (0..).zip(&self.rings) {
            if ring.is_started {
                daemon.disable_ring(index)?;
            }
        }
        self.wait_for_daemon_to_leave_rings();
        for (index, ring) in (0..).zip(&mut self.rings) {
            if ring.is_started {
                ring.base = daemon.stop_ring(index)?;
                ring.is_started = false;
            }
        }
        Ok(())
    }

    /// Waits until a daemon that was told to disable the rings has left them, or for a moment.
    /// virtiofsd 1.14 looks for requests until it finds none. If its ring is stopped meanwhile and
    /// the guest adds a request, it finds that one for ever and never ends. A disabled ring is left
    /// as soon as it is empty, and not entered again: then it may have requests that nobody takes.
    fn wait_for_daemon_to_leave_rings(&self) {
        // The used indices, and whether no ring has a request.
        let look = || {
            let (mut used, mut are_empty) = (Vec::new(), true);
            for (queue, _) in self.ready_queues() {
                let index = queue.used_index().ok()?;
                are_empty &= queue.waiting(index).ok()? == 0;
                used.push(index);
            }
            Some((used, are_empty))
        };
        let begun = Instant::now();
        let (mut before, mut since) = (Vec::new(), begun);
        while let Some((used, are_empty)) = look() {
            if used != before {
                (before, since) = (used, Instant::now());
            }
            let limit = match are_empty {
                true => LEAVING_TIME,
                false => STALLED_TIME,
            };
            if since.elapsed() >= limit || begun.elapsed() >= MAX_LEAVING_TIME {
                return;
            }
            std::thread::sleep(LEAVING_TIME);
        }
    }
}
