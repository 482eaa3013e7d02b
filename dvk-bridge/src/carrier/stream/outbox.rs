//! What is on its way to a peer: whole commands in their order, sent by whoever can without waiting, the rest by a thread.

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

/// Most bytes that wait for a peer to take them. Nobody sends more than a few exchanges ahead, so that one who lets so much
/// wait asks for copies and does not read them.
const MAX_UNSENT: usize = 8 << 20;

/// Most bytes that are kept although they are sent, to save moving the rest.
const COMPACT_THRESHOLD: usize = 1 << 20;

/// The outgoing half of a pair of connections.
pub(crate) struct Outbox {
    here: NodeId,
    peer: NodeId,
    generation: Generation,
    /// This process's id, for headers.
    pid: i32,
    state: Mutex<State>,
    /// Signalled when something waits, or the connection is given up.
    wake: OwnedFd,
    /// Notified when the peer can be talked to.
    usable: Condvar,
}

#[derive(Default)]
struct State {
    stream: Option<OwnedFd>,
    /// The other half is there: what the peer answers will come.
    inbound_up: bool,
    waiting: Vec<u8>,
    /// Bytes of `waiting` that are sent.
    sent: usize,
    /// Bytes that were ever sent.
    sent_total: u64,
    /// Given up by a sender: why.
    send_error: Option<SendError>,
    sequence: u32,
    counters: Traffic,
}

/// What was sent to a peer, or came from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Commands.
    pub(crate) commands: u64,
    /// Bytes, headers included.
    pub(crate) bytes: u64,
}

impl Traffic {
    /// Counts a command of so many bytes.
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

/// Why nothing more can be sent on a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    /// The system says so.
    #[error("{0}")]
    Io(#[from] Errno),
    /// It does not read.
    #[error("it does not read: {MAX_UNSENT} bytes wait for it")]
    Full,
    /// It does not read, for a long time.
    #[error("it has not read for {0:?}")]
    Slow(std::time::Duration),
    /// It has closed.
    #[error("it has closed the connection")]
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

    /// Sends from now on by `stream`, which does not block.
    pub(crate) fn connect(&self, stream: OwnedFd) {
        let mut state = self.state.lock();
        state.stream = Some(stream);
        state.waiting.clear();
        state.sent = 0;
        state.send_error = None;
        self.usable.notify_all();
    }

    /// Notes whether the peer's half of the pair is there. Without it nobody is asked anything, since no answer can come.
    pub(crate) fn set_inbound_up(&self, inbound_up: bool) {
        self.state.lock().inbound_up = inbound_up;
        self.usable.notify_all();
    }

    /// Sends nothing any more. What was waiting is lost.
    pub(crate) fn disconnect(&self) {
        let mut state = self.state.lock();
        state.stream = None;
        state.waiting = Vec::new();
        state.sent = 0;
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.state.lock().stream.is_some()
    }

    /// Breaks the connection, as a network does.
    #[cfg(test)]
    pub(crate) fn cut(&self) {
        let state = self.state.lock();
        let stream = state.stream.as_ref().expect("there is a connection");
        rustix::net::shutdown(stream, rustix::net::Shutdown::Both).expect("it can be broken");
    }

    pub(crate) fn counters(&self) -> Traffic {
        self.state.lock().counters
    }

    /// What becomes readable when [`Self::flush`] is to be called.
    pub(crate) fn wake(&self) -> &OwnedFd {
        &self.wake
    }

    /// Sends what waits, as far as the peer takes it: whether some is left.
    pub(crate) fn flush(&self) -> Result<bool, SendError> {
        let mut counter = [0; 8];
        // Nothing to read is as well.
        let _ = rustix::io::read(&self.wake, &mut counter);
        let mut state = self.state.lock();
        state.send_now()?;
        Ok(!state.waiting.is_empty())
    }

    /// Bytes that the peer, or the system for it, ever took: as long as this stays the same, nothing goes on.
    pub(crate) fn sent_total(&self) -> u64 {
        self.state.lock().sent_total
    }

    /// Bytes that wait for the peer.
    pub(crate) fn unsent(&self) -> usize {
        self.state.lock().unsent()
    }

    /// A sign of life, as proxies tell their load: none, every 30 seconds.
    pub(crate) fn hello(&self) -> Result<(), NotConnected> {
        let load = M1 {
            i3: 30,
            ..M1::default()
        };
        let mut message = Message::new(LOAD_LEVEL, &load);
        message.source = Endpoint::from_raw(self.here.raw());
        self.post_unanswered(proxy_command(message), &[])
    }

    /// Has whoever waits for [`Self::wake`] look what there is to do.
    pub(crate) fn wake_up(&self) {
        // A counter that is full wakes as well.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// A message's kind between proxies: how much the sender's machine has to do.
const LOAD_LEVEL: i32 = 5;

/// A command from one proxy to another: no process's.
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
    /// The same as [`PeerTransport::post`] for what is not to be answered.
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
        // Whoever is in the middle of a command goes on with it before this one.
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

    /// Sends what the peer takes at once.
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

/// The time in a header, which has 32 bits for it.
fn now() -> Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default();
    Timestamp {
        sec: i32::try_from(now.as_secs()).unwrap_or(i32::MAX),
        nsec: i32::try_from(now.subsec_nanos()).unwrap_or(0),
    }
}
