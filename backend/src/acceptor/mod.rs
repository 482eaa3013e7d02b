//! The acceptor: the confined process that waits for guests and never reads a byte from them.
//!
//! It forks a [`crate::keeper`] for each connection and counts them. Each guest thereby has an
//! address space, a descriptor table and threads of its own.
//!
//! The acceptor never holds a connection: the forked process accepts it. A frontend can queue
//! descriptors in a connection, such as a socket with `SO_LINGER`, whose last close waits. The
//! kernel does not wait when a process ends.

mod max_guests;

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use gangplank_service::rate_limit::RateLimit;
use gangplank_service::rate_limited;
use gangplank_service::signals::{Signal, Signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, getpid, wait};
use thiserror::Error;

use crate::config::Config;
use crate::keeper::{self, Assignment};
use crate::sandbox::Confined;
use crate::socket::Files;
use crate::sys::process::{self, Forked};

/// Pause before the next attempt after a connection cannot be accepted for lack of descriptors,
/// processes or memory.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// How long the daemon waits for requests in flight when it ends. A request on a dead file server
/// may never end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections within `rate_limit::INTERVAL` that their workers log. A frontend that connects
/// again and again must not fill the log.
const LOGGED_CONNECTIONS: u32 = 100;

pub use max_guests::HostLimits;

/// Why the daemon stops serving.
#[derive(Debug, Error)]
pub enum Error {
    /// The listening socket cannot be polled.
    #[error("cannot wait for connections")]
    Wait(#[source] io::Error),
    /// The signals cannot be read.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
}

/// A connected guest.
struct Guest {
    number: u64,
    keeper: Pid,
    /// Closing it ends the guest's connection, after its requests in flight.
    stop: Option<PipeWriter>,
}

/// What the forked process has done with the connection. It tells the acceptor by one number on a
/// pipe: 1 to 3, or an errno, negated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Accepted {
    /// A guest is served.
    Guest,
    /// The daemon serves too many guests, so the guest was refused.
    Refused,
    /// There was no connection any more.
    Nothing,
    /// The connection could not be accepted, for this errno.
    Failed(i32),
}

impl Accepted {
    fn to_bytes(self) -> [u8; 4] {
        let number = match self {
            Self::Guest => 1,
            Self::Refused => 2,
            Self::Nothing => 3,
            Self::Failed(errno) => -errno,
        };
        number.to_ne_bytes()
    }

    fn from_bytes(bytes: [u8; 4]) -> Self {
        match i32::from_ne_bytes(bytes) {
            1 => Self::Guest,
            2 => Self::Refused,
            errno if errno < 0 => Self::Failed(-errno),
            _ => Self::Nothing,
        }
    }
}

/// The acceptor's state. A forked process drops all of it.
struct Acceptor<'a> {
    listener: UnixListener,
    confined: Confined,
    signals: Signals,
    config: &'a Config,
    max_guests: usize,
    /// The lock of the socket's name.
    files: &'a mut Option<Files>,
    guests: Vec<Guest>,
    /// Number of connections so far.
    number: u64,
    process: Pid,
    /// Which connections are logged.
    connection_log: RateLimit,
}

/// Accepts guests on `listener` until a termination signal arrives or, with
/// `--exit-on-disconnect`, the last guest leaves. Then waits for the requests in flight.
///
/// The calling process must be single-threaded. In forked processes the function does not return,
/// and `files` is dropped.
///
/// # Errors
/// The listening socket or the signals fail. The failure of one guest is logged and ends that guest
/// alone.
pub fn accept_guests(
    listener: UnixListener,
    confined: Confined,
    max_guests: usize,
    config: &Config,
    files: &mut Option<Files>,
    signals: Signals,
) -> Result<(), Error> {
    // Another process may accept the connection between poll and accept.
    listener.set_nonblocking(true).map_err(Error::Wait)?;
    let mut acceptor = Acceptor {
        listener,
        confined,
        signals,
        config,
        max_guests,
        files,
        guests: Vec::new(),
        number: 0,
        process: getpid(),
        connection_log: RateLimit::new(LOGGED_CONNECTIONS),
    };
    loop {
        let mut ready = [
            PollFd::new(&acceptor.listener, PollFlags::IN),
            PollFd::from_borrowed_fd(acceptor.signals.as_fd(), PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::Wait(error.into())),
        }
        let can_accept = !ready[0].revents().is_empty();
        let mut is_stopping = false;
        while let Some(signal) = acceptor.signals.take().map_err(Error::Signals)? {
            is_stopping |= signal != Signal::SIGCHLD;
        }
        if is_stopping {
            break;
        }
        reap(&mut acceptor.guests);
        if can_accept {
            acceptor = acceptor.serve_next();
        }
        // After the connections that wait already.
        if config.exit_on_disconnect && acceptor.number > 0 && acceptor.guests.is_empty() {
            break;
        }
    }
    let Acceptor {
        listener,
        guests,
        signals,
        ..
    } = acceptor;
    // Whoever connects from now on is refused at once.
    drop(listener);
    end_all(guests, &signals);
    Ok(())
}

impl Acceptor<'_> {
    /// Forks a process that accepts the next connection and serves it.
    fn serve_next(mut self) -> Self {
        let pipes = io::pipe().and_then(|accepted| Ok((accepted, io::pipe()?)));
        let ((accepted, report), (stop, stopper)) = match pipes {
            Ok(pipes) => pipes,
            Err(error) => {
                rate_limited!(error, "cannot accept a guest's connection: {error}");
                thread::sleep(ACCEPT_RETRY_DELAY);
                return self;
            }
        };
        let admitted = self.connection_log.admit();
        if let Some(unlogged @ 1..) = admitted {
            log::warn!("{unlogged} connections before this one were not logged");
        }
        let is_logged = admitted.is_some();
        match process::fork() {
            Ok(Forked::Child) => {
                drop((accepted, stopper));
                self.serve_as_keeper(report, stop, is_logged)
            }
            Ok(Forked::Parent(keeper)) => {
                drop((report, stop));
                match wait_for_report(accepted) {
                    Some(Accepted::Guest) => {
                        self.number += 1;
                        self.guests.push(Guest {
                            number: self.number,
                            keeper,
                            stop: Some(stopper),
                        });
                    }
                    Some(Accepted::Refused) => {
                        self.number += 1;
                        rate_limited!(
                            error,
                            "guest {} is refused: {} guests are connected, the most that this \
                             daemon serves; raise --max-guests",
                            self.number,
                            self.guests.len()
                        );
                    }
                    Some(Accepted::Nothing) => {}
                    Some(Accepted::Failed(errno)) => {
                        let error = io::Error::from_raw_os_error(errno);
                        rate_limited!(error, "cannot accept a guest's connection: {error}");
                        thread::sleep(ACCEPT_RETRY_DELAY);
                    }
                    None => {
                        rate_limited!(error, "the process for a guest has ended at once");
                        thread::sleep(ACCEPT_RETRY_DELAY);
                    }
                }
                self
            }
            Err(error) => {
                rate_limited!(error, "cannot start a process for a guest: {error}");
                thread::sleep(ACCEPT_RETRY_DELAY);
                self
            }
        }
    }

    /// In the forked process: accepts the connection and becomes its keeper.
    fn serve_as_keeper(self, mut report: PipeWriter, stop: PipeReader, is_logged: bool) -> ! {
        let number = self.number + 1;
        let guests = self.guests.len();
        let accepted = match accept(&self.listener) {
            Err(error) => Accepted::Failed(error.raw_os_error().unwrap_or(libc::EIO)),
            Ok(None) => Accepted::Nothing,
            Ok(Some(connection)) if guests < self.max_guests => {
                // If this fails, the acceptor has ended, and this process ends with it.
                let _ = report.write_all(&Accepted::Guest.to_bytes());
                // The keeper must hold nothing of the other guests.
                *self.files = None;
                drop((self.listener, self.guests, self.signals, report));
                let assignment = Assignment {
                    number,
                    acceptor: self.process,
                    connection,
                    stop,
                    is_logged,
                };
                keeper::run(assignment, self.confined, self.config)
            }
            Ok(Some(connection)) => {
                // Closed by the end of this process, after the acceptor has gone on.
                std::mem::forget(connection);
                Accepted::Refused
            }
        };
        let _ = report.write_all(&accepted.to_bytes());
        process::exit(0)
    }
}

/// Waits until the forked process has accepted the connection. `None` if it could not.
fn wait_for_report(mut accepted: PipeReader) -> Option<Accepted> {
    let mut report = [0; 4];
    accepted.read_exact(&mut report).ok()?;
    Some(Accepted::from_bytes(report))
}

/// `None` if there is no connection any more.
fn accept(listener: &UnixListener) -> io::Result<Option<UnixStream>> {
    use io::ErrorKind::{ConnectionAborted, WouldBlock};

    match listener.accept() {
        Ok((connection, _)) => Ok(Some(connection)),
        Err(error) if matches!(error.kind(), WouldBlock | ConnectionAborted) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes the guests whose keepers have ended.
fn reap(guests: &mut Vec<Guest>) {
    // Also workers that outlived their keepers: the acceptor is their new parent.
    // CHILD, like no ended process: there is nothing to reap.
    while let Ok(Some((process, status))) = wait(WaitOptions::NOHANG) {
        for guest in guests.extract_if(.., |guest| guest.keeper == process) {
            if let Some(signal) = status.terminating_signal() {
                log::error!(
                    "the keeper of guest {} was ended by signal {signal}, and its worker with it",
                    guest.number
                );
            }
        }
    }
}

/// Ends all guests' connections and waits for their requests in flight, for at most
/// [`SHUTDOWN_TIMEOUT`].
fn end_all(mut guests: Vec<Guest>, signals: &Signals) {
    for guest in &mut guests {
        guest.stop = None;
    }
    let end = Instant::now() + SHUTDOWN_TIMEOUT;
    loop {
        while let Ok(Some(_)) = signals.take() {}
        reap(&mut guests);
        if guests.is_empty() {
            return;
        }
        let remaining = end.saturating_duration_since(Instant::now());
        let mut ready = [PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
        let polled = poll(&mut ready, Timespec::try_from(remaining).ok().as_ref());
        if remaining.is_zero() || polled.is_err_and(|error| error != Errno::INTR) {
            let numbers: Vec<String> = guests
                .iter()
                .map(|guest| guest.number.to_string())
                .collect();
            log::error!(
                "requests of guests {} are still in flight after {} s: ending without them",
                numbers.join(", "),
                SHUTDOWN_TIMEOUT.as_secs()
            );
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_forked_process_tells_comes_back() {
        for accepted in [Accepted::Guest, Accepted::Refused, Accepted::Nothing] {
            assert!(Accepted::from_bytes(accepted.to_bytes()) == accepted);
        }
        let failed = Accepted::Failed(libc::EMFILE);
        assert!(Accepted::from_bytes(failed.to_bytes()) == failed);
    }
}
