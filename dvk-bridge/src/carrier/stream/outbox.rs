//! The commands on their way to a peer. The thread that posts a command sends it if the socket
//! accepts it; the connection's thread sends the rest.

use std::fmt;
use std::os::fd::AsFd;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use crate::abi::{Command, Endpoint, Generation, Header, M1, Message, NodeId, Timestamp};
use crate::carrier::engine::{NotConnected, PeerTransport};

/// Bytes that may wait for a peer. Nobody sends more than a few exchanges ahead, so a peer with
/// this much waiting requests copies and does not read them.
const MAX_UNSENT: usize = 8 << 20;

/// Sent bytes that stay in the buffer, to avoid moving the rest often.
const COMPACT_THRESHOLD: usize = 1 << 20;

/// The outgoing half of a pair of connections.
pub(crate) struct Outbox {
    here: NodeId,
    peer: NodeId,
    generation: Generation,
    /// This process's id for headers.
    pid: i32,
    state: Mutex<State>,
    /// Signalled when data waits or the connection is dropped.
    wake: OwnedFd,
    /// Notified when the peer can be reached.
    usable: Condvar,
}

#[derive(Default)]
struct State {
    stream: Option<OwnedFd>,
    /// The peer's own connection is up, so its answers can arrive.
    inbound_up: bool,
    waiting: Vec<u8>,
    /// Bytes of `waiting` that are sent.
    sent: usize,
    /// Bytes that were sent on all connections.
    sent_total: u64,
    /// Why a sender has given the connection up.
    send_error: Option<SendError>,
    sequence: u32,
    counters: Traffic,
}

/// Commands that were sent to a peer or received from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Commands.
    pub(crate) commands: u64,
    /// Bytes, headers included.
    pub(crate) bytes: u64,
}

impl Traffic {
    /// As an object for a status.
    pub(crate) fn json(self) -> serde_json::Value {
        serde_json::json!({ "commands": self.commands, "bytes": self.bytes })
    }

    /// Counts a command of `bytes` bytes.
    pub(crate) fn count(&mut self, bytes: usize) {
        self.commands += 1;
        self.bytes += u64::try_from(bytes).unwrap_or(0);
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands ({} bytes)", self.commands, self.bytes)
    }
}

/// Why a connection cannot be used any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    /// The system reports an error.
    #[error("{0}")]
    Io(#[from] Errno),
    /// The peer does not read.
    #[error("the peer does not read: {MAX_UNSENT} bytes are queued for it")]
    Full,
    /// The peer has not read for a long time.
    #[error("the peer has not read for {0:?}")]
    Slow(std::time::Duration),
    /// The peer has closed the connection.
    #[error("the peer closed the connection")]
    Closed,
}

impl Outbox {
    pub(crate) fn new(here: NodeId, peer: NodeId, generation: Generation) -> Result<Self, Errno> {
        Ok(Self {
            here,
            peer,
            generation,
            pid: i32::try_from(std::process::id()).unwrap_or(0),
            state: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            usable: Condvar::new(),
        })
    }

    /// Sends on `stream`, which is non-blocking, from now on.
    pub(crate) fn connect(&self, stream: OwnedFd) {
        let mut state = self.state.lock();
        state.stream = Some(stream);
        state.waiting.clear();
        state.sent = 0;
        state.send_error = None;
        self.usable.notify_all();
    }

    /// Notes whether the peer's own connection is up. Without it no command is posted, since no
    /// answer could arrive.
    pub(crate) fn set_inbound_up(&self, inbound_up: bool) {
        self.state.lock().inbound_up = inbound_up;
        self.usable.notify_all();
    }

    /// Stops sending and drops what waits.
    pub(crate) fn disconnect(&self) {
        let mut state = self.state.lock();
        state.stream = None;
        state.waiting = Vec::new();
        state.sent = 0;
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.state.lock().stream.is_some()
    }

    /// Breaks the connection, as a network failure does.
    #[cfg(test)]
    pub(crate) fn cut(&self) {
        let state = self.state.lock();
        let stream = state.stream.as_ref().expect("the connection exists");
        rustix::net::shutdown(stream, rustix::net::Shutdown::Both).expect("it can be broken");
    }

    pub(crate) fn counters(&self) -> Traffic {
        self.state.lock().counters
    }

    /// Becomes readable when [`Self::flush`] is to be called.
    pub(crate) fn wake(&self) -> &OwnedFd {
        &self.wake
    }

    /// Sends waiting data as far as the peer accepts it. Returns whether some is left.
    pub(crate) fn flush(&self) -> Result<bool, SendError> {
        let mut counter = [0; 8];
        // The eventfd may not be signalled.
        let _ = rustix::io::read(&self.wake, &mut counter);
        let mut state = self.state.lock();
        state.send_now()?;
        Ok(!state.waiting.is_empty())
    }

    /// Bytes that the peer's socket has ever accepted. The connection makes no progress while this
    /// stays the same.
    pub(crate) fn sent_total(&self) -> u64 {
        self.state.lock().sent_total
    }

    /// Bytes that wait for the peer.
    pub(crate) fn unsent(&self) -> usize {
        self.state.lock().unsent()
    }

    /// Posts a hello: a load report as proxies send it, of load zero every 30 seconds.
    pub(crate) fn hello(&self) -> Result<(), NotConnected> {
        let load = M1 {
            i3: 30,
            ..M1::default()
        };
        let mut message = Message::new(LOAD_LEVEL, &load);
        message.source = Endpoint::from_raw(self.here.raw());
        self.post_unanswered(proxy_command(message), &[])
    }

    /// Wakes the thread that waits for [`Self::wake`].
    pub(crate) fn wake_up(&self) {
        // An eventfd whose counter is full wakes the thread as well.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// A message type between proxies: the load of the sender's machine.
const LOAD_LEVEL: i32 = 5;

/// A command from proxy to proxy, which belongs to no process.
pub(crate) fn proxy_command(message: Message) -> Header {
    Header {
        dc: -1,
        src: Endpoint::NONE,
        dst: Endpoint::NONE,
        message,
        ..Header::new(Command::NONE)
    }
}

impl PeerTransport for Outbox {
    fn post(&self, header: Header, payload: &[u8]) -> Result<(), NotConnected> {
        let mut state = self.state.lock();
        if !state.inbound_up {
            return Err(NotConnected);
        }
        self.put(&mut state, header, payload)
    }

    fn wait(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        let mut late = false;
        while !state.is_usable() && !late {
            late = self.usable.wait_until(&mut state, deadline).timed_out();
        }
        state.is_usable()
    }
}

impl Outbox {
    /// As [`PeerTransport::post`], for commands that need no answer.
    pub(crate) fn post_unanswered(
        &self,
        header: Header,
        payload: &[u8],
    ) -> Result<(), NotConnected> {
        self.put(&mut self.state.lock(), header, payload)
    }

    fn put(&self, state: &mut State, header: Header, payload: &[u8]) -> Result<(), NotConnected> {
        if state.stream.is_none() || state.send_error.is_some() {
            return Err(NotConnected);
        }
        state.sequence = state.sequence.wrapping_add(1);
        let header = Header {
            snode: self.here.raw(),
            dnode: self.peer.raw(),
            len: i32::try_from(payload.len()).unwrap_or(i32::MAX),
            pid: self.pid,
            snd_seq: state.sequence,
            timestamp: now(),
            ..header
        };
        let before = state.waiting.len();
        header.encode(self.generation, &mut state.waiting);
        state.waiting.extend_from_slice(payload);
        let bytes = state.waiting.len() - before;
        state.counters.count(bytes);
        // If a command is partly sent, the connection's thread finishes it before this one.
        if before == 0 {
            if let Err(send_error) = state.send_now() {
                state.send_error = Some(send_error);
            }
        } else if state.unsent() > MAX_UNSENT {
            state.send_error = Some(SendError::Full);
        }
        if state.send_error.is_some() || state.unsent() > 0 {
            self.wake_up();
        }
        Ok(())
    }
}

impl State {
    fn is_usable(&self) -> bool {
        self.inbound_up && self.stream.is_some() && self.send_error.is_none()
    }

    fn unsent(&self) -> usize {
        self.waiting.len().saturating_sub(self.sent)
    }

    /// Sends what the peer accepts at once.
    fn send_now(&mut self) -> Result<(), SendError> {
        if let Some(send_error) = &self.send_error {
            return Err(send_error.clone());
        }
        let Some(stream) = &self.stream else {
            return Err(SendError::Closed);
        };
        while let Some(rest @ [_, ..]) = self.waiting.get(self.sent..) {
            match send(
                stream.as_fd(),
                rest,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => {
                    self.sent += sent;
                    self.sent_total += u64::try_from(sent).unwrap_or(0);
                }
                Err(Errno::AGAIN) => {
                    if self.sent > COMPACT_THRESHOLD {
                        self.waiting.drain(..self.sent);
                        self.sent = 0;
                    }
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.waiting.clear();
        self.sent = 0;
        Ok(())
    }
}

/// The time for a header, in 32 bits.
fn now() -> Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default();
    Timestamp {
        sec: i32::try_from(now.as_secs()).unwrap_or(i32::MAX),
        nsec: i32::try_from(now.subsec_nanos()).unwrap_or(0),
    }
}
