//! Replacing a guest's daemon by another, as an operator asks for it.
//!
//! ```text
//!   connect to the new one ── stop the rings ── all requests back? ── save ── load ── start the rings ── leave the old one
//!                                 └── on any failure the old one goes on ──┘
//! ```

use std::path::Path;
use std::time::{Duration, Instant};

use gangplank_service::error_chain;
use log::{info, warn};

use super::daemon::{Daemon, DaemonError};
use super::device::{Device, Fatal, Phase, StartError};
use super::error_replies::is_drained;
use super::split_queue::QueueError;

/// How often a daemon that is not there yet is looked for when it has to be there.
const CONNECT_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// What becomes of the guest's open files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Files {
    /// They stay open: the new daemon gets the old one's state.
    Kept,
    /// They are lost, and the guest has to mount anew.
    Lost,
}

/// Why a daemon was not replaced.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReplaceError {
    /// There is no daemon whose rings could be stopped.
    #[error("{0}")]
    NotNow(&'static str),
    /// A daemon did not do its part. The guest goes on as before.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// Requests are still on their way.
    #[error("requests in flight do not end within {0:?}")]
    Busy(Duration),
    /// The rings cannot be looked at.
    #[error("cannot see whether requests are in flight")]
    Rings(#[from] QueueError),
    /// The state cannot be handed on.
    #[error("{0} cannot hand on what it knows of the guest's files (DEVICE_STATE)")]
    NoState(&'static str),
    /// Worse.
    #[error(transparent)]
    Fatal(#[from] Fatal),
}

impl Device {
    /// Stops the rings and saves what the daemon knows, where it can tell. What the guest asks for waits.
    pub(super) fn pause(&mut self) -> Result<&'static str, ReplaceError> {
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

    /// Starts the rings again: with the daemon that had them, or if that has gone, with one that is loaded with its state.
    pub(super) fn resume(&mut self) -> Result<&'static str, ReplaceError> {
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
                let found = self.find().map_err(StartError::from);
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
            // Nothing was known: the guest had reset the device.
            Phase::Paused { .. } => {
                self.phase = Phase::Waiting;
                self.retry_now();
                Ok("resumed")
            }
            phase => {
                self.phase = phase;
                Err(ReplaceError::NotNow("the guest is not paused"))
            }
        }
    }

    /// Leaves the daemon for the one at `path`. On an error the guest goes on as before, if the other daemon had none of its
    /// rings: what that did with the requests in them, the one before does not know.
    pub(super) fn switch(&mut self, path: &Path, files: Files) -> Result<String, ReplaceError> {
        if let Phase::Served(daemon) = &self.phase
            && files == Files::Kept
            && daemon.listens_at(path)
        {
            return Ok("it is served by that daemon already".to_owned());
        }
        let was_paused = matches!(self.phase, Phase::Paused { .. });
        if matches!(self.phase, Phase::Waiting | Phase::Lost) {
            path.clone_into(&mut self.backend);
            self.retry_now();
            return Ok("a daemon will be looked for there".to_owned());
        }
        if files == Files::Lost {
            return self.switch_without_state(path);
        }
        let mut next = Daemon::connect(path, self.limits())?;
        self.check(&next)?;
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

    /// The new daemon is connected to when the guest mounts anew.
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

    /// The daemon has the rings again.
    fn restart(&mut self, daemon: Daemon) -> Result<(), ReplaceError> {
        match self.start(daemon) {
            Ok(()) => {
                // It is the same one.
                self.counters.daemons -= 1;
                Ok(())
            }
            Err(error) => Err(self.gone(error.why)),
        }
    }

    /// The daemon went while the rings were being stopped or started.
    fn gone(&mut self, error: DaemonError) -> ReplaceError {
        match self.lose_with_rings(&error) {
            Ok(()) => error.into(),
            Err(fatal) => fatal.into(),
        }
    }

    fn find(&self) -> Result<Daemon, DaemonError> {
        let until = Instant::now() + self.limits().connect;
        loop {
            let found = Daemon::connect(&self.backend, self.limits()).and_then(|daemon| {
                self.check(&daemon)?;
                Ok(daemon)
            });
            match found {
                Err(DaemonError::Connect { .. }) if Instant::now() < until => {
                    std::thread::sleep(CONNECT_RETRY_INTERVAL);
                }
                found => return found,
            }
        }
    }

    /// A daemon may answer that a ring is stopped while requests of it are still being dealt with.
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
