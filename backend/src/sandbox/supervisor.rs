//! The fork that divides the daemon: the supervisor stays outside of the sandbox, the acceptor goes
//! in.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    self as rustix_process, Pid, PidfdFlags, pidfd_open, set_parent_process_death_signal,
};

use super::error::Error;
use crate::handover::channel::Channel;
use crate::sys::process::Forked;

/// The side of [`fork`].
pub(super) enum Side {
    /// The process to confine, with its end of the channel to its supervisor.
    Confined(Channel),
    /// Its supervisor, with the process and the other end of the channel.
    Supervisor(Pid, Channel),
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
        Forked::Parent(child) => Ok(Side::Supervisor(child, channel)),
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
