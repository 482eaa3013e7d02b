//! The process and user at the other end of a Unix socket.

use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{PeerCredentials, PeerPidfd};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::rate_limit;

/// The credentials of the process that has connected, or that listens at the other end of our
/// connection (`SO_PEERCRED`, unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCred {
    /// User id.
    pub user: u32,
    /// Process id; `None` if the process is in a pid namespace that this process does not see, as
    /// in a container.
    pub process: Option<NonZeroU32>,
}

impl PeerCred {
    /// The credentials at the other end of `socket`.
    ///
    /// # Errors
    /// `getsockopt(2)`'s.
    pub fn of(socket: impl AsFd) -> Result<Self, Errno> {
        // The kernel reports process 0 for a process in another pid namespace. rustix 1.1 has no
        // such process id.
        let told = getsockopt(&socket, PeerCredentials).map_err(errno)?;
        Ok(Self {
            user: told.uid(),
            process: u32::try_from(told.pid()).ok().and_then(NonZeroU32::new),
        })
    }

    /// Whether the user is root or this process's own.
    #[must_use]
    pub fn is_root_or_own(&self) -> bool {
        self.user == 0 || self.user == geteuid().as_raw()
    }

    /// The peer whose messages a rate limit counts: the process of this user, or the user where
    /// process ids are hidden.
    #[must_use]
    pub fn log_key(self) -> rate_limit::Peer {
        let process = self.process.map_or(0, NonZeroU32::get);
        rate_limit::Peer::from(self.user) << u32::BITS | rate_limit::Peer::from(process)
    }
}

/// A descriptor of the process that [`PeerCred`] names, also if that process's id is hidden
/// (`SO_PEERPIDFD`, Linux 6.5).
///
/// # Errors
/// `getsockopt(2)`'s; `ENOPROTOOPT` before Linux 6.5. The process has ended.
pub fn peer_pidfd(socket: impl AsFd) -> Result<OwnedFd, Errno> {
    getsockopt(&socket, PeerPidfd).map_err(errno)
}

fn errno(errno: nix::Error) -> Errno {
    Errno::from_raw_os_error(errno as i32)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn own_socket_is_of_this_process_and_user() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = PeerCred::of(&one).unwrap();
        assert_eq!(peer.process.map(NonZeroU32::get), Some(std::process::id()));
        assert!(peer.is_root_or_own());
    }

    #[test]
    fn processes_and_users_are_told_apart_and_a_hidden_process_counts_as_its_user() {
        let of = |user, process| PeerCred {
            user,
            process: NonZeroU32::new(process),
        };
        let keys = [of(0, 7), of(7, 0), of(7, 7), of(7, 8), of(u32::MAX, 8)].map(PeerCred::log_key);
        let different: std::collections::BTreeSet<_> = keys.into_iter().collect();
        assert_eq!(different.len(), keys.len());
        assert_eq!(of(7, 0).log_key(), of(7, 0).log_key());
    }

    #[test]
    fn what_is_no_socket_has_no_other_end() {
        let file = File::open("/dev/null").unwrap();
        assert_eq!(PeerCred::of(&file), Err(Errno::NOTSOCK));
    }
}
