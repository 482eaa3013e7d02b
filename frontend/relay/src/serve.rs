//! The relay as a program: its sockets, one thread for each guest, commands from an operator.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gangplank_service::activation;
use gangplank_service::peer_cred::PeerCred;
use gangplank_service::rate_limit::{self, set_thread_peer};
use gangplank_service::readiness;
use gangplank_service::signals::{STATUS, Signals};
use gangplank_service::unix_listener::{BindError, OwnedListener};
use gangplank_service::watchdog::Watchdog;
use gangplank_service::{group, logging, rate_limited};
use log::debug;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::answers::{collect, held_in_words, in_json, remark};
use super::control::{self, Command, GuestCommand};
use super::daemon;
use super::device::Files;
use super::device::{Device, DeviceOptions};
use super::guest::{self, Guest};
use super::holder::Summary;

/// Guests that the relay serves at a time. Each takes a thread and some ten descriptors.
const MAX_GUESTS: usize = 256;

/// Pause before the next accept after one failed for lack of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Why the relay cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket cannot be created.
    #[error(transparent)]
    Listen(#[from] BindError),
    /// The group that may connect is not known.
    #[error("--socket-group")]
    Group(#[from] group::Error),
    /// The service manager's socket cannot be used.
    #[error(transparent)]
    Activation(#[from] activation::Error),
    /// poll failed.
    #[error("cannot wait for guests")]
    Wait(#[source] io::Error),
    /// No thread can be started that holds descriptors.
    #[error("cannot hold descriptors of daemons")]
    Holder(#[source] io::Error),
    /// The command cannot be sent to a running relay.
    #[error("cannot send a command to the relay at {}", path.display())]
    Control {
        /// The path of its control socket.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The relay's answer cannot be written.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// A running relay answered that the command failed, or the command line is incomplete.
    #[error("{0}")]
    Refused(String),
    /// The relay cannot be confined.
    #[error(transparent)]
    Confine(#[from] gangplank_sandbox::Error),
    /// The log cannot be set up.
    #[error(transparent)]
    Logging(#[from] logging::Error),
}

/// A guest that the relay serves.
struct Served {
    number: u64,
    commands: Sender<GuestCommand>,
    wakeup: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

/// The relay.
pub(super) struct Relay {
    options: Arc<DeviceOptions>,
    /// The socket of the next guest's daemon. A `switch` that succeeds changes it.
    backend: Arc<Mutex<PathBuf>>,
    guests: Vec<Served>,
    /// Guests that have connected so far.
    count: u64,
    /// What is held for daemons, if the relay holds anything.
    held: Option<Summary>,
}

impl Relay {
    pub(super) fn new(options: DeviceOptions, backend: PathBuf, held: Option<Summary>) -> Self {
        Self {
            options: Arc::new(options),
            backend: Arc::new(Mutex::new(backend)),
            guests: Vec::new(),
            count: 0,
            held,
        }
    }

    /// Serves guests that connect at `listener`, and operators at `control`, until a signal ends
    /// it.
    pub(super) fn serve(
        &mut self,
        listener: &OwnedListener,
        control: Option<&OwnedListener>,
        signals: &Signals,
    ) -> Result<(), Error> {
        let mut watchdog = Watchdog::from_environment();
        readiness::ready("Serving guests");
        loop {
            if let Some(watchdog) = &mut watchdog
                && watchdog.is_due()
            {
                watchdog.alive();
            }
            let limit = watchdog.as_ref().map(Watchdog::left);
            let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
            let mut awaited = vec![
                PollFd::new(listener, PollFlags::IN),
                PollFd::new(signals, PollFlags::IN),
            ];
            awaited.extend(control.map(|control| PollFd::new(control, PollFlags::IN)));
            match poll(&mut awaited, limit.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::Wait(errno.into())),
            }
            self.guests.retain(|guest| !guest.thread.is_finished());
            match signals.take().map_err(Error::Wait)? {
                Some(signal) if STATUS.contains(&signal) => self.report(),
                Some(_) => {
                    readiness::stopping();
                    return Ok(());
                }
                None => {}
            }
            if let Some(stream) = accept(listener) {
                self.take(stream);
            }
            if let Some(stream) = control.and_then(accept) {
                self.take_command(stream);
            }
        }
    }

    fn report(&mut self) {
        self.send_to_guests(Command::Status, |answer| {
            let (Ok(text) | Err(text)) = answer;
            logging::log_status(&text);
        });
    }

    fn take(&mut self, stream: UnixStream) {
        if self.guests.len() >= MAX_GUESTS {
            rate_limited!(
                peer = log_key(&stream),
                error,
                "a guest is refused: {MAX_GUESTS} guests are connected, which is the most"
            );
            return;
        }
        self.count += 1;
        let number = self.count;
        let log_key = log_key(&stream);
        match self.start(number, stream, log_key) {
            Ok(served) => self.guests.push(served),
            Err(error) => {
                rate_limited!(
                    peer = log_key,
                    error,
                    "cannot serve guest {number}: {error}"
                );
            }
        }
    }

    fn start(
        &self,
        number: u64,
        stream: UnixStream,
        log_key: rate_limit::Peer,
    ) -> io::Result<Served> {
        stream.set_nonblocking(true)?;
        let wakeup = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (commands, inbox) = mpsc::channel();
        let woken = Arc::clone(&wakeup);
        let options = Arc::clone(&self.options);
        let backend = self.backend.lock().clone();
        let thread = thread::Builder::new()
            .name(format!("guest_{number}"))
            .spawn(move || {
                // Connecting to the daemon takes time, so it is done on the guest's thread.
                set_thread_peer(log_key);
                rate_limited!(info, "guest {number} has connected");
                let mut guest = Guest::new(stream, Device::new(number, options, backend));
                guest::run(&mut guest, &inbox, &woken);
            })?;
        Ok(Served {
            number,
            commands,
            wakeup,
            thread,
        })
    }

    /// Reads an operator's command, and runs it for all guests.
    fn take_command(&mut self, stream: UnixStream) {
        let command = match stream
            .set_nonblocking(false)
            .and_then(|()| control::receive(&stream))
        {
            Ok(Some(command)) => command,
            Ok(None) => return answer(&stream, Err("the relay has no such command".to_owned())),
            Err(error) => {
                rate_limited!(
                    warn,
                    "cannot read a command from the control socket: {error}"
                );
                return;
            }
        };
        if let Command::Switch { socket, .. } = &command
            && let Err(why) = daemon::listens_at(socket)
        {
            // Guests that have no daemon yet would wait there.
            let refusal = format!("cannot switch to {}: {why}", socket.display());
            return answer(&stream, Err(refusal));
        }
        self.send_to_guests(command, move |done| answer(&stream, done));
    }

    /// Sends `command` to every guest, and calls `then` with their answers. That happens on a
    /// thread of its own, because guests may take long.
    fn send_to_guests(
        &mut self,
        command: Command,
        then: impl FnOnce(Result<String, String>) + Send + 'static,
    ) {
        debug!(
            "command: {}",
            String::from_utf8_lossy(&command.encode()).trim_end()
        );
        let (answer, answers) = mpsc::channel();
        for guest in &self.guests {
            // A guest that has just gone does not answer.
            let _ = guest.commands.send(GuestCommand {
                guest: guest.number,
                command: command.clone(),
                answer: answer.clone(),
            });
            let _ = rustix::io::write(&*guest.wakeup, &1u64.to_ne_bytes());
        }
        let count = self.guests.len();
        let command_limit = self.command_limit();
        let backend = Arc::clone(&self.backend);
        let held = self.held.clone();
        let started = thread::Builder::new()
            .name("command".to_owned())
            .spawn(move || {
                let collected = collect(&answers, count, command_limit);
                if let (true, Command::Switch { socket, .. }) = (collected.is_done, &command) {
                    socket.clone_into(&mut backend.lock());
                }
                let backend = backend.lock();
                if command == Command::StatusJson {
                    return then(in_json(&collected, &backend, held.as_ref()));
                }
                let mut more = remark(&command, count, &backend);
                if command == Command::Status {
                    more += &held.as_ref().map(held_in_words).unwrap_or_default();
                }
                then(collected.in_words(&more));
            });
        if let Err(error) = started {
            rate_limited!(
                error,
                "cannot start the thread that waits for the guests' answers: {error}"
            );
        }
    }

    /// Time that guests have for a command: the longest one saves and loads a state, and stops and
    /// starts the rings. Requests in flight may take longer.
    fn command_limit(&self) -> Duration {
        let limits = self.options.limits;
        limits.connect + limits.state * 2 + limits.answer * 4
    }
}

/// The peer whose messages a rate limit counts. The number of the guest would be a new one with
/// each connection.
fn log_key(stream: &UnixStream) -> rate_limit::Peer {
    PeerCred::of(stream).map_or(rate_limit::Peer::MAX, PeerCred::log_key)
}

/// Sends an operator the result of a command.
fn answer(mut stream: &UnixStream, done: Result<String, String>) {
    let (word, text) = match done {
        Ok(text) => ("ok", text),
        Err(text) => ("error", text),
    };
    // One write, because an answer that is cut off between two writes may look whole.
    let answer = format!("{word}\n{}\n", text.trim_end());
    if let Err(error) = stream.write_all(answer.as_bytes()) {
        rate_limited!(
            warn,
            "cannot answer a command on the control socket: {error}"
        );
    }
}

fn accept(listener: &OwnedListener) -> Option<UnixStream> {
    use io::ErrorKind::{ConnectionAborted, WouldBlock};
    match listener.accept() {
        Ok((stream, _)) => Some(stream),
        Err(error) if matches!(error.kind(), WouldBlock | ConnectionAborted) => None,
        Err(error) => {
            rate_limited!(error, "cannot accept a connection: {error}");
            thread::sleep(ACCEPT_RETRY);
            None
        }
    }
}

/// Sends a command to a running relay, and returns its answer.
pub(super) fn send(path: &Path, command: &Command, limit: Duration) -> Result<String, Error> {
    let answer = control::send(path, command, limit);
    let (is_done, text) = answer.map_err(|source| Error::Control {
        path: path.to_owned(),
        source,
    })?;
    match is_done {
        true => Ok(text),
        false => Err(Error::Refused(text.trim_end().to_owned())),
    }
}

/// The command that replaces the daemon by the one at `socket`.
pub(super) fn switch(socket: &Path, without_state: bool) -> io::Result<Command> {
    Ok(Command::Switch {
        // The relay may run in another working directory.
        socket: std::path::absolute(socket)?,
        files: match without_state {
            true => Files::Lost,
            false => Files::Kept,
        },
    })
}

#[cfg(test)]
mod tests {
    use gangplank_service::captured_log;
    use gangplank_service::rate_limit::BURST;
    use gangplank_service::rlimit::raise_descriptor_limit;

    use super::*;
    use crate::daemon::Limits;

    /// Guests that connect in the test: as many as are served, and as many that are refused.
    const CONNECTIONS: usize = 2 * MAX_GUESTS;

    #[test]
    fn a_process_that_connects_again_and_again_fills_no_log() {
        captured_log::start();
        raise_descriptor_limit();
        let limit = Duration::from_secs(10);
        let options = DeviceOptions {
            tag: Some("tag".to_owned()),
            num_request_queues: None,
            limits: Limits {
                connect: limit,
                answer: limit,
                state: limit,
            },
            tag_wait: limit,
            return_time: None,
        };
        let mut relay = Relay::new(options, "/nonexistent".into(), None);
        let mut frontends = Vec::new();
        for _ in 0..CONNECTIONS {
            let (frontend, stream) = UnixStream::pair().unwrap();
            relay.take(stream);
            frontends.push(frontend);
        }
        assert_eq!(relay.guests.len(), MAX_GUESTS);
        drop(frontends);
        for guest in relay.guests {
            guest.thread.join().unwrap();
        }
        // Two intervals at most.
        let most = 2 * usize::try_from(BURST).unwrap();
        for text in ["a guest is refused", "has connected", "has gone"] {
            let count = captured_log::count(text);
            assert!((1..=most).contains(&count), "{text}: {count}");
        }
    }
}
