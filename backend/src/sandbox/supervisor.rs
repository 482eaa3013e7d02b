//! The process that stays outside of the sandbox and watches its confined child.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use gangplank_service::signals::{Signal, Signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    self as rustix_process, Pid, PidfdFlags, WaitOptions, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal, waitpid,
};

use super::capabilities;
use super::error::Error;
use crate::sys::process::{self, Forked};

/// Added to a signal's number for the exit status of a process that it ended, as shells do.
const SIGNAL_STATUS_BASE: i32 = 128;

/// How long the acceptor may take to end: longer than it waits for requests in flight.
const END_TIMEOUT: Duration = Duration::from_secs(15);

/// Watches the confined process.
#[derive(Debug)]
pub struct Supervisor {
    child: Pid,
    /// Pidfd of the child, which can be polled together with signals.
    handle: OwnedFd,
}

/// Starts the process to confine. Returns `None` in it. The kernel kills it when its parent dies.
pub(super) fn fork() -> Result<Option<Supervisor>, Error> {
    let fork_failed = |error: Errno| Error::Fork(error.into());
    let parent = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).map_err(fork_failed)?;
    match process::fork().map_err(Error::Fork)? {
        Forked::Parent(child) => {
            let handle = pidfd_open(child, PidfdFlags::empty()).map_err(fork_failed)?;
            Ok(Some(Supervisor { child, handle }))
        }
        Forked::Child => {
            set_parent_process_death_signal(Some(rustix_process::Signal::KILL))
                .map_err(fork_failed)?;
            // The parent may have died before that call. Its process id says nothing in another
            // process namespace, but its pidfd is readable once it has died.
            let mut fds = [PollFd::new(&parent, PollFlags::IN)];
            match poll(&mut fds, Some(&Timespec::default())) {
                Ok(0) => Ok(None),
                Ok(_) => Err(Error::Orphaned),
                Err(error) => Err(fork_failed(error)),
            }
        }
    }
}

impl Supervisor {
    /// Forwards termination signals to the confined process until it ends. Returns its exit status,
    /// which is to be this process's as well.
    ///
    /// # Errors
    /// The process cannot be watched, or its capabilities cannot be reduced.
    pub fn wait(self, signals: &Signals) -> Result<u8, Error> {
        capabilities::reduce_supervisor()?;
        // Set by the first termination signal.
        let mut deadline: Option<Instant> = None;
        loop {
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                log::error!("the acceptor does not end, so it is killed");
                let _ = pidfd_send_signal(&self.handle, rustix_process::Signal::KILL);
            }
            let limit = left
                .filter(|left| !left.is_zero())
                .and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [
                PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
                PollFd::new(&self.handle, PollFlags::IN),
            ];
            match poll(&mut fds, limit.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::Supervise(error.into())),
            }
            while let Some(signal) = signals.take().map_err(Error::Supervise)? {
                if signal == Signal::SIGCHLD {
                    continue;
                }
                deadline.get_or_insert_with(|| Instant::now() + END_TIMEOUT);
                log::debug!("forwarding signal {signal} to the confined process as SIGTERM");
                match pidfd_send_signal(&self.handle, rustix_process::Signal::TERM) {
                    // SRCH: the process has ended, and `status` fetches its exit status.
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(error) => return Err(Error::Supervise(error.into())),
                }
            }
            if let Some(status) = self.status()? {
                return Ok(status);
            }
        }
    }

    /// The child's exit status; `None` while it runs.
    fn status(&self) -> Result<Option<u8>, Error> {
        let waited = waitpid(Some(self.child), WaitOptions::NOHANG)
            .map_err(|error| Error::Supervise(error.into()))?;
        let Some((_, status)) = waited else {
            return Ok(None);
        };
        let code = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => code,
            (None, Some(signal)) => {
                log::error!("{}", ended_by(signal));
                SIGNAL_STATUS_BASE.saturating_add(signal)
            }
            (None, None) => return Ok(None),
        };
        Ok(Some(u8::try_from(code).unwrap_or(u8::MAX)))
    }
}

fn ended_by(signal: i32) -> String {
    let hint = if signal == libc::SIGSYS {
        ": it made a system call that is not on the permitted list (the kernel's audit log names \
         it; --seccomp=log permits it)"
    } else {
        ""
    };
    format!("the acceptor was ended by signal {signal}, and all guests with it{hint}")
}
