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
use super::supervisor_watchdog::AcceptorWatchdog;
use crate::handover::channel::{Channel, Message};
use crate::sys::process::Forked;

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
    /// The other end is the child's.
    channel: Channel,
}

/// The side of [`fork`].
pub(super) enum Side {
    /// The process to confine, with its end of the channel to its supervisor.
    Confined(Channel),
    /// Its supervisor.
    Supervisor(Supervisor),
    /// A process that has started the process to confine for another supervisor.
    Launcher(Pid),
}

/// Starts the process to confine by `start`, which is told whether the new process is to be a child
/// of the calling process's parent. The kernel kills it when its supervisor dies.
///
/// With a `supervisor`, that is the calling process's parent, and becomes the new one's.
pub(super) fn fork(
    supervisor: Option<Channel>,
    start: impl FnOnce(bool) -> Result<Forked, Error>,
) -> Result<Side, Error> {
    let fork_failed = |error: Errno| Error::Fork(error.into());
    if let Some(channel) = supervisor {
        return match start(true)? {
            Forked::Parent(child) => Ok(Side::Launcher(child)),
            Forked::Child => {
                // If the supervisor has died before, the channel is at its end.
                set_parent_process_death_signal(Some(rustix_process::Signal::KILL))
                    .map_err(fork_failed)?;
                Ok(Side::Confined(channel))
            }
        };
    }
    let parent = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).map_err(fork_failed)?;
    let (channel, theirs) = Channel::pair().map_err(Error::Fork)?;
    match start(false)? {
        Forked::Parent(child) => Ok(Side::Supervisor(Supervisor::new(child, channel)?)),
        Forked::Child => {
            set_parent_process_death_signal(Some(rustix_process::Signal::KILL))
                .map_err(fork_failed)?;
            // The parent may have died before that call. Its process id says nothing in another
            // process namespace, but its pidfd is readable once it has died.
            let mut fds = [PollFd::new(&parent, PollFlags::IN)];
            match poll(&mut fds, Some(&Timespec::default())) {
                Ok(0) => Ok(Side::Confined(theirs)),
                Ok(_) => Err(Error::Orphaned),
                Err(error) => Err(fork_failed(error)),
            }
        }
    }
}

impl Supervisor {
    /// The supervisor of `child`, which is the calling process's child and has the other end of
    /// `channel`.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn new(child: Pid, channel: Channel) -> Result<Self, Error> {
        let handle = pidfd_open(child, PidfdFlags::empty())
            .map_err(|error| Error::Supervise(error.into()))?;
        Ok(Self {
            child,
            handle,
            channel,
        })
    }

    /// The channel to the confined process.
    #[must_use]
    pub const fn channel(&self) -> &Channel {
        &self.channel
    }

    /// The confined process.
    #[must_use]
    pub const fn child(&self) -> Pid {
        self.child
    }

    /// Kills the confined process, and waits until it has ended, and with it the processes in its
    /// process namespace.
    pub fn kill(self) {
        let _ = pidfd_send_signal(&self.handle, rustix_process::Signal::KILL);
        while let Err(Errno::INTR) = waitpid(Some(self.child), WaitOptions::empty()) {}
    }

    /// Forwards termination signals to the confined process until it ends, calls `reload` at each
    /// SIGHUP, which may put another process in its place, and `serving` when the process serves.
    /// Returns its exit status, which is to be this process's as well.
    ///
    /// # Errors
    /// The process cannot be watched, or its capabilities cannot be reduced.
    pub fn wait(
        mut self,
        signals: &Signals,
        mut reload: impl FnMut(&mut Self),
        serving: impl Fn(),
    ) -> Result<u8, Error> {
        capabilities::reduce_supervisor()?;
        // Set by the first termination signal.
        let mut deadline: Option<Instant> = None;
        let mut is_serving = false;
        let mut watchdog = AcceptorWatchdog::from_environment();
        loop {
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                log::error!("the acceptor does not end, so it is killed");
                let _ = pidfd_send_signal(&self.handle, rustix_process::Signal::KILL);
            }
            if is_serving && deadline.is_none() {
                watchdog.ask(&self.channel).map_err(Error::Supervise)?;
            }
            let left = left.filter(|left| !left.is_zero());
            let limit = left
                .into_iter()
                .chain(watchdog.left().filter(|_| is_serving && deadline.is_none()))
                .min()
                .and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [
                PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
                PollFd::new(&self.handle, PollFlags::IN),
                PollFd::new(&self.channel, PollFlags::IN),
            ];
            // The process says nothing more, or has closed its end.
            let fds = match is_serving && !watchdog.is_on() || deadline.is_some() {
                true => &mut fds[..2],
                false => &mut fds[..],
            };
            match poll(fds, limit.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::Supervise(error.into())),
            }
            if fds.get(2).is_some_and(|fd| !fd.revents().is_empty()) {
                is_serving = true;
                let said = self.channel.receive(None).map_err(Error::Supervise)?;
                match said.map(|said| said.message) {
                    Some(Message::Serving) => serving(),
                    Some(Message::Pong) => watchdog.answered(),
                    _ => {}
                }
            }
            let mut is_reloading = false;
            while let Some(signal) = signals.take().map_err(Error::Supervise)? {
                match signal {
                    Signal::SIGCHLD => continue,
                    Signal::SIGHUP => {
                        is_reloading = true;
                        continue;
                    }
                    _ => {}
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
            if is_reloading && deadline.is_none() {
                reload(&mut self);
                is_serving = false;
                watchdog.forget();
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
