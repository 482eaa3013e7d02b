//! Clients that ask for the status or the metrics: each gets a process of its own, which lives for
//! some seconds. The acceptor reads nothing from them, and knows only how many there are.

use std::os::fd::{AsFd, BorrowedFd};

use gangplank_service::{logging, rate_limited};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, Signal, WaitOptions, set_parent_process_death_signal, waitpid};
use rustix::time::ClockId;

use super::Acceptor;
use crate::sandbox;
use crate::status::answer::{self, Kind, MAX_CLIENTS};
use crate::status::model::Status;
use crate::status::snapshot::Room;
use crate::status::sockets::Listeners;
use crate::status::table::table;
use crate::sys::clock;
use crate::sys::process::{self, Forked};

/// The sockets for status and metrics, and the processes that answer.
#[derive(Debug, Default)]
pub(super) struct Reporters {
    listeners: Listeners,
    processes: Vec<(Kind, Pid)>,
}

impl Reporters {
    pub(super) fn new(listeners: Listeners) -> Self {
        Self {
            listeners,
            processes: Vec::new(),
        }
    }

    /// Where clients are waited for: those of a kind nowhere while too many of it are answered.
    pub(super) fn polled(&mut self) -> Vec<(Kind, BorrowedFd<'_>)> {
        self.forget_ended();
        self.listeners.polled(|kind| self.count(kind))
    }

    fn forget_ended(&mut self) {
        self.processes.retain(|(_, process)| is_running(*process));
    }

    /// Whether the acceptor must look again without an event: the end of a process is none.
    pub(super) fn is_full(&self) -> bool {
        let mut kinds = Kind::ALL.into_iter();
        kinds.any(|kind| self.count(kind) >= MAX_CLIENTS)
    }

    fn count(&self, kind: Kind) -> usize {
        let processes = self.processes.iter();
        processes.filter(|(one, _)| *one == kind).count()
    }
}

/// A descriptor that is waited for.
pub(super) fn poll_fd<'a>((_, listener): &(Kind, BorrowedFd<'a>)) -> PollFd<'a> {
    PollFd::from_borrowed_fd(*listener, PollFlags::IN)
}

/// Also waits for it, so that it leaves no entry among the processes.
pub(super) fn is_running(process: Pid) -> bool {
    matches!(waitpid(Some(process), WaitOptions::NOHANG), Ok(None))
}

impl Acceptor<'_> {
    /// Accepts the next client and forks a process that answers it.
    pub(super) fn report(self, kind: Kind) -> Self {
        let Some(connection) = self.reporters.listeners.accept(kind) else {
            return self;
        };
        self.fork_reporter(kind, move |acceptor| {
            // What is the guests' and the daemon's is dropped with it.
            let status = move || acceptor.status();
            if let Err(error) = answer::answer(connection.as_fd(), kind, status) {
                log::debug!("a client did not get the status: {error}");
            }
        })
    }

    /// Forks a process that writes the status to the log. One signal after another starts no more
    /// of them than there may be clients.
    pub(super) fn log_status(mut self) -> Self {
        self.reporters.forget_ended();
        match self.reporters.count(Kind::Control) < MAX_CLIENTS {
            true => self.fork_reporter(Kind::Control, |acceptor| {
                logging::log_status(&table(&acceptor.status()));
            }),
            false => self,
        }
    }

    /// Forks a process that does `report`, and counts it among those of `kind`.
    fn fork_reporter(mut self, kind: Kind, report: impl FnOnce(Self)) -> Self {
        match process::fork() {
            Ok(Forked::Child) => self.report_and_end(report),
            Ok(Forked::Parent(process)) => self.reporters.processes.push((kind, process)),
            Err(error) => {
                rate_limited!(error, "cannot start a process to tell the status: {error}");
                std::thread::sleep(super::ACCEPT_RETRY_DELAY);
            }
        }
        self
    }

    /// In the forked process.
    fn report_and_end(self, report: impl FnOnce(Self)) -> ! {
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        if let Err(error) = sandbox::confine_reporter(&self.means.confined) {
            rate_limited!(
                error,
                "cannot confine the process that tells the status: {error}"
            );
            process::exit(1)
        }
        report(self);
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
            storage: config.storage.clone(),
            guests,
            ..Status::empty()
        }
    }
}
