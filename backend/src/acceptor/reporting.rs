//! Clients that ask for the status or the metrics: each gets a process of its own, which lives for
//! some seconds. The acceptor reads nothing from them, and knows only how many there are.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use gangplank_service::rate_limited;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{Pid, Signal, WaitOptions, set_parent_process_death_signal, waitpid};
use rustix::time::ClockId;

use super::Acceptor;
use crate::sandbox;
use crate::status::answer::{self, Kind};
use crate::status::model::Status;
use crate::status::snapshot::Room;
use crate::status::sockets::Listeners;
use crate::sys::clock;
use crate::sys::process::{self, Forked};

/// Clients that are answered at a time. Others wait.
const MAX_REPORTERS: usize = 8;

/// The sockets for status and metrics, and the processes that answer.
#[derive(Debug, Default)]
pub(super) struct Reporters {
    listeners: Listeners,
    processes: Vec<Pid>,
}

impl Reporters {
    pub(super) fn new(listeners: Listeners) -> Self {
        Self {
            listeners,
            processes: Vec::new(),
        }
    }

    /// Where clients are waited for: nowhere while too many are answered.
    pub(super) fn polled(&mut self) -> Vec<(Kind, BorrowedFd<'_>)> {
        self.processes.retain(|process| is_running(*process));
        if self.processes.len() >= MAX_REPORTERS {
            return Vec::new();
        }
        let control = self
            .listeners
            .control
            .as_ref()
            .map(|one| (Kind::Control, one));
        let metrics = self
            .listeners
            .metrics
            .as_ref()
            .map(|one| (Kind::Metrics, one));
        let both = control.into_iter().chain(metrics);
        both.map(|(kind, listener)| (kind, listener.as_fd()))
            .collect()
    }

    /// Whether the acceptor must look again without an event: the end of a process is none.
    pub(super) fn is_full(&self) -> bool {
        self.processes.len() >= MAX_REPORTERS
    }

    fn listener(&self, kind: Kind) -> Option<&OwnedFd> {
        match kind {
            Kind::Control => self.listeners.control.as_ref(),
            Kind::Metrics => self.listeners.metrics.as_ref(),
        }
    }
}

/// A descriptor that is waited for.
pub(super) fn poll_fd<'a>((_, listener): &(Kind, BorrowedFd<'a>)) -> PollFd<'a> {
    PollFd::from_borrowed_fd(*listener, PollFlags::IN)
}

/// Also waits for it, so that it leaves no entry among the processes.
fn is_running(process: Pid) -> bool {
    matches!(waitpid(Some(process), WaitOptions::NOHANG), Ok(None))
}

impl Acceptor<'_> {
    /// Forks a process that answers the next client.
    pub(super) fn report(mut self, kind: Kind) -> Self {
        match process::fork() {
            Ok(Forked::Child) => self.answer(kind),
            Ok(Forked::Parent(process)) => self.reporters.processes.push(process),
            Err(error) => {
                rate_limited!(error, "cannot start a process to tell the status: {error}");
                std::thread::sleep(super::ACCEPT_RETRY_DELAY);
            }
        }
        self
    }

    /// In the forked process.
    fn answer(self, kind: Kind) -> ! {
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = self.reporters.listener(kind);
        let Some(Ok(connection)) = listener.map(|listener| accept_with(listener, flags)) else {
            // The client has gone.
            process::exit(0)
        };
        if let Err(error) = sandbox::confine_reporter(&self.means.confined) {
            rate_limited!(
                error,
                "cannot confine the process that tells the status: {error}"
            );
            process::exit(1)
        }
        let status = self.status();
        // Whatever is the guests' and the daemon's.
        drop(self);
        if let Err(error) = answer::answer(connection.as_fd(), kind, status) {
            log::debug!("a client did not get the status: {error}");
        }
        process::exit(0)
    }

    fn status(&self) -> Status {
        let config = self.means.config;
        let room = Room {
            rings: usize::try_from(config.device.rings()).unwrap_or(usize::MAX),
            ring_size: config.device.max_queue_size.into(),
        };
        let controls = self
            .guests
            .iter()
            .map(|guest| (guest.number, &guest.control));
        let guests = answer::guests(controls, room);
        Status {
            time_ns: clock::now(ClockId::Monotonic).max(0).cast_unsigned(),
            shared_dir: config.shared_dir.to_string_lossy().into_owned(),
            tag: config.device.tag.clone(),
            max_guests: self.means.max_guests as u64,
            connections: self.number,
            guests,
            ..Status::empty()
        }
    }
}
