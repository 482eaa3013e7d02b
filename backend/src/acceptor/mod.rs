//! The acceptor: the confined process that waits for guests and never reads a byte from them.
//!
//! It forks a [`crate::keeper`] for each connection and counts them. Each guest thereby has an
//! address space, a descriptor table and threads of its own.
//!
//! The acceptor never holds a connection: the forked process accepts it. A frontend can queue
//! descriptors in a connection, such as a socket with `SO_LINGER`, whose last close waits. The
//! kernel does not wait when a process ends.
//!
//! Keepers are the supervisor's children, and it has copies of all that the acceptor has of them.
//! So when an acceptor dies, of whatever, all guests go on, and the next one controls their
//! keepers.

mod accepting;
mod guests;
mod handing_over;
mod kept_sessions;
mod max_guests;
mod reporting;
mod taking_over;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use gangplank_service::rate_limit::SiteRateLimit;
use gangplank_service::signals::{Signal, Signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Pid;
use thiserror::Error;

use self::accepting::ACCEPT_RETRY_DELAY;
use self::guests::{Guest, Guests};
use self::reporting::Reporters;
use crate::config::Config;
use crate::handover::channel::{Channel, Message};
use crate::sandbox::Confined;
use crate::status::answer::Kind;
use crate::status::sockets::Listeners;
use crate::sys::process;

/// How long the daemon waits for requests in flight when it ends. A request on a dead file server
/// may never end.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections of one frontend within `rate_limit::INTERVAL` whose beginnings and ends are logged.
/// One that connects again and again must neither fill the log nor hide another's connection.
const LOGGED_CONNECTIONS: u32 = 100;

/// Descriptors that an acceptor waits for beside those of clients that ask for the status.
const FIXED: usize = 5;

/// Exit status of an acceptor whose supervisor has ended.
const FAILURE: u8 = 1;

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

/// What an acceptor works with. A forked process drops all of it.
#[derive(Debug)]
pub struct Means<'a> {
    /// The socket that guests connect to.
    pub listener: UnixListener,
    /// How keepers are confined.
    pub confined: Confined,
    /// The termination signals.
    pub signals: Signals,
    /// The options.
    pub config: &'a Config,
    /// Most guests at a time.
    pub max_guests: usize,
    /// The channel to the supervisor.
    pub supervisor: Channel,
    /// Whether the supervisor has descriptors of guests held.
    pub has_holder: bool,
    /// The sockets for status and metrics.
    pub status: Listeners,
}

/// The acceptor's state. A forked process drops all of it.
struct Acceptor<'a> {
    means: Means<'a>,
    /// The acceptor of the next program, while it may take the guests over.
    successor: Option<Channel>,
    guests: Guests,
    /// Processes that close what a guest's have passed, with the guest's number.
    closing: Vec<(u64, Pid)>,
    reporters: Reporters,
    /// Number of connections so far.
    number: u64,
    /// Which connections are logged.
    connection_log: SiteRateLimit,
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
        guests: Guests::new().map_err(Error::Wait)?,
        closing: Vec::new(),
        reporters,
        number: 0,
        connection_log: SiteRateLimit::with_burst(LOGGED_CONNECTIONS),
    };
    if let Some(predecessor) = predecessor {
        acceptor = acceptor.take_over(predecessor)?;
    }
    let supervisor = &acceptor.means.supervisor;
    supervisor
        .send(&Message::Serving, &acceptor.passed())
        .map_err(Error::Wait)?;
    loop {
        let ready = acceptor.wait()?;
        if ready.supervisor_has_ended && acceptor.means.has_holder {
            // What the guests have is held, and the next program goes on with them.
            process::exit(FAILURE);
        }
        let mut is_stopping = ready.supervisor_has_ended;
        let mut logs_status = false;
        while let Some(signal) = acceptor.means.signals.take().map_err(Error::Signals)? {
            match signal {
                Signal::SIGUSR1 => logs_status = true,
                // SIGHUP is the supervisor's.
                Signal::SIGCHLD | Signal::SIGHUP => {}
                // So is the end, if guests are to outlive it.
                _ => is_stopping |= !acceptor.means.has_holder,
            }
        }
        if is_stopping {
            break;
        }
        acceptor.guests.remove_ended();
        if ready.successor_has_ended {
            log::info!("guests can connect again");
            acceptor.successor = None;
        }
        if ready.is_told {
            acceptor.hand_over();
        }
        acceptor.hear_guests();
        if logs_status {
            acceptor = acceptor.log_status();
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
    end_all(guests);
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

impl<'a> Acceptor<'a> {
    /// What a keeper needs, in a forked process. It must hold nothing of the other guests.
    fn into_keeper(self) -> (Confined, &'a Config) {
        (self.means.confined, self.means.config)
    }

    /// What every acceptor needs: the listening socket and, if there is one, the user namespace.
    fn passed(&self) -> Vec<BorrowedFd<'_>> {
        let user_namespace = self.means.confined.user_namespace();
        [Some(self.means.listener.as_fd()), user_namespace]
            .into_iter()
            .flatten()
            .collect()
    }

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
            PollFd::new(&self.guests, PollFlags::IN),
            PollFd::from_borrowed_fd(self.guests.messages(), PollFlags::IN),
        ];
        ready.extend(asking.iter().map(reporting::poll_fd));
        let limit = is_full.then(|| Timespec::try_from(ACCEPT_RETRY_DELAY).unwrap_or_default());
        match poll(&mut ready, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::Wait(error.into())),
        }
        let [next, supervisor] = [0, 1].map(|index: usize| ready[index].revents());
        let mut asked = ready.iter().skip(FIXED).zip(&asking);
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

/// Ends all guests' connections and waits for their requests in flight, for at most
/// [`SHUTDOWN_TIMEOUT`]. The supervisor ends what is left then.
fn end_all(mut guests: Guests) {
    for guest in guests.iter() {
        guest.control.shut_down();
    }
    let end = Instant::now() + SHUTDOWN_TIMEOUT;
    loop {
        guests.remove_ended();
        if guests.is_empty() {
            return;
        }
        let remaining = end.saturating_duration_since(Instant::now());
        let mut ready = [PollFd::new(&guests, PollFlags::IN)];
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
