//! One program at the switch: its connection, who it is, what waits for it.

use std::fmt;
use std::time::{Duration, Instant};

use gangplank_frontend::peer::Peer;
use rustix::event::PollFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use crate::abi::{Command, Header, HeaderFlags};
use crate::carrier::local::{GENERATION, no_node};
use crate::carrier::stream::{FrameError, Frames};

/// So many bytes waiting for a program are too much for others to add to.
const FULL: usize = 1 << 20;

/// Why a program is dropped.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("it has closed the connection")]
    Closed,
    #[error("{0}")]
    Io(#[from] Errno),
    #[error("it breaks the rules: {0}")]
    Rules(#[from] FrameError),
    #[error("it breaks the rules: batches and compression are for nodes")]
    Packed,
    #[error("it breaks the rules: {0} is not for programs to send")]
    Command(Command),
    #[error("it has not read for {0:?}")]
    Slow(Duration),
}

/// The program.
pub(super) struct Program {
    socket: OwnedFd,
    uid: u32,
    /// None if the process is in a pid namespace that the switch does not see into.
    pid: Option<i32>,
    frames: Frames,
    waiting: Vec<u8>,
    /// Bytes of `waiting` that are sent.
    sent: usize,
    /// Since when nothing of what waits could be sent.
    since: Option<Instant>,
    /// It is not read until this one has less waiting.
    paused_for: Option<u64>,
}

impl Program {
    /// Whoever is at the other end of `socket`.
    pub(super) fn new(socket: OwnedFd) -> Result<Self, Errno> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let peer = Peer::of(&socket)?;
        Ok(Self {
            socket,
            uid: peer.user,
            pid: peer.process.and_then(|it| i32::try_from(it.get()).ok()),
            frames: Frames::new(no_node(), no_node(), GENERATION),
            waiting: Vec::new(),
            sent: 0,
            since: None,
            paused_for: None,
        })
    }

    pub(super) fn uid(&self) -> u32 {
        self.uid
    }

    /// Its process, or what stands for one that is not known in headers.
    pub(super) fn pid(&self) -> i32 {
        self.pid.unwrap_or(0)
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// What its connection is waited for.
    pub(super) fn interest(&self) -> PollFlags {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, self.paused_for.is_none());
        interest.set(PollFlags::OUT, self.unsent() > 0);
        interest
    }

    pub(super) fn pause(&mut self, full: u64) {
        self.paused_for = Some(full);
    }

    pub(super) fn unpause(&mut self) {
        self.paused_for = None;
    }

    pub(super) fn paused_for(&self) -> Option<u64> {
        self.paused_for
    }

    /// Whether others may not add to what waits for it.
    pub(super) fn is_full(&self) -> bool {
        self.unsent() > FULL
    }

    /// Since when it has taken nothing of what waits for it.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        self.since
    }

    /// How it stands with it.
    pub(super) fn state(&self) -> String {
        let paused = if self.paused_for.is_some() {
            ", not read until a partner of its reads"
        } else {
            ""
        };
        format!("{} bytes wait for it{paused}", self.unsent())
    }

    fn unsent(&self) -> usize {
        self.waiting.len().saturating_sub(self.sent)
    }

    /// Reads what there is by `events`, unless it is paused. One that goes while it is paused has nothing more to say.
    pub(super) fn read(&mut self, events: PollFlags) -> Result<(), End> {
        if self.paused_for.is_some() {
            let gone = events.intersects(PollFlags::HUP | PollFlags::ERR);
            return if gone { Err(End::Closed) } else { Ok(()) };
        }
        match self
            .frames
            .fill(|room| rustix::io::read(&self.socket, room))
        {
            Ok(0) => Err(End::Closed),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The next command that has come whole.
    pub(super) fn next(&mut self) -> Result<Option<(Header, Vec<u8>)>, End> {
        let mut next = None;
        let mut packed = false;
        self.frames.next(|header, payload| {
            packed |= next.is_some() || header.flags.contains(HeaderFlags::LZ4);
            next = Some((*header, payload.to_vec()));
        })?;
        if packed { Err(End::Packed) } else { Ok(next) }
    }

    /// Puts a command behind what waits, and sends as much as it takes.
    pub(super) fn put(&mut self, header: Header, payload: &[u8]) {
        let header = Header {
            snode: no_node().raw(),
            dnode: no_node().raw(),
            len: i32::try_from(payload.len()).unwrap_or(i32::MAX),
            ..header
        };
        header.encode(GENERATION, &mut self.waiting);
        self.waiting.extend_from_slice(payload);
        // Whatever goes wrong is found when the connection is served next.
        let _ = self.send();
    }

    /// Sends what waits, as far as the program takes it.
    pub(super) fn send(&mut self) -> Result<(), End> {
        while let Some(rest @ [_, ..]) = self.waiting.get(self.sent..) {
            match send(
                &self.socket,
                rest,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => {
                    self.sent += sent;
                    self.since = None;
                }
                Err(Errno::AGAIN) => {
                    self.since.get_or_insert_with(Instant::now);
                    if self.sent > FULL {
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
        self.since = None;
        Ok(())
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
