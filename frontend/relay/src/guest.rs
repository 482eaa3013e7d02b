//! A guest of the relay: its messages, the daemon's end, and an operator's commands.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::Receiver;

use gangplank_service::{error_chain, rate_limited};
use gangplank_vhost_backend::Connection;
use log::{debug, error};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::control::{Command, GuestCommand};
use super::daemon::Daemon;
use super::device::{Device, Fatal, Phase, ReplaceError};

/// Why the relay closed a guest's connection.
pub(super) type GuestError = gangplank_vhost_backend::GuestError<Fatal>;

/// One guest.
pub(super) struct Guest {
    connection: Connection,
    device: Device,
}

impl Guest {
    pub(super) fn new(socket: UnixStream, device: Device) -> Self {
        Self {
            connection: Connection::new(socket),
            device,
        }
    }

    /// Serves the guest until it hangs up. `wakeup` is an eventfd, readable after a command was
    /// sent to `commands`.
    pub(super) fn serve(
        &mut self,
        commands: &Receiver<GuestCommand>,
        wakeup: &OwnedFd,
    ) -> Result<(), GuestError> {
        loop {
            let ready = self.wait(wakeup)?;
            if ready.guest && !self.connection.take_messages(&mut self.device)? {
                return Ok(());
            }
            self.connection.check_pace()?;
            // The guest's messages may have brought another daemon since the wait.
            if ready.daemon && self.device.daemon().is_some_and(is_readable) {
                self.device.daemon_hung_up().map_err(GuestError::Fatal)?;
            }
            if ready.commands {
                // It resets the counter, and fails only if that is 0.
                let _ = rustix::io::read(wakeup, &mut [0; 8]);
                for command in commands.try_iter() {
                    self.run_command(command)?;
                }
            }
            self.device
                .reply_errors_to_all()
                .map_err(GuestError::Fatal)?;
            self.device.refuse_if_late().map_err(GuestError::Fatal)?;
            self.device.connect_if_due().map_err(GuestError::Fatal)?;
        }
    }

    fn wait(&self, wakeup: &OwnedFd) -> Result<Ready, GuestError> {
        let kicks = self.device.kicks();
        let mut awaited = vec![
            PollFd::new(&self.connection, PollFlags::IN),
            PollFd::new(wakeup, PollFlags::IN),
        ];
        let daemon = self.device.daemon();
        awaited.extend(daemon.map(|daemon| PollFd::new(daemon, PollFlags::IN)));
        let kicks = kicks.into_iter();
        awaited.extend(kicks.map(|kick| PollFd::from_borrowed_fd(kick, PollFlags::IN)));
        let until = self.device.next_attempt();
        self.connection.wait(&mut awaited, until)?;
        let is_ready = |at: usize| {
            let ready = awaited.get(at).map(|ready| ready.revents());
            ready.is_some_and(|ready| !ready.is_empty())
        };
        Ok(Ready {
            guest: is_ready(0),
            commands: is_ready(1),
            daemon: daemon.is_some() && is_ready(2),
        })
    }

    fn run_command(&mut self, command: GuestCommand) -> Result<(), GuestError> {
        let device = &mut self.device;
        let done = match &command.command {
            Command::Status => Ok(self.status()),
            Command::StatusJson => Ok(self.status_json().to_string()),
            Command::Pause => device.pause().map(str::to_owned),
            Command::Resume => device.resume().map(str::to_owned),
            Command::Switch { socket, files } => device.switch(socket, *files),
        };
        let done = match done {
            Err(ReplaceError::Fatal(fatal)) => {
                command.answer(Err(error_chain(&fatal)));
                return Err(GuestError::Fatal(fatal));
            }
            Err(error) => {
                error!(
                    "guest {}: {:?}: {}",
                    command.guest,
                    command.command,
                    error_chain(&error)
                );
                Err(error_chain(&error))
            }
            Ok(text) => {
                debug!("guest {}: {:?}: {text}", command.guest, command.command);
                Ok(text)
            }
        };
        command.answer(done);
        Ok(())
    }

    /// One line for an operator.
    fn status(&self) -> String {
        let device = &self.device;
        let phase = match &device.phase {
            Phase::Waiting => format!("waits for a daemon at {}", device.backend.display()),
            Phase::Served(daemon) => format!("served by {}", daemon.path().display()),
            Phase::Paused { state, .. } => match state {
                Some(state) => format!("paused, {} bytes of state saved", state.len()),
                None => "paused".to_owned(),
            },
            Phase::Lost => "has lost its daemon; requests are refused until it mounts anew".into(),
        };
        let ready = device.rings.iter().filter(|ring| ring.is_ready()).count();
        let counters = device.counters;
        format!(
            "{phase}; rings {ready}, daemons {}, losses {}, requests refused {}",
            counters.daemons, counters.losses, counters.refused
        )
    }

    /// The same as [`Guest::status`], with stable names.
    fn status_json(&self) -> serde_json::Value {
        let device = &self.device;
        let (phase, state_bytes) = match &device.phase {
            Phase::Waiting => ("waiting", None),
            Phase::Served(_) => ("served", None),
            Phase::Paused { state, .. } => ("paused", state.as_ref().map(Vec::len)),
            Phase::Lost => ("lost", None),
        };
        let daemon = device.daemon().map(Daemon::path);
        let ready = device.rings.iter().filter(|ring| ring.is_ready()).count();
        let counters = device.counters;
        serde_json::json!({
            "guest": device.guest(),
            "phase": phase,
            "daemon": daemon.map(Path::to_string_lossy),
            "backend": device.backend.to_string_lossy(),
            "saved_state_bytes": state_bytes,
            "rings": ready,
            "daemons": counters.daemons,
            "losses": counters.losses,
            "requests_refused": counters.refused,
        })
    }
}

/// Which descriptors are ready.
struct Ready {
    guest: bool,
    commands: bool,
    daemon: bool,
}

/// Whether data, or the end, can be read without waiting.
fn is_readable(descriptor: &impl AsFd) -> bool {
    let mut awaited = [PollFd::new(descriptor, PollFlags::IN)];
    matches!(poll(&mut awaited, Some(&Timespec::default())), Ok(1..))
}

/// Serves a guest until its connection ends, and logs how it ended.
pub(super) fn run(guest: &mut Guest, commands: &Receiver<GuestCommand>, wakeup: &OwnedFd) {
    let number = guest.device.guest();
    match guest.serve(commands, wakeup) {
        Ok(()) => rate_limited!(info, "guest {number} has gone"),
        Err(error) => rate_limited!(error, "guest {number} is dropped: {}", error_chain(&error)),
    }
}
