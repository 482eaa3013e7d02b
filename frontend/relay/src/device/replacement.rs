//! Pausing a device and replacing its daemon, on an operator's command.
//!
//! ```text
//!   connect to the new daemon ── stop the rings ── wait for requests in flight ── save
//!     ── load ── start the rings with the new daemon ── close the connection to the old one
//! ```
//!
//! After a failure the old daemon serves the device again, unless the new one had a ring.

use std::path::Path;
use std::time::{Duration, Instant};

use gangplank_rings::{QueueError, is_drained};
use gangplank_service::error_chain;
use log::{info, warn};

use super::backend_link::StartError;
use super::{Device, Fatal, Phase, Retry};
use crate::daemon::{Daemon, DaemonError};

/// Pause between two attempts to connect to the daemon that a resumed device needs.
const CONNECT_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// What happens to the guest's open files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    /// They stay open: the new daemon gets the old one's state.
    Kept,
    /// They are lost: the guest has to mount anew.
    Lost,
}

/// Why a daemon was not replaced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplaceError {
    /// The device is in another phase.
    #[error("{0}")]
    NotNow(&'static str),
    /// A daemon failed. The device goes on as before.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// Requests are still in flight.
    #[error("requests in flight do not end within {0:?}")]
    Busy(Duration),
    /// The rings cannot be read.
    #[error("cannot see whether requests are in flight")]
    Rings(#[from] QueueError),
    /// A daemon has no DEVICE_STATE.
    #[error("{0} cannot hand on what it knows of the guest's files (DEVICE_STATE)")]
    NoState(&'static str),
    /// The device cannot go on.
    #[error(transparent)]
    Fatal(#[from] Fatal),
}

impl Device {
    /// Stops the rings, and saves what the daemon knows of the guest's files if it can. The guest's
    /// requests wait in the rings.
    pub(crate) fn pause(&mut self) -> Result<&'static str, ReplaceError> {
        let mut daemon = match self.take_phase() {
            Phase::Served(daemon) => daemon,
            phase => {
                self.phase = phase;
                return Err(ReplaceError::NotNow("no daemon serves the guest"));
            }
        };
        if let Err(error) = self.stop_rings(&mut daemon) {
            return Err(self.gone(error));
        }
        if let Err(error) = self.wait_until_drained() {
            self.restart(daemon)?;
            return Err(error);
        }
        // A daemon that completes a request after it has stopped the ring (virtiofsd with a thread
        // pool does) has no descriptor any more by which to signal that.
        for ring in self.rings.iter().filter(|ring| ring.is_ready()) {
            ring.signal_call();
        }
        let mut state = None;
        let mut said = "paused; the daemon cannot hand on what it knows of the guest's files";
        if daemon.has_state() {
            match daemon.save() {
                Ok(saved) => {
                    info!(
                        "guest {}: its daemon's state is saved, {} bytes",
                        self.guest(),
                        saved.len()
                    );
                    state = Some(saved);
                    said = "paused, and the daemon's state is saved";
                }
                Err(error @ DaemonError::Wire { .. }) => return Err(self.gone(error)),
                Err(error) => {
                    warn!("guest {}: {}", self.guest(), error_chain(&error));
                    said = "paused; the daemon did not hand on what it knows of the guest's files";
                }
            }
        }
        self.phase = Phase::Paused {
            daemon: Some(daemon),
            state,
        };
        Ok(said)
    }

    /// Starts the rings again, with the daemon that had them. If that has gone, connects to another
    /// and loads its state.
    pub(crate) fn resume(&mut self) -> Result<&'static str, ReplaceError> {
        match self.take_phase() {
            Phase::Paused {
                daemon: Some(daemon),
                ..
            } => {
                self.restart(daemon)?;
                Ok("resumed with the same daemon")
            }
            Phase::Paused {
                daemon: None,
                state: Some(state),
            } => {
                let found = self.connect_within_limit().map_err(StartError::from);
                let resumed = found.and_then(|mut daemon| {
                    daemon.load(&state)?;
                    self.start(daemon)
                });
                match resumed {
                    Ok(()) => Ok("resumed with another daemon"),
                    Err(error) if error.had_rings => Err(self.gone(error.why)),
                    Err(error) => {
                        self.phase = Phase::Paused {
                            daemon: None,
                            state: Some(state),
                        };
                        Err(error.why.into())
                    }
                }
            }
            // There is no state: the guest has reset the device, or the notes about its requests
            // are all that the next daemon needs.
            Phase::Paused { .. } => {
                self.retry = Retry::now();
                match self.await_successor()? {
                    true => Ok("resumed; the next daemon goes on"),
                    false => Ok("resumed"),
                }
            }
            phase => {
                self.phase = phase;
                Err(ReplaceError::NotNow("the guest is not paused"))
            }
        }
    }

    /// Replaces the daemon by the one at `path`. After an error the device goes on as before,
    /// unless the new daemon had a ring: the old one does not know what it did with the requests in
    /// it.
    pub(crate) fn switch(&mut self, path: &Path, files: Files) -> Result<String, ReplaceError> {
        if let Phase::Served(daemon) = &self.phase
            && files == Files::Kept
            && daemon.listens_at(path)
        {
            return Ok("it is served by that daemon already".to_owned());
        }
        let was_paused = matches!(self.phase, Phase::Paused { .. });
        if matches!(self.phase, Phase::Waiting | Phase::Lost) {
            path.clone_into(&mut self.backend);
            self.retry = Retry::now();
            return Ok("the guest will connect to the daemon there".to_owned());
        }
        if files == Files::Lost {
            return self.switch_without_state(path);
        }
        let mut next = self.connect_to(path)?;
        if !next.has_state() {
            return Err(ReplaceError::NoState("the new daemon"));
        }
        if let Phase::Served(daemon) = &self.phase {
            if !daemon.has_state() {
                return Err(ReplaceError::NoState("the daemon"));
            }
            self.pause()?;
        }
        let Phase::Paused { daemon, state } = self.take_phase() else {
            return Err(ReplaceError::NotNow("the guest is not paused"));
        };
        let loaded = match &state {
            Some(state) => next.load(state).map_err(ReplaceError::from),
            None => Err(ReplaceError::NoState("the daemon")),
        };
        let started = match loaded.map(|()| self.start(next)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if error.had_rings => return Err(self.gone(error.why)),
            Ok(Err(error)) => Err(error.why.into()),
            Err(error) => Err(error),
        };
        match (started, daemon) {
            (Ok(()), old) => {
                drop(old);
                path.clone_into(&mut self.backend);
                info!(
                    "guest {} is served by the daemon at {}",
                    self.guest(),
                    path.display()
                );
                let len = state.map_or(0, |state| state.len());
                Ok(format!("replaced, with {len} bytes of state"))
            }
            (Err(error), Some(old)) if !was_paused => {
                self.restart(old)?;
                Err(error)
            }
            (Err(error), daemon) => {
                self.phase = Phase::Paused { daemon, state };
                Err(error)
            }
        }
    }

    /// Gives the daemon up. The device connects to the new one when the guest mounts anew.
    fn switch_without_state(&mut self, path: &Path) -> Result<String, ReplaceError> {
        if matches!(self.phase, Phase::Served(_)) {
            self.pause()?;
        }
        self.phase = Phase::Paused {
            daemon: None,
            state: None,
        };
        self.on_backend_lost("it is replaced without its state")?;
        path.clone_into(&mut self.backend);
        Ok("replaced; the guest has to mount anew".to_owned())
    }

    fn take_phase(&mut self) -> Phase {
        std::mem::replace(&mut self.phase, Phase::Waiting)
    }

    /// Starts the rings with the daemon that had them.
    fn restart(&mut self, daemon: Daemon) -> Result<(), ReplaceError> {
        match self.start(daemon) {
            Ok(()) => {
                // It is the same daemon, which counts once.
                self.counters.daemons -= 1;
                Ok(())
            }
            Err(error) => Err(self.gone(error.why)),
        }
    }

    /// The daemon failed while its rings were stopped or started.
    fn gone(&mut self, error: DaemonError) -> ReplaceError {
        match self.lose_with_rings(&error) {
            Ok(()) => error.into(),
            Err(fatal) => fatal.into(),
        }
    }

    /// Connects to the daemon at the device's socket, which may be about to start.
    fn connect_within_limit(&self) -> Result<Daemon, DaemonError> {
        let until = Instant::now() + self.limits().connect;
        loop {
            match self.connect() {
                Err(DaemonError::Connect { .. }) if Instant::now() < until => {
                    std::thread::sleep(CONNECT_RETRY_INTERVAL);
                }
                found => return found,
            }
        }
    }

    /// Waits for the requests in flight: a daemon may reply that a ring is stopped before it has
    /// completed them.
    fn wait_until_drained(&self) -> Result<(), ReplaceError> {
        let limit = self.limits().answer;
        let until = Instant::now() + limit;
        for (queue, base) in self.ready_queues() {
            let left = until.saturating_duration_since(Instant::now());
            if !is_drained(&queue, base, left)? {
                return Err(ReplaceError::Busy(limit));
            }
        }
        Ok(())
    }
}
