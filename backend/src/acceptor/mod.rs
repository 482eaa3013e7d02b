//! The acceptor: the confined process that waits for guests and never reads a byte from them.
//!
//! It forks a [`crate::keeper`] for each connection and counts them. Each guest thereby has an
//! address space, a descriptor table and threads of its own.
//!
//! The acceptor never holds a connection: the forked process accepts it. A frontend can queue
//! descriptors in a connection, such as a socket with `SO_LINGER`, whose last close waits. The
//! kernel does not wait when a process ends.

mod handing_over;
mod max_guests;
mod reporting;
mod taking_over;

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
use crate::handover::channel::{Channel, Message};
use crate::keeper::{self, Assignment};
use crate::sandbox::Confined;
use crate::status::answer::Kind;
use crate::status::sockets::Listeners;
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

use self::reporting::Reporters;
pub use max_guests::HostLimits;
pub use taking_over::Predecessor;

/// Why the daemon stops serving.
#[derive(Debug, Error)]
pub enum Error {
    /// The listening socket cannot be polled.
    #[error("cannot wait for connections")]
    Wait(#[source] io::Error),
    /// The signals cannot be read.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
    /// The guests of another program cannot be taken over.
    #[error("{0}")]
    TakeOver(String),
}

/// A connected guest.
struct Guest {
    number: u64,
    keeper: Pid,
    /// The other end is the keeper's. Closing it ends the guest's connection, after its requests in
    /// flight.
    control: Option<Channel>,
    /// Whether the usual events of its connection are logged.
    is_logged: bool,
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

/// What an acceptor works with. A forked process drops all of it.
#[derive(Debug)]
pub struct Means<'a> {
    /// The socket that guests connect to.
    pub listener: UnixListener,
    /// How keepers are confined.
    pub confined: Confined,
    /// The termination signals and SIGCHLD.
    pub signals: Signals,
    /// The options.
    pub config: &'a Config,
    /// Most guests at a time.
    pub max_guests: usize,
    /// The channel to the supervisor.
    pub supervisor: Channel,
    /// The sockets for status and metrics.
    pub status: Listeners,
}

/// The acceptor's state. A forked process drops all of it.
struct Acceptor<'a> {
    means: Means<'a>,
    /// The acceptor of the next program, while it may take the guests over.
    successor: Option<Channel>,
    guests: Vec<Guest>,
    reporters: Reporters,
    /// Number of connections so far.
    number: u64,
    process: Pid,
    /// Which connections are logged.
    connection_log: RateLimit,
}

/// Accepts guests until a termination signal arrives or, with `--exit-on-disconnect`, the last
/// guest leaves. Then waits for the requests in flight. With a `predecessor`, takes over its guests
/// first.
///
/// The calling process must be single-threaded. In forked processes the function does not return.
///
/// # Errors
/// The listening socket or the signals fail, or the guests of the predecessor cannot be taken over.
/// The failure of one guest is logged and ends that guest alone.
pub fn accept_guests(means: Means<'_>, predecessor: Option<Predecessor>) -> Result<(), Error> {
    // Another process may accept the connection between poll and accept.
    means.listener.set_nonblocking(true).map_err(Error::Wait)?;
    let config = means.config;
    let mut means = means;
    let reporters = Reporters::new(std::mem::take(&mut means.status));
    let mut acceptor = Acceptor {
        means,
        successor: None,
        guests: Vec::new(),
        reporters,
        number: 0,
        process: getpid(),
        connection_log: RateLimit::new(LOGGED_CONNECTIONS),
    };
    if let Some(predecessor) = predecessor {
        acceptor = acceptor.take_over(predecessor)?;
    }
    let supervisor = &acceptor.means.supervisor;
    supervisor
        .send(&Message::Serving, &[])
        .map_err(Error::Wait)?;
    loop {
        let ready = acceptor.wait()?;
        let mut is_stopping = ready.supervisor_has_ended;
        while let Some(signal) = acceptor.means.signals.take().map_err(Error::Signals)? {
            // SIGHUP is the supervisor's.
            is_stopping |= !matches!(signal, Signal::SIGCHLD | Signal::SIGHUP);
        }
        if is_stopping {
            break;
        }
        reap(&mut acceptor.guests);
        if ready.successor_has_ended {
            log::info!("guests can connect again");
            acceptor.successor = None;
        }
        if ready.is_told {
            acceptor.hand_over();
        }
        if let Some(kind) = ready.is_asked {
            acceptor = acceptor.report(kind);
        }
        // The successor does not know of a guest that comes after it was introduced.
        if ready.can_accept && acceptor.successor.is_none() {
            acceptor = acceptor.serve_next();
        }
        // After the connections that wait already.
        if config.exit_on_disconnect && acceptor.number > 0 && acceptor.guests.is_empty() {
            break;
        }
    }
    let Acceptor { means, guests, .. } = acceptor;
    // Whoever connects from now on is refused at once.
    drop(means.listener);
    end_all(guests, &means.signals);
    Ok(())
}

/// What an acceptor has to do.
struct Ready {
    can_accept: bool,
    is_told: bool,
    /// A client waits for the status or the metrics.
    is_asked: Option<Kind>,
    supervisor_has_ended: bool,
    successor_has_ended: bool,
}

impl Acceptor<'_> {
    /// Waits for something to do. While another acceptor may take the guests over, connections
    /// wait.
    fn wait(&mut self) -> Result<Ready, Error> {
        let is_full = self.reporters.is_full();
        let asking = self.reporters.polled();
        let next = match &self.successor {
            None => PollFd::new(&self.means.listener, PollFlags::IN),
            Some(successor) => PollFd::new(successor, PollFlags::IN),
        };
        let mut ready = vec![
            next,
            PollFd::new(&self.means.supervisor, PollFlags::IN),
            PollFd::from_borrowed_fd(self.means.signals.as_fd(), PollFlags::IN),
        ];
        ready.extend(asking.iter().map(reporting::poll_fd));
        let limit = is_full.then(|| Timespec::try_from(ACCEPT_RETRY_DELAY).unwrap_or_default());
        match poll(&mut ready, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::Wait(error.into())),
        }
        let [next, supervisor] = [0, 1].map(|index: usize| ready[index].revents());
        let mut asked = ready.iter().skip(3).zip(&asking);
        let asked = asked.find(|(ready, _)| !ready.revents().is_empty());
        let has_ended = supervisor.contains(PollFlags::HUP);
        Ok(Ready {
            can_accept: self.successor.is_none() && !next.is_empty(),
            successor_has_ended: self.successor.is_some() && !next.is_empty(),
            is_asked: asked.map(|(_, (kind, _))| *kind),
            is_told: !supervisor.is_empty() && !has_ended,
            supervisor_has_ended: has_ended,
        })
    }
}

impl Acceptor<'_> {
    /// Forks a process that accepts the next connection and serves it.
    fn serve_next(mut self) -> Self {
        let pipes = io::pipe().and_then(|accepted| Ok((accepted, Channel::pair()?)));
        let ((accepted, report), (control, theirs)) = match pipes {
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
                drop((accepted, control));
                self.serve_as_keeper(report, theirs, is_logged)
            }
            Ok(Forked::Parent(keeper)) => {
                drop((report, theirs));
                match wait_for_report(accepted) {
                    Some(Accepted::Guest) => {
                        self.number += 1;
                        self.guests.push(Guest {
                            number: self.number,
                            keeper,
                            control: Some(control),
                            is_logged,
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
    fn serve_as_keeper(self, mut report: PipeWriter, control: Channel, is_logged: bool) -> ! {
        let number = self.number + 1;
        let guests = self.guests.len();
        let accepted = match accept(&self.means.listener) {
            Err(error) => Accepted::Failed(error.raw_os_error().unwrap_or(libc::EIO)),
            Ok(None) => Accepted::Nothing,
            Ok(Some(connection)) if guests < self.means.max_guests => {
                // If this fails, the acceptor has ended, and this process ends with it.
                let _ = report.write_all(&Accepted::Guest.to_bytes());
                drop(report);
                let acceptor = self.process;
                let (confined, config) = self.into_keeper();
                let assignment = Assignment {
                    number,
                    acceptor,
                    connection,
                    control,
                    is_logged,
                };
                keeper::run(assignment, confined, config)
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

impl<'a> Acceptor<'a> {
    /// What a keeper needs, in a forked process. It must hold nothing of the other guests.
    fn into_keeper(self) -> (Confined, &'a Config) {
        (self.means.confined, self.means.config)
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
        guest.control = None;
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
