//! How the next connection is accepted: by a process that becomes its guest's keeper.
//!
//! ```text
//! acceptor ─┬─ forks a process, tells the supervisor of it, lets it begin ── waits for its report
//!           └──────── process: accepts the connection, reports, becomes the keeper
//! ```
//!
//! By the report, the acceptor knows who has connected, and tells the keeper whether that is
//! logged.
//!
//! The process begins only when the supervisor can pass it to the next acceptor. So a connection is
//! either still waiting when an acceptor dies, or outlives it.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use gangplank_service::peer_cred::PeerCred;
use gangplank_service::{rate_limit, rate_limited};
use rustix::process::Pid;

use super::{Acceptor, Guest};
use crate::handover::channel::Channel;
use crate::keeper::{self, Assignment};
use crate::sys::process::{self, WatchedFork};

/// Pause before the next attempt after a connection cannot be accepted for lack of descriptors,
/// processes or memory.
pub(super) const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// What the forked process has done with the connection. It tells the acceptor by one number: 1 to
/// 3, or an errno, negated.
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

/// What the forked process reports.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Report {
    accepted: Accepted,
    /// Whose connection it is ([`PeerCred::log_key`]).
    peer: rate_limit::Peer,
}

impl Report {
    /// Bytes of a report.
    const LEN: usize = 12;

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let (accepted, peer) = bytes.split_at_mut(4);
        accepted.copy_from_slice(&self.accepted.to_bytes());
        peer.copy_from_slice(&self.peer.to_ne_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let [a, b, c, d, peer @ ..] = bytes;
        Self {
            accepted: Accepted::from_bytes([a, b, c, d]),
            peer: rate_limit::Peer::from_ne_bytes(peer),
        }
    }
}

/// One end of what the acceptor and the forked process talk by.
struct Ends {
    /// By this the process is let begin, reports, and learns whether usual events are logged.
    report: UnixStream,
    /// The guest's, as long as it is served.
    control: Channel,
    /// What the supervisor and the guest's processes talk by, if descriptors are held.
    holder: Option<Channel>,
}

impl Ends {
    fn pair((holder, holder_of_keeper): Pair) -> io::Result<(Self, Self)> {
        let (report, report_of_keeper) = UnixStream::pair()?;
        let (control, control_of_keeper) = Channel::pair()?;
        let keeper = Self {
            report: report_of_keeper,
            control: control_of_keeper,
            holder: holder_of_keeper,
        };
        let acceptor = Self {
            report,
            control,
            holder,
        };
        Ok((acceptor, keeper))
    }
}

/// Two ends of a channel that there may be.
type Pair = (Option<Channel>, Option<Channel>);

impl Acceptor<'_> {
    /// Forks a process that accepts the next connection and serves it.
    pub(super) fn serve_next(mut self) -> Self {
        let ends = self.holder_channel().and_then(Ends::pair);
        let (ours, theirs) = match ends {
            Ok(ends) => ends,
            Err(error) => {
                rate_limited!(error, "cannot accept a guest's connection: {error}");
                thread::sleep(ACCEPT_RETRY_DELAY);
                return self;
            }
        };
        match self.means.confined.fork_keeper() {
            Ok(WatchedFork::Child) => {
                drop(ours);
                self.serve_as_keeper(theirs)
            }
            Ok(WatchedFork::Parent(process, handle)) => {
                drop(theirs);
                let is_served = self.let_accept(process, handle, ours);
                if let Err(error) = is_served {
                    rate_limited!(error, "cannot accept a guest's connection: {error}");
                    thread::sleep(ACCEPT_RETRY_DELAY);
                }
            }
            Err(error) => {
                rate_limited!(error, "cannot start a process for a guest: {error}");
                thread::sleep(ACCEPT_RETRY_DELAY);
            }
        }
        self
    }

    /// Two ends of the channel between the supervisor, which has descriptors held, and a guest's
    /// processes; none if the supervisor holds nothing.
    pub(super) fn holder_channel(&self) -> io::Result<Pair> {
        match self.means.has_holder {
            true => Channel::pair().map(|(supervisor, guest)| (Some(supervisor), Some(guest))),
            false => Ok((None, None)),
        }
    }

    /// Lets the forked process accept the connection, and waits until it has.
    fn let_accept(&mut self, process: Pid, handle: OwnedFd, ends: Ends) -> io::Result<()> {
        let Ends {
            mut report,
            control,
            holder,
        } = ends;
        // As for the supervisor, until it is known who has connected.
        let mut guest = Guest::new(self.number + 1, true, handle, control);
        // It begins without a session that was kept.
        guest.has_announced = true;
        guest.register(process, holder, &self.means.supervisor)?;
        report.write_all(&[0])?;
        let mut said = [0; Report::LEN];
        report.read_exact(&mut said).map_err(|_| {
            // The supervisor's log has the reason.
            io::Error::other("the process for the guest has ended at once")
        })?;
        let Report { accepted, peer } = Report::from_bytes(said);
        match accepted {
            Accepted::Guest => {
                self.number += 1;
                let admitted = self.connection_log.admit(peer);
                if let Some(unlogged @ 1..) = admitted {
                    log::warn!("{unlogged} connections before this one were not logged");
                }
                guest.is_logged = admitted.is_some();
                // If this fails, the keeper has died, and its end is found next.
                let _ = report.write_all(&[u8::from(guest.is_logged)]);
                self.guests.add(guest)?;
            }
            Accepted::Refused => {
                self.number += 1;
                rate_limited!(
                    peer = peer,
                    error,
                    "guest {} is refused: {} guests are connected, the most that this daemon \
                     serves; raise --max-guests",
                    self.number,
                    self.guests.connected()
                );
            }
            Accepted::Nothing => {}
            Accepted::Failed(errno) => return Err(io::Error::from_raw_os_error(errno)),
        }
        Ok(())
    }

    /// In the forked process: accepts the connection and becomes its keeper.
    fn serve_as_keeper(self, ends: Ends) -> ! {
        let Ends {
            mut report,
            control,
            holder,
        } = ends;
        if report.read_exact(&mut [0]).is_err() {
            // The acceptor has died, or has not told the supervisor. The connection waits.
            process::exit(0)
        }
        let number = self.number + 1;
        // A session that is kept must not keep others out, least of all its own frontend.
        let guests = self.guests.connected();
        let mut said = Report {
            accepted: Accepted::Nothing,
            peer: rate_limit::Peer::MAX,
        };
        match accept(&self.means.listener) {
            Err(error) => {
                said.accepted = Accepted::Failed(error.raw_os_error().unwrap_or(libc::EIO));
            }
            Ok(None) => {}
            Ok(Some(connection)) if guests < self.means.max_guests => {
                said.accepted = Accepted::Guest;
                said.peer = self.log_key(&connection);
                let mut is_logged = [1];
                // If this fails, the acceptor has died, and the next one knows of this process.
                let _ = report
                    .write_all(&said.to_bytes())
                    .and_then(|()| report.read_exact(&mut is_logged));
                drop(report);
                let (confined, config) = self.into_keeper();
                let assignment = Assignment {
                    number,
                    connection,
                    control,
                    is_logged: is_logged != [0],
                    holder,
                };
                keeper::run(assignment, confined, config)
            }
            Ok(Some(connection)) => {
                said.accepted = Accepted::Refused;
                said.peer = self.log_key(&connection);
                // Closed by the end of this process, after the acceptor has gone on.
                std::mem::forget(connection);
            }
        }
        let _ = report.write_all(&said.to_bytes());
        process::exit(0)
    }

    /// Whose connection it is, for the limits of the log.
    fn log_key(&self, connection: &UnixStream) -> rate_limit::Peer {
        let peer = self.means.confined.peer_of(connection);
        peer.map_or(rate_limit::Peer::MAX, PeerCred::log_key)
    }
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
        let report = Report {
            accepted: failed,
            peer: 1 << 63 | 7,
        };
        assert!(Report::from_bytes(report.to_bytes()) == report);
    }
}
