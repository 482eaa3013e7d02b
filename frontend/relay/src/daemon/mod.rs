//! The relay's connection to a daemon. Every request has a deadline, and the guest's descriptors go
//! to the daemon as they are.

mod device_state;
mod error;
mod inflight;
mod probe;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gangplank_service::connect_timeout::connect_timeout;
use gangplank_service::rate_limited;
use gangplank_vhost_backend::{Memory, Ring, Signal};
use gangplank_vhost_user::client::{CONFIG_LEN, FsConfig};
use gangplank_vhost_user::connection::{CallError, Connection, check_acknowledgement};
use gangplank_vhost_user::feature;
use gangplank_vhost_user::message::payload::{self, NO_DESCRIPTOR};
use gangplank_vhost_user::message::{
    Config, ConfigFlags, FrontendReq, Message, MessageError, ProtocolFeatures, VringState,
    request_name,
};

pub(super) use self::error::DaemonError;
pub(super) use self::inflight::InflightMemory;
pub(super) use self::probe::listens_at;

/// Protocol features that the relay takes where the daemon offers them.
const WANTED: ProtocolFeatures = ProtocolFeatures::MQ
    .union(ProtocolFeatures::REPLY_ACK)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::RESET_DEVICE)
    .union(ProtocolFeatures::DEVICE_STATE);

/// How long a daemon may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// To take the connection, and to reply for the first time.
    pub(super) connect: Duration,
    /// To reply to any other request. A request that stops a ring may take longer, until the
    /// requests in the ring are complete.
    pub(super) answer: Duration,
    /// To save its state, or to load it.
    pub(super) state: Duration,
}

/// A daemon with which the relay has negotiated.
#[derive(Debug)]
pub(super) struct Daemon {
    path: PathBuf,
    /// The socket's file: another daemon may make one of the same name.
    socket_file: Option<SocketFile>,
    connection: Connection,
    limits: Limits,
    offered: u64,
    protocol: ProtocolFeatures,
    max_rings: Option<u64>,
    config: Option<FsConfig>,
}

/// Device and inode number of a socket's file.
type SocketFile = (u64, u64);

type Result<T> = std::result::Result<T, DaemonError>;

impl Daemon {
    /// Connects, and negotiates all that is negotiated once per connection.
    pub(super) fn connect(path: &Path, limits: Limits) -> Result<Self> {
        Self::connect_with(path, limits, WANTED)
    }

    /// [`Self::connect`]. It notes its requests in flight, if it can ([`Self::has_inflight`]).
    pub(super) fn connect_with_inflight(path: &Path, limits: Limits) -> Result<Self> {
        let wanted = WANTED.union(ProtocolFeatures::INFLIGHT_SHMFD);
        Self::connect_with(path, limits, wanted)
    }

    fn connect_with(path: &Path, limits: Limits, wanted: ProtocolFeatures) -> Result<Self> {
        let socket =
            connect_timeout(path, limits.connect).map_err(|source| DaemonError::Connect {
                daemon: path.to_owned(),
                source,
            })?;
        Self::negotiate(socket, path, limits, wanted)
    }

    fn negotiate(
        socket: UnixStream,
        path: &Path,
        limits: Limits,
        wanted: ProtocolFeatures,
    ) -> Result<Self> {
        let mut daemon = Self {
            path: path.to_owned(),
            socket_file: socket_file(path),
            connection: Connection::new(socket),
            // The kernel takes the connection for a daemon that serves another guest and may never
            // accept it.
            limits: Limits {
                answer: limits.connect.min(limits.answer),
                ..limits
            },
            offered: 0,
            protocol: ProtocolFeatures::empty(),
            max_rings: None,
            config: None,
        };
        daemon.tell(FrontendReq::SET_OWNER, Vec::new(), &[])?;
        daemon.offered = daemon.ask_u64(FrontendReq::GET_FEATURES)?;
        // It has accepted the connection. What it does not know itself it may have to ask for.
        daemon.limits = limits;
        for (bit, what) in [
            (feature::VERSION_1, "VIRTIO_F_VERSION_1"),
            (feature::PROTOCOL_FEATURES, "VHOST_USER_F_PROTOCOL_FEATURES"),
        ] {
            if daemon.offered & bit == 0 {
                return Err(daemon.lacks(what));
            }
        }
        let offered = daemon.ask_u64(FrontendReq::GET_PROTOCOL_FEATURES)?;
        let agreed = ProtocolFeatures::from_bits_truncate(offered) & wanted;
        let payload = payload::from_u64(agreed.bits());
        daemon.tell(FrontendReq::SET_PROTOCOL_FEATURES, payload, &[])?;
        daemon.protocol = agreed;
        if agreed.contains(ProtocolFeatures::MQ) {
            daemon.max_rings = Some(daemon.ask_u64(FrontendReq::GET_QUEUE_NUM)?);
        }
        if agreed.contains(ProtocolFeatures::CONFIG) {
            daemon.config = Some(daemon.ask_config()?);
        }
        Ok(daemon)
    }

    /// The path of its socket.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is the daemon that listens at `path`.
    pub(super) fn listens_at(&self, path: &Path) -> bool {
        self.socket_file.is_some() && self.socket_file == socket_file(path)
    }

    /// Virtio feature bits that it offers, vhost-user's own among them.
    pub(super) const fn offered(&self) -> u64 {
        self.offered
    }

    /// Rings that it takes, the high-priority one included; None if it did not tell.
    pub(super) const fn max_rings(&self) -> Option<u64> {
        self.max_rings
    }

    /// The device's configuration; None if it does not offer one.
    pub(super) const fn config(&self) -> Option<&FsConfig> {
        self.config.as_ref()
    }

    /// Whether it can save and load what it knows of the guest's files.
    pub(super) const fn has_state(&self) -> bool {
        self.protocol.contains(ProtocolFeatures::DEVICE_STATE)
    }

    /// Whether it can forget its guest.
    pub(super) const fn can_reset(&self) -> bool {
        self.protocol.contains(ProtocolFeatures::RESET_DEVICE)
    }

    /// An error for a feature that it does not offer.
    pub(super) fn lacks(&self, what: impl Into<String>) -> DaemonError {
        DaemonError::Lacks {
            what: what.into(),
            daemon: self.path.clone(),
        }
    }

    /// SET_FEATURES.
    pub(super) fn set_features(&mut self, features: u64) -> Result<()> {
        let payload = payload::from_u64(features | feature::PROTOCOL_FEATURES);
        self.tell(FrontendReq::SET_FEATURES, payload, &[])
    }

    /// SET_MEM_TABLE.
    pub(super) fn set_memory(&mut self, memory: &Memory) -> Result<()> {
        let (payload, files) = memory.encode();
        self.tell(FrontendReq::SET_MEM_TABLE, payload, &files)
    }

    /// Hands a ring over and starts it, in the order that every daemon accepts: the addresses need
    /// the memory table, and the kick descriptor starts the ring. Then kicks it once, because
    /// buffers may be in it whose kick another reader has taken.
    pub(super) fn start_ring(&mut self, index: u32, ring: &Ring) -> Result<()> {
        let size = payload::ring_state(index, u32::from(ring.size));
        self.tell(FrontendReq::SET_VRING_NUM, size, &[])?;
        let addresses = ring.encode_addresses(index).unwrap_or_default();
        self.tell(FrontendReq::SET_VRING_ADDR, addresses, &[])?;
        let base = payload::ring_state(index, u32::from(ring.base));
        self.tell(FrontendReq::SET_VRING_BASE, base, &[])?;
        self.set_signal(index, Signal::Call, ring.call.as_ref())?;
        if ring.error.is_some() {
            self.set_signal(index, Signal::Error, ring.error.as_ref())?;
        }
        self.set_signal(index, Signal::Kick, ring.kick.as_ref())?;
        let enable = payload::ring_state(index, 1);
        self.tell(FrontendReq::SET_VRING_ENABLE, enable, &[])?;
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
        let request = match signal {
            Signal::Kick => FrontendReq::SET_VRING_KICK,
            Signal::Call => FrontendReq::SET_VRING_CALL,
            Signal::Error => FrontendReq::SET_VRING_ERR,
        };
        let absent = match descriptor {
            Some(_) => 0,
            None => NO_DESCRIPTOR,
        };
        let payload = payload::from_u64(u64::from(index) | absent);
        let beside: Vec<BorrowedFd<'_>> = descriptor.map(AsFd::as_fd).into_iter().collect();
        self.tell(request, payload, &beside)
    }

    /// Disables a ring: the daemon takes no further request from it once it has left its loop over
    /// the ring. As [`Self::stop_ring`], this waits as long as the daemon is connected.
    pub(super) fn disable_ring(&mut self, index: u32) -> Result<()> {
        let state = payload::ring_state(index, 0);
        let disable = FrontendReq::SET_VRING_ENABLE;
        self.tell_and(Self::receive_without_limit, disable, state, &[])
    }

    /// Stops a ring. Returns the index of the next available entry that the daemon would take.
    ///
    /// A daemon replies when the requests in the ring are complete. The relay waits for that as
    /// long as the daemon is connected: until then the daemon writes to the buffers of the guest's
    /// requests, and no other process may reply to them.
    pub(super) fn stop_ring(&mut self, index: u32) -> Result<u16> {
        let request = FrontendReq::GET_VRING_BASE;
        let message = Message::new(request, payload::ring_state(index, 0));
        self.send(request, &message, &[])?;
        let reply = self.receive_without_limit(request, &message)?;
        match reply.payload_as::<VringState>() {
            Some(state) if { state.index } == index => {
                Ok(u16::try_from(state.num & 0xffff).unwrap_or_default())
            }
            _ => Err(self.wrong_reply(request)),
        }
    }

    /// RESET_DEVICE.
    pub(super) fn reset(&mut self) -> Result<()> {
        self.tell(FrontendReq::RESET_DEVICE, Vec::new(), &[])
    }

    /// Sends a request that has no reply of its own, and waits for the acknowledgement if that was
    /// agreed on.
    fn tell(
        &mut self,
        request: FrontendReq,
        payload: Vec<u8>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<()> {
        self.tell_and(Self::receive, request, payload, descriptors)
    }

    /// [`Daemon::tell`], with `receive` to wait for the acknowledgement.
    fn tell_and(
        &mut self,
        receive: impl FnOnce(&mut Self, FrontendReq, &Message) -> Result<Message>,
        request: FrontendReq,
        payload: Vec<u8>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<()> {
        let message = Message::new(request, payload);
        if !self.protocol.contains(ProtocolFeatures::REPLY_ACK) {
            return self.send(request, &message, descriptors);
        }
        let message = message.with_need_reply();
        self.send(request, &message, descriptors)?;
        let reply = receive(self, request, &message)?;
        check_acknowledgement(&reply).map_err(|error| self.failed(request, error))
    }

    fn ask(&mut self, request: FrontendReq, payload: Vec<u8>) -> Result<Message> {
        let message = Message::new(request, payload);
        self.send(request, &message, &[])?;
        self.receive(request, &message)
    }

    fn ask_u64(&mut self, request: FrontendReq) -> Result<u64> {
        let number = self.ask(request, Vec::new())?.u64();
        number.ok_or_else(|| self.wrong_reply(request))
    }

    /// GET_CONFIG: offset, size and flags, then the bytes; request and reply have the same form.
    fn ask_config(&mut self) -> Result<FsConfig> {
        let request = FrontendReq::GET_CONFIG;
        let len = u32::try_from(CONFIG_LEN).unwrap_or(0);
        let mut payload = payload::encode(&Config::new(0, len, ConfigFlags::empty()));
        let head = payload.len();
        payload.resize(head + CONFIG_LEN, 0);
        let reply = self.ask(request, payload)?;
        let bytes = reply.payload.get(head..);
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(FsConfig::new)
            .ok_or_else(|| self.wrong_reply(request))
    }

    fn send(
        &self,
        request: FrontendReq,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<()> {
        let sent = self
            .connection
            .send(message, descriptors, self.limits.answer);
        sent.map_err(|error| self.failed(request, error.into()))
    }

    fn receive(&mut self, request: FrontendReq, message: &Message) -> Result<Message> {
        self.receive_within(request, message, self.limits.answer)
    }

    /// Waits until the daemon replies or hangs up, and logs each time that the limit passes.
    fn receive_without_limit(
        &mut self,
        request: FrontendReq,
        message: &Message,
    ) -> Result<Message> {
        loop {
            match self.receive(request, message) {
                Err(DaemonError::Wire {
                    source: MessageError::Late(limit),
                    ..
                }) => rate_limited!(
                    warn,
                    "the daemon at {} has not answered {} for {limit:?}: requests are in flight",
                    self.path.display(),
                    request_name(request)
                ),
                received => return received,
            }
        }
    }

    fn receive_within(
        &mut self,
        request: FrontendReq,
        message: &Message,
        limit: Duration,
    ) -> Result<Message> {
        let reply = self.connection.reply(message, limit);
        reply.map_err(|error| self.failed(request, error))
    }

    fn failed(&self, request: FrontendReq, error: CallError) -> DaemonError {
        match error {
            CallError::Message(source) => DaemonError::Wire {
                message: request_name(request),
                daemon: self.path.clone(),
                source,
            },
            CallError::Refused => self.refused(request),
            CallError::WrongReply { .. } => self.wrong_reply(request),
        }
    }

    fn refused(&self, request: FrontendReq) -> DaemonError {
        DaemonError::Refused {
            message: request_name(request),
            daemon: self.path.clone(),
        }
    }

    fn wrong_reply(&self, request: FrontendReq) -> DaemonError {
        DaemonError::WrongReply {
            message: request_name(request),
            daemon: self.path.clone(),
        }
    }
}

impl AsFd for Daemon {
    /// The connection. It becomes readable between two requests only when the daemon has hung up.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

fn socket_file(path: &Path) -> Option<SocketFile> {
    let found = rustix::fs::stat(path).ok()?;
    Some((found.st_dev, found.st_ino))
}
