//! The keeper: the process that starts one guest's worker and outlives it.
//!
//! The worker shares the keeper's descriptor table, so the guest's descriptors stay open until the
//! keeper ends, whatever the worker dies of. The keeper never reads guest memory.

mod worker;

use std::io::{self, PipeReader};
use std::os::unix::net::UnixStream;

use gangplank_service::error_chain;
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, getppid, set_parent_process_death_signal, waitpid,
};

use crate::config::Config;
use crate::sandbox::Confined;
use crate::sys::process::{self, Forked};

/// Exit status of a keeper or worker that could not do its work. The log says why.
const FAILURE: u8 = 1;

/// The guest that a keeper and its worker are for.
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

/// Starts the guest's worker, waits until it ends, and ends with its status.
///
/// The calling process must have been forked for this guest.
pub fn run(assignment: Assignment, confined: Confined, config: &Config) -> ! {
    let (number, acceptor) = (assignment.number, assignment.acceptor);
    let keeper = getpid();
    let worker = end_with(acceptor).and_then(|()| process::clone_sharing_descriptors());
    match worker {
        Ok(Forked::Child) => worker::run(assignment, keeper, confined, config),
        Ok(Forked::Parent(worker)) => {
            if let Err(error) = confined.confine_keeper() {
                log::error!(
                    "cannot confine the keeper of guest {number}: {}",
                    error_chain(&error)
                );
                // The worker ends with its keeper.
                process::exit(FAILURE);
            }
            // Without destructors: the worker owns the same descriptors.
            process::exit(wait_for(number, worker))
        }
        Err(error) => {
            log::error!("cannot start the worker of guest {number}: {error}");
            process::exit(FAILURE)
        }
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

fn wait_for(number: u64, worker: Pid) -> u8 {
    loop {
        match waitpid(Some(worker), WaitOptions::empty()) {
            Ok(Some((_, status))) => return exit_status(number, status),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                log::error!("cannot wait for the worker of guest {number}: {error}");
                return FAILURE;
            }
        }
    }
}

fn exit_status(number: u64, status: WaitStatus) -> u8 {
    if let Some(signal) = status.terminating_signal() {
        log::error!("{}", ended_by(number, signal));
        return FAILURE;
    }
    let code = status.exit_status().unwrap_or(FAILURE.into());
    u8::try_from(code).unwrap_or(FAILURE)
}

fn ended_by(number: u64, signal: i32) -> String {
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
            (libc::SIGSYS, "system call"),
            (libc::SIGABRT, "report this"),
            (libc::SIGKILL, "memory"),
            (libc::SIGTERM, "signal 15"),
        ] {
            let text = ended_by(7, signal);
            assert!(
                text.contains("guest 7") && text.contains(expected),
                "{text}"
            );
        }
    }
}
