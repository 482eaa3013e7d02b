//! One program at the switch: its connection and its user.

use std::fmt;

use gangplank_service::peer_cred::PeerCred;
use rustix::event::PollFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use super::queue::{Pair, Queue, QueueError};
use crate::abi::{Command, Header, HeaderFlags};
use crate::carrier::local::{GENERATION, no_node};
use crate::carrier::stream::{FrameError, Frames};

/// Why a program is dropped.
#[derive(Debug, thiserror::Error)]
pub(super) enum DropReason {
    #[error("the program closed the connection")]
    Closed,
    #[error("{0}")]
    Io(#[from] Errno),
    #[error("the program violates the protocol: {0}")]
    Rules(#[from] FrameError),
    #[error("the program violates the protocol: only nodes send batches and compression")]
    Packed,
    #[error("the program violates the protocol: only nodes send {0}")]
    Command(Command),
    #[error("{0}")]
    QueueError(#[from] QueueError),
}

/// Why a program is not read: too much of what one of its endpoints sends to another one waits
/// there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pause {
    /// The program that has not read it.
    pub(super) full: u64,
    /// Source and destination.
    pub(super) pair: Pair,
}

/// A connected program.
pub(super) struct Program {
    socket: OwnedFd,
    uid: u32,
    /// `None` if the process is in a pid namespace that the switch cannot see.
    pid: Option<i32>,
    frames: Frames,
    /// The commands that wait for it.
    pub(super) queue: Queue,
    paused_for: Option<Pause>,
}

impl Program {
    /// The program at the other end of `socket`.
    pub(super) fn new(socket: OwnedFd) -> Result<Self, Errno> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let peer = PeerCred::of(&socket)?;
        Ok(Self {
            socket,
            uid: peer.user,
            pid: peer.process.and_then(|it| i32::try_from(it.get()).ok()),
            frames: Frames::new(no_node(), no_node(), GENERATION),
            queue: Queue::default(),
            paused_for: None,
        })
    }

    pub(super) fn uid(&self) -> u32 {
        self.uid
    }

    /// Its process id in headers. 0 if it is unknown.
    pub(super) fn pid(&self) -> i32 {
        self.pid.unwrap_or(0)
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// The poll events to wait for on its connection.
    pub(super) fn interest(&self) -> PollFlags {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, self.paused_for.is_none());
        interest.set(PollFlags::OUT, self.queue.unsent() > 0);
        interest
    }

    pub(super) fn pause(&mut self, pause: Pause) {
        self.paused_for = Some(pause);
    }

    pub(super) fn unpause(&mut self) {
        self.paused_for = None;
    }

    pub(super) fn paused_for(&self) -> Option<Pause> {
        self.paused_for
    }

    /// Its state as an object.
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "process": self.pid,
            "user": self.uid,
            "unsent_bytes": self.queue.unsent(),
            "paused": self.paused_for.is_some(),
        })
    }

    /// Describes its state.
    pub(super) fn state(&self) -> String {
        let paused = if self.paused_for.is_some() {
            ", paused until the receiver reads"
        } else {
            ""
        };
        format!("{} bytes wait for it{paused}", self.queue.unsent())
    }

    /// Reads what `events` announces, unless the program is paused. A program that ends while it is
    /// paused loses the rest of its commands.
    pub(super) fn read(&mut self, events: PollFlags) -> Result<(), DropReason> {
        if self.paused_for.is_some() {
            let gone = events.intersects(PollFlags::HUP | PollFlags::ERR);
            return if gone {
                Err(DropReason::Closed)
            } else {
                Ok(())
            };
        }
        match self
            .frames
            .fill(|room| rustix::io::read(&self.socket, room))
        {
            Ok(0) => Err(DropReason::Closed),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The next complete command.
    pub(super) fn next(&mut self) -> Result<Option<(Header, Vec<u8>)>, DropReason> {
        let mut next = None;
        let mut packed = false;
        self.frames.next(|header, payload| {
            packed |= next.is_some() || header.flags.contains(HeaderFlags::LZ4);
            next = Some((*header, payload.to_vec()));
        })?;
        if packed {
            Err(DropReason::Packed)
        } else {
            Ok(next)
        }
    }

    /// Queues a command, counted for `pair` if it belongs to one, and sends as much as the program
    /// accepts.
    pub(super) fn put(&mut self, pair: Option<Pair>, header: Header, payload: &[u8]) {
        self.queue.put(pair, header, payload);
        // The next round finds any error of the connection.
        let _ = self.queue.send(&self.socket);
    }

    /// Sends waiting commands as far as the program accepts them.
    pub(super) fn send(&mut self) -> Result<(), DropReason> {
        Ok(self.queue.send(&self.socket)?)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "program {pid} of user {}", self.uid),
            None => write!(f, "a container's program of user {}", self.uid),
        }
    }
}
