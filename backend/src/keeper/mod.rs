//! The keeper: the process that starts one guest's workers and outlives each of them.
//!
//! A worker shares the keeper's descriptor table and the memory of the guest's state
//! ([`crate::state`]). So when a worker dies, whatever of, its descriptors stay open and its state
//! stays readable, and the next worker goes on. The keeper reads neither guest memory nor messages.
//!
//! ```text
//!            ┌── starts ──> worker ──┬─ ends: the guest has gone, or broke the rules ──> keeper ends
//! keeper ────┤                       │
//!            └──── next <── dies ────┘ ten times within a minute ──> keeper ends
//! ```

mod deaths;
mod worker;

use std::io::{self, PipeReader};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gangplank_service::error_chain;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, Resource, Signal, WaitOptions, WaitStatus, getpid, getppid, getrlimit,
    set_parent_process_death_signal, waitpid,
};

use self::deaths::{Deaths, Verdict};
use crate::config::Config;
use crate::sandbox::{Confined, ConfinedKeeper};
use crate::state::arena::{Arena, Limits};
use crate::state::recovery;
use crate::sys::process::{self, Forked};

/// Exit status of a keeper or worker that could not do its work. The log says why.
const FAILURE: u8 = 1;

/// Exit status of a worker that found a fault in itself, or could not start again after a death:
/// `EX_SOFTWARE` of sysexits.h.
const FAULT: u8 = 70;

/// The guest that a keeper and its workers are for.
#[derive(Debug)]
pub struct Assignment {
    /// The guest's number in the log.
    pub number: u64,
    /// The acceptor, which forked the keeper.
    pub acceptor: Pid,
    /// The connection to the guest's frontend.
    pub connection: UnixStream,
    /// At its end when the acceptor wants the connection to end.
    pub stop: PipeReader,
    /// Whether the beginning and the usual ends of the connection are logged.
    pub is_logged: bool,
}

/// What all workers of a guest begin with.
struct Keeper<'a> {
    assignment: Assignment,
    process: Pid,
    confined: ConfinedKeeper,
    config: &'a Config,
    arena: Arc<Arena>,
    /// The keeper's own descriptors. Every worker has them.
    descriptors: Vec<RawFd>,
}

/// How a worker ended.
enum Ended {
    /// It has done its work, or logged why it could not: the keeper ends with this status.
    InOrder(u8),
    /// It died, by this signal or of a fault that it found itself.
    Died(Option<i32>),
}

/// Serves the guest by one worker after another until the guest has gone, and ends the process.
///
/// The calling process must have been forked for this guest.
pub fn run(assignment: Assignment, confined: Confined, config: &Config) -> ! {
    let number = assignment.number;
    match Keeper::new(assignment, confined, config) {
        Ok(keeper) => {
            let status = keeper.keep();
            // Without destructors: a worker may own the same descriptors.
            process::exit(status)
        }
        Err(error) => {
            log::error!("cannot keep guest {number}: {error}");
            process::exit(FAILURE)
        }
    }
}

impl<'a> Keeper<'a> {
    fn new(assignment: Assignment, confined: Confined, config: &'a Config) -> Result<Self, String> {
        end_with(assignment.acceptor).map_err(|error| error.to_string())?;
        let arena = Arena::new(limits(config))
            .map_err(|error| format!("its state cannot be mapped: {error}"))?;
        let confined = confined
            .confine_keeper()
            .map_err(|error| error_chain(&error).to_string())?;
        let descriptors = confined
            .descriptors()
            .map_err(|error| error_chain(&error).to_string())?;
        Ok(Self {
            assignment,
            process: getpid(),
            confined,
            config,
            arena,
            descriptors,
        })
    }

    /// Returns the status with which the keeper ends.
    fn keep(&self) -> u8 {
        let number = self.assignment.number;
        let mut deaths = Deaths::new(self.config.max_crashes);
        loop {
            let begun = Instant::now();
            let worker = match process::clone_sharing_descriptors() {
                Ok(Forked::Child) => worker::run(self),
                Ok(Forked::Parent(worker)) => worker,
                Err(error) => {
                    log::error!("cannot start the worker of guest {number}: {error}");
                    return FAILURE;
                }
            };
            let signal = match wait_for(number, worker) {
                Ended::InOrder(status) => return status,
                Ended::Died(signal) => signal,
            };
            let ended = ended_by(number, signal);
            recovery::note_death(&self.arena, signal);
            let count = self.arena.header().deaths.load(Ordering::Relaxed);
            match deaths.add(Instant::now(), begun.elapsed()) {
                Verdict::RestartAfter(pause) => {
                    log::error!("{ended}; its death {count}, another worker goes on");
                    if self.is_stopped_within(pause) {
                        return FAILURE;
                    }
                }
                Verdict::GiveUp => {
                    log::error!("{ended}");
                    log::error!(
                        "guest {number} is dropped: its workers died {} times within a minute, the \
                         most that --max-crashes permits; please report this with the log before \
                         it, and connect the guest again",
                        self.config.max_crashes
                    );
                    return FAILURE;
                }
            }
        }
    }

    /// Waits for `pause`. Returns whether the acceptor wants the connection to end meanwhile.
    fn is_stopped_within(&self, pause: Duration) -> bool {
        let mut ready = [PollFd::new(&self.assignment.stop, PollFlags::IN)];
        let limit = Timespec::try_from(pause).unwrap_or_default();
        poll(&mut ready, Some(&limit)).is_ok_and(|count| count > 0)
    }
}

fn limits(config: &Config) -> Limits {
    Limits {
        inode_bytes: config.passthrough.max_inode_memory,
        descriptors: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        rings: usize::try_from(config.device.rings()).unwrap_or(usize::MAX),
        ring_size: config.device.max_queue_size.into(),
    }
}

/// Makes the kernel kill this process when `parent` ends.
fn end_with(parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have ended before that call, and another process is the parent since.
    if getppid() != Some(parent) {
        process::exit(FAILURE);
    }
    Ok(())
}

fn wait_for(number: u64, worker: Pid) -> Ended {
    loop {
        match waitpid(Some(worker), WaitOptions::empty()) {
            Ok(Some((_, status))) => return ended(status),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                log::error!("cannot wait for the worker of guest {number}: {error}");
                return Ended::InOrder(FAILURE);
            }
        }
    }
}

fn ended(status: WaitStatus) -> Ended {
    if let Some(signal) = status.terminating_signal() {
        return Ended::Died(Some(signal));
    }
    let code = status.exit_status().unwrap_or(FAILURE.into());
    match u8::try_from(code).unwrap_or(FAILURE) {
        FAULT => Ended::Died(None),
        status => Ended::InOrder(status),
    }
}

fn ended_by(number: u64, signal: Option<i32>) -> String {
    let Some(signal) = signal else {
        return format!(
            "the worker of guest {number} found a fault in itself; please report this with the log \
             before it"
        );
    };
    let reason = match signal {
        libc::SIGSYS => {
            ": it made a system call that is not on the permitted list (the kernel's audit log \
             names it; --seccomp=log permits it)"
        }
        libc::SIGABRT => ": it found a fault in itself; please report this with the log before it",
        libc::SIGKILL => ": by the kernel for lack of memory, or by a person",
        libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE => ": please report this",
        _ => "",
    };
    format!("the worker of guest {number} was ended by signal {signal}{reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_worker_names_its_guest_and_the_reason() {
        for (signal, expected) in [
            (Some(libc::SIGSYS), "system call"),
            (Some(libc::SIGABRT), "report this"),
            (Some(libc::SIGKILL), "memory"),
            (Some(libc::SIGTERM), "signal 15"),
            (None, "report this"),
        ] {
            let text = ended_by(7, signal);
            assert!(
                text.contains("guest 7") && text.contains(expected),
                "{text}"
            );
        }
    }
}
