//! The relay's connection to a daemon: every message has a deadline, and carries the guest's descriptors as they are.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gangplank_service::connect_timeout::connect_timeout;
use gangplank_vhost_user::client::{CONFIG_LEN, FsConfig};
use gangplank_vhost_user::feature;
use log::warn;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::memory::Memory;
use super::message::{Deadline, Inbox, Message, WireError, request};
use super::ring::{Ring, Signal};

/// Protocol features (vhost-user, "Protocol features") that are taken when they are offered.
mod protocol {
    pub(super) const MQ: u64 = 1 << 0;
    pub(super) const REPLY_ACK: u64 = 1 << 3;
    pub(super) const CONFIG: u64 = 1 << 9;
    pub(super) const RESET_DEVICE: u64 = 1 << 13;
    pub(super) const DEVICE_STATE: u64 = 1 << 19;
    pub(super) const WANTED: u64 = MQ | REPLY_ACK | CONFIG | RESET_DEVICE | DEVICE_STATE;
}

/// Bytes of state that a daemon may have; some hundred for each file that its guest knows.
const MAX_STATE_LEN: usize = 1 << 30;

/// Bytes of state that are carried at a time.
const STATE_CHUNK_LEN: usize = 1 << 16;

/// SET_DEVICE_STATE_FD: no descriptor comes with the answer.
const NO_DESCRIPTOR: u64 = 1 << 8;

/// How long a daemon may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// To take the connection, and to answer each of the first questions on it.
    pub(super) connect: Duration,
    /// To answer a message, but for one that stops a ring: that waits for the requests in it.
    pub(super) answer: Duration,
    /// To save its state, or to load it.
    pub(super) state: Duration,
}

/// Which way state goes (vhost-user, "Device state transfer parameters").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Save = 0,
    Load = 1,
}

/// Why a daemon cannot be had, or does not do what it is told.
#[derive(Debug, thiserror::Error)]
pub(super) enum DaemonError {
    /// Nobody takes connections at the socket.
    #[error("cannot connect to a daemon at {}", daemon.display())]
    Connect {
        daemon: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The message could not be sent, or its answer not be had.
    #[error("{message} to the daemon at {} failed", daemon.display())]
    Wire {
        message: &'static str,
        daemon: PathBuf,
        #[source]
        source: WireError,
    },
    /// The daemon answered that it failed.
    #[error("the daemon at {} refused {message}", daemon.display())]
    Refused {
        message: &'static str,
        daemon: PathBuf,
    },
    /// The daemon answered another question, or nonsense.
    #[error("the daemon at {} answered {message} by something else", daemon.display())]
    WrongReply {
        message: &'static str,
        daemon: PathBuf,
    },
    /// The daemon does not offer what is needed.
    #[error("the daemon at {} does not offer {what}", daemon.display())]
    Lacks { what: String, daemon: PathBuf },
    /// The daemon's state could not be carried.
    #[error("cannot carry the state of the daemon at {}", daemon.display())]
    State {
        daemon: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A daemon that was negotiated with.
#[derive(Debug)]
pub(super) struct Daemon {
    path: PathBuf,
    /// Which file that was: another daemon may make one of the same name.
    place: Option<(u64, u64)>,
    socket: UnixStream,
    inbox: Inbox,
    limits: Limits,
    offered: u64,
    protocol: u64,
    max_rings: Option<u64>,
    config: Option<FsConfig>,
}

type Result<T> = std::result::Result<T, DaemonError>;

impl Daemon {
    /// Connects, and says all that is said once per connection.
    pub(super) fn connect(path: &Path, limits: Limits) -> Result<Self> {
        let socket =
            connect_timeout(path, limits.connect).map_err(|source| DaemonError::Connect {
                daemon: path.to_owned(),
                source,
            })?;
        Self::negotiate(socket, path, limits)
    }

    fn negotiate(socket: UnixStream, path: &Path, limits: Limits) -> Result<Self> {
        let mut daemon = Self {
            path: path.to_owned(),
            place: place(path),
            socket,
            inbox: Inbox::default(),
            // One that serves another guest already may have taken the connection and never say a word.
            limits: Limits {
                answer: limits.connect.min(limits.answer),
                ..limits
            },
            offered: 0,
            protocol: 0,
            max_rings: None,
            config: None,
        };
        daemon.tell("SET_OWNER", request::SET_OWNER, Vec::new(), &[])?;
        daemon.offered = daemon.ask_u64("GET_FEATURES", request::GET_FEATURES)?;
        for (bit, what) in [
            (feature::VERSION_1, "VIRTIO_F_VERSION_1"),
            (feature::PROTOCOL_FEATURES, "VHOST_USER_F_PROTOCOL_FEATURES"),
        ] {
            if daemon.offered & bit == 0 {
                return Err(daemon.lacks(what));
            }
        }
        let offered = daemon.ask_u64("GET_PROTOCOL_FEATURES", request::GET_PROTOCOL_FEATURES)?;
        let agreed = offered & protocol::WANTED;
        daemon.tell(
            "SET_PROTOCOL_FEATURES",
            request::SET_PROTOCOL_FEATURES,
            agreed.to_le_bytes().to_vec(),
            &[],
        )?;
        daemon.protocol = agreed;
        if agreed & protocol::MQ != 0 {
            daemon.max_rings = Some(daemon.ask_u64("GET_QUEUE_NUM", request::GET_QUEUE_NUM)?);
        }
        if agreed & protocol::CONFIG != 0 {
            daemon.config = Some(daemon.ask_config()?);
        }
        daemon.limits = limits;
        Ok(daemon)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is the one that listens at `path`.
    pub(super) fn listens_at(&self, path: &Path) -> bool {
        self.place.is_some() && self.place == place(path)
    }

    /// Virtio feature bits it offers, vhost-user's own among them.
    pub(super) const fn offered(&self) -> u64 {
        self.offered
    }

    /// Rings it takes, the high-priority one included; None if it did not say.
    pub(super) const fn max_rings(&self) -> Option<u64> {
        self.max_rings
    }

    /// The device's configuration; None if it has none to tell.
    pub(super) const fn config(&self) -> Option<&FsConfig> {
        self.config.as_ref()
    }

    /// Whether it can save and load what it knows of the guest's files.
    pub(super) const fn has_state(&self) -> bool {
        self.protocol & protocol::DEVICE_STATE != 0
    }

    /// Whether it can be told to forget its guest.
    pub(super) const fn can_reset(&self) -> bool {
        self.protocol & protocol::RESET_DEVICE != 0
    }

    /// An error for what it does not offer.
    pub(super) fn lacks(&self, what: impl Into<String>) -> DaemonError {
        DaemonError::Lacks {
            what: what.into(),
            daemon: self.path.clone(),
        }
    }

    /// SET_FEATURES.
    pub(super) fn set_features(&mut self, features: u64) -> Result<()> {
        let payload = (features | feature::PROTOCOL_FEATURES).to_le_bytes();
        self.tell("SET_FEATURES", request::SET_FEATURES, payload.to_vec(), &[])
    }

    /// SET_MEM_TABLE.
    pub(super) fn set_memory(&mut self, memory: &Memory) -> Result<()> {
        let (payload, files) = memory.encode();
        self.tell("SET_MEM_TABLE", request::SET_MEM_TABLE, payload, &files)
    }

    /// Hands a ring over and starts it, in the order that every daemon accepts: the addresses need the memory table, and the
    /// kick starts the ring. It is kicked once: buffers may be in it already, and their kick may have been taken.
    pub(super) fn start_ring(&mut self, index: u32, ring: &Ring) -> Result<()> {
        let state = |value: u32| [index.to_le_bytes(), value.to_le_bytes()].concat();
        let size = state(u32::from(ring.size));
        self.tell("SET_VRING_NUM", request::SET_VRING_NUM, size, &[])?;
        let addresses = ring.encode_addresses(index).unwrap_or_default();
        self.tell("SET_VRING_ADDR", request::SET_VRING_ADDR, addresses, &[])?;
        let base = state(u32::from(ring.base));
        self.tell("SET_VRING_BASE", request::SET_VRING_BASE, base, &[])?;
        self.set_signal(index, Signal::Call, ring.call.as_ref())?;
        if ring.error.is_some() {
            self.set_signal(index, Signal::Error, ring.error.as_ref())?;
        }
        self.set_signal(index, Signal::Kick, ring.kick.as_ref())?;
        let enable = state(1);
        self.tell("SET_VRING_ENABLE", request::SET_VRING_ENABLE, enable, &[])?;
        ring.signal_kick();
        Ok(())
    }

    /// SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR.
    pub(super) fn set_signal(
        &mut self,
        index: u32,
        signal: Signal,
        descriptor: Option<&OwnedFd>,
    ) -> Result<()> {
        let (name, message) = match signal {
            Signal::Kick => ("SET_VRING_KICK", request::SET_VRING_KICK),
            Signal::Call => ("SET_VRING_CALL", request::SET_VRING_CALL),
            Signal::Error => ("SET_VRING_ERR", request::SET_VRING_ERR),
        };
        let absent = if descriptor.is_some() {
            0
        } else {
            NO_DESCRIPTOR
        };
        let payload = (u64::from(index) | absent).to_le_bytes().to_vec();
        let beside: Vec<BorrowedFd<'_>> = descriptor.map(AsFd::as_fd).into_iter().collect();
        self.tell(name, message, payload, &beside)
    }

    /// Takes a ring back; where it stopped.
    ///
    /// A daemon answers when the requests in the ring are done, and is waited for without limit while it is connected: as long
    /// as it has them, it writes where the guest's requests are, and nobody else may answer them.
    pub(super) fn stop_ring(&mut self, index: u32) -> Result<u16> {
        let state = [index.to_le_bytes(), [0; 4]].concat();
        let disable = state.clone();
        self.tell_by(
            Self::receive_in_the_end,
            "SET_VRING_ENABLE",
            request::SET_VRING_ENABLE,
            disable,
            &[],
        )?;
        let message = "GET_VRING_BASE";
        let question = Message::new(request::GET_VRING_BASE, state);
        self.send(message, &question, &[])?;
        let answer = self.receive_in_the_end(message, &question)?;
        match answer.ring_state() {
            Some((ring, base)) if ring == index => {
                Ok(u16::try_from(base & 0xffff).unwrap_or_default())
            }
            _ => Err(self.wrong_reply(message)),
        }
    }

    /// RESET_DEVICE.
    pub(super) fn reset(&mut self) -> Result<()> {
        self.tell("RESET_DEVICE", request::RESET_DEVICE, Vec::new(), &[])
    }

    /// What it knows of the guest's files. Its rings have to be stopped.
    pub(super) fn save(&mut self) -> Result<Vec<u8>> {
        let (near, far) = self.pipe()?;
        let near = self.open_state(Direction::Save, far)?.unwrap_or(near);
        let state = read_all(&near, self.limits.state).map_err(|source| self.state(source))?;
        drop(near);
        self.check_state()?;
        Ok(state)
    }

    /// Hands over what another daemon knew.
    pub(super) fn load(&mut self, state: &[u8]) -> Result<()> {
        let (far, near) = self.pipe()?;
        let near = self.open_state(Direction::Load, far)?.unwrap_or(near);
        let written = write_all(&near, state, self.limits.state);
        drop(near);
        // A daemon that finds fault with the state stops reading it; its own answer says that.
        let checked = self.check_state();
        written.map_err(|source| self.state(source))?;
        checked
    }

    fn pipe(&self) -> Result<(OwnedFd, OwnedFd)> {
        pipe_with(PipeFlags::CLOEXEC).map_err(|errno| self.state(errno.into()))
    }

    /// SET_DEVICE_STATE_FD; a descriptor if the daemon wants another than the one it is given.
    fn open_state(&mut self, direction: Direction, far: OwnedFd) -> Result<Option<OwnedFd>> {
        let name = "SET_DEVICE_STATE_FD";
        // Phase 0: the device is stopped.
        let payload = [(direction as u32).to_le_bytes(), [0; 4]].concat();
        let message = Message::new(request::SET_DEVICE_STATE_FD, payload);
        self.send(name, &message, &[far.as_fd()])?;
        drop(far);
        let mut answer = self.receive(name, &message)?;
        match answer.u64() {
            Some(NO_DESCRIPTOR) => Ok(None),
            Some(0) => match answer.descriptors.pop() {
                Some(theirs) => Ok(Some(theirs)),
                None => Err(self.wrong_reply(name)),
            },
            Some(_) => Err(self.refused(name)),
            None => Err(self.wrong_reply(name)),
        }
    }

    fn check_state(&mut self) -> Result<()> {
        let name = "CHECK_DEVICE_STATE";
        let message = Message::new(request::CHECK_DEVICE_STATE, Vec::new());
        self.send(name, &message, &[])?;
        let limit = self.limits.state;
        match self.receive_within(name, &message, limit)?.u64() {
            Some(0) => Ok(()),
            Some(_) => Err(self.refused(name)),
            None => Err(self.wrong_reply(name)),
        }
    }

    /// A message without an answer of its own, acknowledged where that is agreed on.
    fn tell(
        &mut self,
        name: &'static str,
        request: u32,
        payload: Vec<u8>,
        beside: &[BorrowedFd<'_>],
    ) -> Result<()> {
        self.tell_by(Self::receive, name, request, payload, beside)
    }

    /// [`Daemon::tell`], with the acknowledgement waited for by `receive`.
    fn tell_by(
        &mut self,
        receive: impl FnOnce(&mut Self, &'static str, &Message) -> Result<Message>,
        name: &'static str,
        request: u32,
        payload: Vec<u8>,
        beside: &[BorrowedFd<'_>],
    ) -> Result<()> {
        let message = Message::new(request, payload);
        if self.protocol & protocol::REPLY_ACK == 0 {
            return self.send(name, &message, beside);
        }
        let message = message.acknowledged();
        self.send(name, &message, beside)?;
        match receive(self, name, &message)?.u64() {
            Some(0) => Ok(()),
            Some(_) => Err(self.refused(name)),
            None => Err(self.wrong_reply(name)),
        }
    }

    fn ask(&mut self, name: &'static str, request: u32, payload: Vec<u8>) -> Result<Message> {
        let message = Message::new(request, payload);
        self.send(name, &message, &[])?;
        self.receive(name, &message)
    }

    fn ask_u64(&mut self, name: &'static str, request: u32) -> Result<u64> {
        let answer = self.ask(name, request, Vec::new())?.u64();
        answer.ok_or_else(|| self.wrong_reply(name))
    }

    /// GET_CONFIG: offset, size and flags, then as many bytes as are asked for, in question and answer.
    fn ask_config(&mut self) -> Result<FsConfig> {
        let name = "GET_CONFIG";
        let len = u32::try_from(CONFIG_LEN).unwrap_or(0);
        let mut payload = [0, len, 0].map(u32::to_le_bytes).concat();
        let head = payload.len();
        payload.resize(head + CONFIG_LEN, 0);
        let answer = self.ask(name, request::GET_CONFIG, payload)?;
        let bytes = answer.payload.get(head..);
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(FsConfig::new)
            .ok_or_else(|| self.wrong_reply(name))
    }

    fn send(&self, name: &'static str, message: &Message, beside: &[BorrowedFd<'_>]) -> Result<()> {
        let sent = message.send(self.socket.as_fd(), beside, self.limits.answer);
        sent.map_err(|source| self.wire(name, source))
    }

    fn receive(&mut self, name: &'static str, question: &Message) -> Result<Message> {
        self.receive_within(name, question, self.limits.answer)
    }

    /// An answer that comes when requests are done, if the daemon does not hang up before.
    fn receive_in_the_end(&mut self, name: &'static str, question: &Message) -> Result<Message> {
        loop {
            match self.receive(name, question) {
                Err(DaemonError::Wire {
                    source: WireError::Late(limit),
                    ..
                }) => warn!(
                    "the daemon at {} has not answered {name} for {limit:?}: requests are in flight",
                    self.path.display()
                ),
                received => return received,
            }
        }
    }

    fn receive_within(
        &mut self,
        name: &'static str,
        question: &Message,
        limit: Duration,
    ) -> Result<Message> {
        let received = self.inbox.wait(self.socket.as_fd(), limit);
        let answer = received.map_err(|source| self.wire(name, source))?;
        match answer.answers(question.request) {
            true => Ok(answer),
            false => Err(self.wrong_reply(name)),
        }
    }

    fn wire(&self, message: &'static str, source: WireError) -> DaemonError {
        DaemonError::Wire {
            message,
            daemon: self.path.clone(),
            source,
        }
    }

    fn refused(&self, message: &'static str) -> DaemonError {
        DaemonError::Refused {
            message,
            daemon: self.path.clone(),
        }
    }

    fn wrong_reply(&self, message: &'static str) -> DaemonError {
        DaemonError::WrongReply {
            message,
            daemon: self.path.clone(),
        }
    }

    fn state(&self, source: io::Error) -> DaemonError {
        DaemonError::State {
            daemon: self.path.clone(),
            source,
        }
    }
}

impl DaemonError {
    /// Whether the daemon is there no more. Any other may go on with what it has.
    pub(super) const fn is_end(&self) -> bool {
        matches!(
            self,
            Self::Wire {
                source: WireError::HungUp | WireError::Cut | WireError::Socket(_),
                ..
            }
        )
    }
}

impl AsFd for Daemon {
    /// The connection. It becomes readable between two messages only when the daemon has hung up.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Device and inode number of a socket's file.
fn place(path: &Path) -> Option<(u64, u64)> {
    let found = rustix::fs::stat(path).ok()?;
    Some((found.st_dev, found.st_ino))
}

fn read_all(pipe: &OwnedFd, limit: Duration) -> io::Result<Vec<u8>> {
    let until = Deadline::new(limit);
    let mut state = Vec::new();
    let mut part = vec![0; STATE_CHUNK_LEN];
    loop {
        until.wait(pipe, PollFlags::IN).map_err(io::Error::other)?;
        match rustix::io::read(pipe, &mut part) {
            Ok(0) => return Ok(state),
            Ok(len) => {
                state.extend_from_slice(part.get(..len).unwrap_or_default());
                if state.len() > MAX_STATE_LEN {
                    return Err(io::Error::other(format!(
                        "it is longer than {MAX_STATE_LEN} bytes"
                    )));
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn write_all(pipe: &OwnedFd, state: &[u8], limit: Duration) -> io::Result<()> {
    let until = Deadline::new(limit);
    rustix::io::ioctl_fionbio(pipe, true)?;
    let mut written = 0;
    while let Some(rest @ [_, ..]) = state.get(written..) {
        match rustix::io::write(pipe, rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => written += len,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => until.wait(pipe, PollFlags::OUT).map_err(io::Error::other)?,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
