//! The thread that connects to a peer, sends what could not be sent at once, and sends hello
//! commands.

use std::time::{Duration, Instant};

use gangplank_service::rate_limit::set_thread_peer;
use gangplank_service::rate_limited;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use super::connect::connect_to;
use super::reader::log_key;
use super::{Peer, Shared};
use crate::carrier::stream::{SendError, poll_for};

/// A connection that ends in this time was probably refused by the peer.
const CLOSED_SOON: Duration = Duration::from_secs(10);

/// As many such connections in a row are no restart of the peer.
const SUSPICIOUS_CLOSES: u32 = 3;

/// Connects and sends until the node stops.
pub(super) fn run(shared: &Shared, peer: &Peer) {
    set_thread_peer(log_key(peer));
    // Reported once for each loss.
    let mut reported = false;
    // Connections in a row that the peer closed soon.
    let mut closed_soon = 0;
    while !shared.is_stopping() {
        match connect_to(&shared.config, &peer.config, &peer.host, &shared.stop) {
            Ok(socket) => {
                reported = false;
                let begun = Instant::now();
                if let Err(end) = serve(shared, peer, socket) {
                    rate_limited!(warn, "the connection to {peer} is lost: {end}");
                    closed_soon = match begun.elapsed() < CLOSED_SOON {
                        true => closed_soon + 1,
                        false => 0,
                    };
                    if closed_soon == SUSPICIOUS_CLOSES {
                        rate_limited!(
                            warn,
                            "{peer} closes each connection soon: another program may be node {}, \
                             too, or one of the two has another generation",
                            shared.config.id
                        );
                    }
                }
                peer.outbox.disconnect();
                shared.table.interrupted(peer.id());
            }
            Err(error) if reported => log::debug!("cannot connect to {peer}: {error}"),
            Err(error) => {
                reported = true;
                let retry = shared.config.limits.retry;
                rate_limited!(
                    info,
                    "cannot connect to {peer}, retrying every {retry:?}: {error}"
                );
            }
        }
        if let Err(error) = wait_before_retry(shared, peer) {
            log::error!("cannot wait for {peer}: {error}");
            return;
        }
    }
}

/// Waits for the next attempt. The peer's own connection ends the wait, since the peer is there,
/// and so does the end of the node.
fn wait_before_retry(shared: &Shared, peer: &Peer) -> Result<(), Errno> {
    let mut ready = [
        PollFd::new(&shared.stop, PollFlags::IN),
        PollFd::new(peer.outbox.wake(), PollFlags::IN),
    ];
    poll_for(&mut ready, shared.config.limits.retry)?;
    // There is no connection to send on. This only resets the eventfd.
    let _ = peer.outbox.flush();
    Ok(())
}

/// Sends on `socket` until the connection breaks or the node stops.
fn serve(shared: &Shared, peer: &Peer, socket: OwnedFd) -> Result<(), SendError> {
    let outbox = &peer.outbox;
    outbox.connect(
        socket
            .try_clone()
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE))?,
    );
    peer.note_up();
    shared.announce(peer);
    let limits = &shared.config.limits;
    let mut sent_total = outbox.sent_total();
    let mut active = Instant::now();
    let mut waiting = false;
    while !shared.is_stopping() {
        // While data waits, only data that the peer accepts counts as activity.
        let limit = if waiting {
            limits.transfer
        } else {
            limits.hello
        };
        let left = limit.saturating_sub(active.elapsed());
        if left.is_zero() {
            if waiting {
                return Err(SendError::Slow(limit));
            }
            // The loop below notices a lost connection.
            let _ = outbox.hello();
        }
        wait(shared, peer, &socket, waiting, left)?;
        let waited = std::mem::replace(&mut waiting, outbox.flush()?);
        let now = outbox.sent_total();
        if now != sent_total || (waiting && !waited) {
            sent_total = now;
            active = Instant::now();
        }
    }
    Ok(())
}

/// Waits until there is data and the socket accepts it, or the peer closes.
fn wait(
    shared: &Shared,
    peer: &Peer,
    socket: &OwnedFd,
    waiting: bool,
    limit: Duration,
) -> Result<(), SendError> {
    let room = if waiting {
        PollFlags::OUT
    } else {
        PollFlags::empty()
    };
    let mut ready = [
        PollFd::new(&shared.stop, PollFlags::IN),
        PollFd::new(peer.outbox.wake(), PollFlags::IN),
        PollFd::new(socket, room | PollFlags::IN | PollFlags::RDHUP),
    ];
    poll_for(&mut ready, limit)?;
    let [_, _, socket_ready] = &ready;
    if socket_ready
        .revents()
        .intersects(PollFlags::IN | PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
    {
        // The peer never sends on this connection. Only its end arrives here.
        let mut byte = [0; 64];
        return match rustix::io::read(socket, &mut byte) {
            Ok(0) => Err(SendError::Closed),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        };
    }
    Ok(())
}
