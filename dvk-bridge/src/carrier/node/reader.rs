//! The thread that listens for a peer and reads what it sends.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gangplank_service::rate_limit::{self, set_thread_peer};
use gangplank_service::rate_limited;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use super::connect::accept_from;
use super::{Peer, Shared};
use crate::abi::{Code, Command, Generation, Header, HeaderFlags, M1};
use crate::carrier::stream::{AcceptBackoff, FrameError, Frames, MAX_POLL_WAIT, poll_for};

/// The connection of a peer.
struct Incoming {
    socket: OwnedFd,
    frames: Frames,
    /// When the command began that has not arrived completely.
    since: Option<Instant>,
    /// Whether the log has told that the peer seems to have another generation.
    is_guessed: bool,
}

/// How long a command may stop in its middle before another generation is suspected. A header
/// arrives at once.
const GUESS_DELAY: Duration = Duration::from_secs(1);

/// Within this time, a peer that has restarted does not replace its connection twice. Two programs
/// do, since each connects again every [`super::config::NodeLimits::retry`].
const DUPLICATE_WINDOW: Duration = Duration::from_secs(10);

/// Interval at which the reader checks whether it can answer the peer, or knows its address.
const ANSWERABLE_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("the peer closed the connection")]
    Closed,
    #[error("{0}")]
    Io(#[from] Errno),
    #[error("the peer violates the protocol: {0}")]
    Rules(#[from] FrameError),
    #[error("the connection ended within a command: {0}")]
    Half(String),
    #[error("the peer connected again")]
    Replaced,
}

/// Listens and reads until the node stops.
pub(super) fn run(shared: &Shared, peer: &Peer, listener: &OwnedFd) {
    set_thread_peer(log_key(peer));
    let mut incoming: Option<Incoming> = None;
    let mut backoff = AcceptBackoff::default();
    let mut replaced_at: Option<Instant> = None;
    while !shared.is_stopping() {
        let (connecting, readable) = match wait(shared, peer, listener, &backoff, incoming.as_ref())
        {
            Ok(ready) => ready,
            Err(error) => {
                log::error!("cannot wait for {peer}: {error}");
                return;
            }
        };
        if let Some(connection) = &mut incoming
            && let Err(end) = connection.serve(shared, peer, readable)
        {
            lost(shared, peer, &end);
            incoming = None;
        }
        let before = *peer.incoming.lock();
        if connecting && let Some(socket) = accept(peer, listener, &mut backoff) {
            if incoming.take().is_some() {
                lost(shared, peer, &ConnectionError::Replaced);
                let now = Instant::now();
                let earlier = replaced_at.replace(now);
                if earlier.is_some_and(|at| now - at < DUPLICATE_WINDOW) {
                    name_duplicate(peer, before);
                }
            }
            incoming = Some(Incoming::new(shared, peer, socket));
            if !peer.outbox.is_connected() {
                peer.outbox.wake_up();
            }
            peer.note_up();
        }
    }
}

/// Two programs have one node id: each new connection ends that of the other program.
fn name_duplicate(peer: &Peer, before: Option<SocketAddr>) {
    let shown = |address: Option<SocketAddr>| {
        address.map_or("an unknown address".to_owned(), |it| it.to_string())
    };
    rate_limited!(
        warn,
        "two programs connect as {peer}, from {} and from {}, and end each other's connection: \
         give each a node id of its own (gangplank-dvk mount --node)",
        shown(before),
        shown(*peer.incoming.lock())
    );
}

/// The peer whose messages a rate limit counts.
pub(super) fn log_key(peer: &Peer) -> rate_limit::Peer {
    u64::from(peer.config.id.raw().cast_unsigned())
}

/// Waits for a new connection or for data. Returns whether each is ready.
///
/// While no answer can be sent, the reader reads nothing and only watches for the end of the
/// connection: a caller without an answer would wait for ever. And while the peer's address is
/// unknown, the reader accepts nothing, because proxies do not come back after a refusal.
fn wait(
    shared: &Shared,
    peer: &Peer,
    listener: &OwnedFd,
    backoff: &AcceptBackoff,
    incoming: Option<&Incoming>,
) -> Result<(bool, bool), Errno> {
    let answerable = peer.outbox.is_connected();
    let interest = if answerable {
        PollFlags::IN
    } else {
        PollFlags::RDHUP
    };
    let known = peer.host.is_known();
    let accept_interest = if known {
        backoff.interest()
    } else {
        PollFlags::empty()
    };
    let mut ready = vec![
        PollFd::new(&shared.stop, PollFlags::IN),
        PollFd::new(listener, accept_interest),
    ];
    ready.extend(incoming.map(|it| PollFd::new(&it.socket, interest)));
    let limit = match incoming {
        _ if !known => ANSWERABLE_CHECK_INTERVAL,
        Some(_) if !answerable => ANSWERABLE_CHECK_INTERVAL,
        Some(incoming) => incoming.time_left(shared),
        None => MAX_POLL_WAIT,
    };
    let limit = backoff.paused_for().map_or(limit, |shut| limit.min(shut));
    poll_for(&mut ready, limit)?;
    let is_ready = |index: usize| ready.get(index).is_some_and(|it| !it.revents().is_empty());
    Ok((is_ready(1), is_ready(2)))
}

fn accept(peer: &Peer, listener: &OwnedFd, backoff: &mut AcceptBackoff) -> Option<OwnedFd> {
    match accept_from(listener, &peer.host) {
        Ok((socket, address)) => {
            log::debug!("{peer} has connected from {address}");
            set_incoming(peer, Some(address));
            Some(socket)
        }
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
        Err(error) => {
            if backoff.failed(&error) {
                log::warn!("a connection at the port of {peer} is refused: {error}");
            }
            None
        }
    }
}

fn set_incoming(peer: &Peer, address: Option<SocketAddr>) {
    peer.outbox.set_inbound_up(address.is_some());
    *peer.incoming.lock() = address;
}

/// Handles the loss of the connection from `peer`, and of all its processes.
fn lost(shared: &Shared, peer: &Peer, end: &ConnectionError) {
    if !matches!(end, ConnectionError::Replaced) {
        set_incoming(peer, None);
    }
    rate_limited!(warn, "the connection from {peer} is lost: {end}");
    shared.table.peer_lost(peer.id());
}

impl Incoming {
    fn new(shared: &Shared, peer: &Peer, socket: OwnedFd) -> Self {
        Self {
            socket,
            frames: Frames::new(shared.config.id, peer.config.id, peer.config.generation),
            since: None,
            is_guessed: false,
        }
    }

    /// Time until the reader has to act without data.
    fn time_left(&self, shared: &Shared) -> Duration {
        let limit = shared.config.limits.transfer;
        let limit = if self.is_guessed {
            limit
        } else {
            limit.min(GUESS_DELAY)
        };
        self.since
            .map_or(MAX_POLL_WAIT, |since| limit.saturating_sub(since.elapsed()))
    }

    /// Handles the data that arrived, or a command that does not end.
    fn serve(
        &mut self,
        shared: &Shared,
        peer: &Peer,
        readable: bool,
    ) -> Result<(), ConnectionError> {
        if readable {
            let read = self
                .frames
                .fill(|room| rustix::io::read(&self.socket, room));
            match read {
                Ok(0) => return Err(ConnectionError::Closed),
                Ok(_) => {}
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            while self
                .frames
                .next(|header, payload| deliver(shared, peer, header, payload))?
            {
                self.since = None;
            }
        }
        if !self.frames.is_inside() {
            self.since = None;
            return Ok(());
        }
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        if waited >= shared.config.limits.transfer {
            return Err(ConnectionError::Half(self.frames.describe_rest()));
        }
        if waited >= GUESS_DELAY && !self.is_guessed {
            self.is_guessed = true;
            name_generations(peer, &self.frames.ended_as());
        }
        Ok(())
    }
}

/// Says which generations fit what a peer has sent.
fn name_generations(peer: &Peer, fitting: &[Generation]) {
    let fitting: Vec<String> = fitting.iter().map(Generation::to_string).collect();
    if fitting.is_empty() {
        return;
    }
    rate_limited!(
        warn,
        "{peer} is configured as generation {}, but what it sends fits generation {}: correct it \
         by --generation, or by peer_generation in the server's configuration",
        peer.config.generation,
        fitting.join(" or ")
    );
}

fn deliver(shared: &Shared, peer: &Peer, header: &Header, payload: &[u8]) {
    peer.received
        .lock()
        .count(peer.config.generation.header_size() + payload.len());
    if header.command == Command::NONE {
        handle_proxy_message(peer, header);
    } else if header.flags.contains(HeaderFlags::LZ4) {
        rate_limited!(
            warn,
            "{peer} sends compressed data, which is not supported: configure its proxy with \
             compress NO ({} from {} is refused)",
            header.command,
            header.src
        );
        // Passes the command on as if it had no data: an awaited command fails, and a new one is
        // answered.
        let refused = Header {
            rcode: if header.command.is_ack() {
                Code::ENOSYS.result()
            } else {
                header.rcode
            },
            len: 0,
            flags: HeaderFlags::empty(),
            ..*header
        };
        shared.table.deliver(peer.id(), &refused, &[]);
    } else {
        shared.table.deliver(peer.id(), header, payload);
    }
}

/// A message type between proxies: the result of a request to bind.
const REMOTE_BIND_DONE: i32 = 0x1007;

/// Handles a message from proxy to proxy, or a hello.
fn handle_proxy_message(peer: &Peer, header: &Header) {
    if header.dc == -1 && header.message.kind == REMOTE_BIND_DONE {
        let result = header.message.arm::<M1>().i1;
        match Code::from_result(result) {
            // The endpoints of tasks are negative as well.
            Some(code) if code > Code::EDVSERRCODE => {
                rate_limited!(warn, "{peer} could not bind our endpoint: {code}");
            }
            _ => rate_limited!(info, "{peer} has bound our endpoint {result}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use gangplank_service::captured_log;
    use gangplank_service::rate_limit::BURST;

    use super::*;
    use crate::carrier::node::tests::node;

    #[test]
    fn a_peer_that_compresses_fills_no_log_and_hides_no_other_peer_that_does() {
        captured_log::start();
        let burst = usize::try_from(BURST).unwrap();
        for (net, peer) in [(61, 27), (62, 28)] {
            let node = node(net, 0, peer, Generation::Current);
            let shared = node.shared.clone();
            let reading = thread::spawn(move || {
                let peer = &shared.peers[0];
                set_thread_peer(log_key(peer));
                let compressed = Header {
                    flags: HeaderFlags::LZ4,
                    ..Header::new(Command::SEND_MSG)
                };
                for _ in 0..1000 {
                    deliver(&shared, peer, &compressed, &[0; 8]);
                }
            });
            reading.join().unwrap();
            let text = format!("node {peer} (127.0.{net}.{}) sends compressed", peer + 1);
            assert_eq!(captured_log::count(&text), burst, "{text}");
        }
    }
}
