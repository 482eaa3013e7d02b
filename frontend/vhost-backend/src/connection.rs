//! A guest's connection: takes its messages one by one and replies (vhost-user, "Front-end message
//! types").

use std::error::Error;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use gangplank_service::{error_chain, rate_limited};
use gangplank_vhost_user::Deadline;
use gangplank_vhost_user::client::FsConfig;
use gangplank_vhost_user::message::payload::{self, NO_DESCRIPTOR, VRING_INDEX_MASK};
use gangplank_vhost_user::message::{
    Config, FrontendReq, Inbox, Inflight, Message, MessageError, ProtocolFeatures, VringState,
};
use rustix::event::{PollFd, Timespec, poll};
use rustix::io::Errno;

use super::memory::Memory;
use super::ring::{Ring, Signal};

/// Protocol features to offer guests. A device here never sends a request over the backend
/// channel (BACKEND_REQ), but User Mode Linux (6.1) has no interrupt without one.
const PROTOCOL: ProtocolFeatures = ProtocolFeatures::MQ
    .union(ProtocolFeatures::REPLY_ACK)
    .union(ProtocolFeatures::BACKEND_REQ)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::RESET_DEVICE);

/// Descriptors beside one message of a guest at most: one for each of the 8 regions of a memory
/// table, and room.
const MAX_DESCRIPTORS: usize = 16;

/// Bytes of configuration space in one GET_CONFIG at most (vhost-user, "Virtio device config
/// space").
const MAX_CONFIG_LEN: u32 = 256;

/// Messages to take in a row before the device looks at the other descriptors.
const MAX_MESSAGES_IN_A_ROW: usize = 64;

/// Time that a guest has to send the rest of a message, and to take a reply.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a guest's connection was closed.
#[derive(Debug, thiserror::Error)]
pub enum GuestError<F: Error + 'static> {
    /// The guest broke the protocol, or its socket failed.
    #[error("its connection failed")]
    Wire(#[from] MessageError),
    /// The payload does not have the form of its message.
    #[error("it sent a malformed message {0}")]
    Malformed(u32),
    /// The message failed, and its reply cannot say so.
    #[error("its message {0} failed, and the reply to that message cannot say so")]
    Unanswerable(u32),
    /// The device cannot go on.
    #[error(transparent)]
    Fatal(F),
    /// poll failed.
    #[error("cannot wait for messages")]
    Wait(#[source] Errno),
}

/// Why a guest's message, or an operator's command, is refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError<F: Error + 'static> {
    /// The process that serves the device refused it.
    #[error(transparent)]
    Refused(Box<dyn Error + Send + Sync>),
    /// The protocol does not allow it.
    #[error("{0}")]
    Invalid(String),
    /// The device cannot go on.
    #[error(transparent)]
    Fatal(F),
}

impl<F: Error + 'static> RequestError<F> {
    /// The device has `count` rings, and none of the number `index`.
    #[must_use]
    pub fn no_ring(index: u32, count: usize) -> Self {
        Self::Invalid(format!(
            "it names ring {index}, but the device has {count} rings"
        ))
    }

    /// A part of ring `index` is outside of the memory table.
    #[must_use]
    pub fn outside_memory(index: u32) -> Self {
        Self::Invalid(format!("ring {index} does not lie in the guest's memory"))
    }

    /// The message would set ring `index` to a value that the protocol does not have.
    #[must_use]
    pub fn value_not_allowed(index: u32) -> Self {
        Self::Invalid(format!(
            "it sets ring {index} to a value that is not allowed"
        ))
    }
}

/// A device that a guest sets up by its messages. The methods are named after them.
pub trait Device {
    /// Why the device cannot go on, so that the guest's connection is closed.
    type Fatal: Error + 'static;

    /// The guest's number, for logs.
    fn guest(&self) -> u64;

    /// GET_FEATURES.
    fn offered(&self) -> u64;

    /// The device's request queues. The number does not change after the first call.
    fn num_request_queues(&mut self) -> u16;

    /// The device's configuration; None if its tag is not known.
    ///
    /// # Errors
    /// The device cannot go on.
    fn config(&mut self) -> Result<Option<FsConfig>, RequestError<Self::Fatal>>;

    /// SET_FEATURES.
    ///
    /// # Errors
    /// The features are not possible.
    fn set_features(&mut self, features: u64) -> Result<(), RequestError<Self::Fatal>>;

    /// SET_MEM_TABLE.
    ///
    /// # Errors
    /// The memory cannot be used.
    fn set_memory(&mut self, memory: Memory) -> Result<(), RequestError<Self::Fatal>>;

    /// SET_VRING_ADDR of ring `index`, with the message's payload.
    ///
    /// # Errors
    /// The ring does not lie in the guest's memory.
    fn set_addresses(
        &mut self,
        index: u32,
        payload: &[u8],
    ) -> Result<(), RequestError<Self::Fatal>>;

    /// Changes ring `index`, on which nobody may work meanwhile. `change` runs once, and returns
    /// whether its value is allowed.
    ///
    /// # Errors
    /// There is no such ring, or the value is not allowed.
    fn change(
        &mut self,
        index: u32,
        change: &mut dyn FnMut(&mut Ring) -> bool,
    ) -> Result<(), RequestError<Self::Fatal>>;

    /// SET_VRING_CALL and SET_VRING_ERR.
    ///
    /// # Errors
    /// There is no such ring.
    fn set_signal(
        &mut self,
        index: u32,
        signal: Signal,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), RequestError<Self::Fatal>>;

    /// GET_VRING_BASE: stops the ring, and returns where it stopped.
    ///
    /// # Errors
    /// There is no such ring, or it cannot be stopped.
    fn stop_ring(&mut self, index: u32) -> Result<u16, RequestError<Self::Fatal>>;

    /// RESET_DEVICE.
    ///
    /// # Errors
    /// The device cannot go on.
    fn reset(&mut self) -> Result<(), RequestError<Self::Fatal>>;

    /// Whether the device notes its requests in flight in memory that the frontend keeps for the
    /// process that comes after this one (VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD).
    fn has_inflight(&self) -> bool {
        false
    }

    /// GET_INFLIGHT_FD: new memory for this number of rings with this number of descriptors each,
    /// and its length.
    ///
    /// # Errors
    /// There is no memory.
    fn new_inflight(
        &mut self,
        _rings: u16,
        _ring_size: u16,
    ) -> Result<(OwnedFd, u64), RequestError<Self::Fatal>> {
        Err(RequestError::Invalid(
            "it keeps no requests in flight".to_owned(),
        ))
    }

    /// SET_INFLIGHT_FD: the memory that this process, or one before it, has made.
    ///
    /// # Errors
    /// The memory cannot be used.
    fn set_inflight(
        &mut self,
        _file: OwnedFd,
        _description: Inflight,
    ) -> Result<(), RequestError<Self::Fatal>> {
        Err(RequestError::Invalid(
            "it keeps no requests in flight".to_owned(),
        ))
    }
}

/// How to reply to a message.
enum Answer {
    /// With this payload: the message has a reply of its own.
    Payload(Vec<u8>),
    /// With this payload, and a descriptor.
    File(Vec<u8>, OwnedFd),
    /// With an acknowledgement, if the guest asks for one.
    Done,
}

/// One guest's connection.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    inbox: Inbox,
    /// When the first byte came of a message that is not whole.
    begun: Option<Instant>,
    /// The backend channel (SET_BACKEND_REQ_FD). It stays open because User Mode Linux takes its
    /// closing for the end of the device.
    channel: Option<OwnedFd>,
    /// SET_OWNER was seen.
    is_owned: bool,
    /// Whether the log has told that the guest asks for a tag that is unknown.
    is_tag_missed: bool,
}

impl AsFd for Connection {
    /// Readable when a message or the guest's end has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Connection {
    /// The connection of a guest that has sent nothing yet.
    #[must_use]
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            inbox: Inbox::new(MAX_DESCRIPTORS),
            begun: None,
            channel: None,
            is_owned: false,
            is_tag_missed: false,
        }
    }

    /// Waits until one of `awaited` is ready, `until` has come, or the rest of a message is late.
    /// The connection is awaited only if it is one of `awaited`. A signal ends the wait.
    ///
    /// # Errors
    /// [`GuestError::Wait`].
    pub fn wait<F: Error>(
        &self,
        awaited: &mut [PollFd<'_>],
        until: Option<Instant>,
    ) -> Result<(), GuestError<F>> {
        let message_end = self.begun.map(|begun| begun + MESSAGE_TIMEOUT);
        let until = [until, message_end].into_iter().flatten().min();
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // One millisecond more, so that the time has come when poll returns.
        let left = left.and_then(|left| Timespec::try_from(left + Duration::from_millis(1)).ok());
        match poll(awaited, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(GuestError::Wait(errno)),
        }
    }

    /// Fails if the rest of a message is late.
    ///
    /// # Errors
    /// [`MessageError::Late`].
    pub fn check_pace(&self) -> Result<(), MessageError> {
        match self.begun {
            Some(begun) if begun.elapsed() > MESSAGE_TIMEOUT => {
                Err(MessageError::Late(MESSAGE_TIMEOUT))
            }
            _ => Ok(()),
        }
    }

    /// Takes up to 64 messages. Returns false when the guest has hung up.
    ///
    /// # Errors
    /// The connection is to be closed.
    pub fn take_messages<D: Device>(
        &mut self,
        device: &mut D,
    ) -> Result<bool, GuestError<D::Fatal>> {
        for _ in 0..MAX_MESSAGES_IN_A_ROW {
            match self.inbox.receive(self.socket.as_fd()) {
                Ok(Some(message)) => {
                    self.begun = None;
                    self.take(device, message)?;
                }
                Ok(None) => {
                    let begun = self.begun.unwrap_or_else(Instant::now);
                    self.begun = self.inbox.has_begun().then_some(begun);
                    return Ok(true);
                }
                Err(MessageError::HungUp | MessageError::Reset) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        // The rest is in the socket, so that the next wait ends at once.
        Ok(true)
    }

    fn take<D: Device>(
        &mut self,
        device: &mut D,
        mut message: Message,
    ) -> Result<(), GuestError<D::Fatal>> {
        message.check_request()?;
        let descriptors = std::mem::take(&mut message.descriptors);
        let mut file = None;
        let answer = match self.answer(device, &message, descriptors) {
            Ok(Answer::Payload(payload)) => Some(payload),
            Ok(Answer::File(payload, descriptor)) => {
                file = Some(descriptor);
                Some(payload)
            }
            Ok(Answer::Done) => acknowledgement(&message, 0),
            Err(MessageFault::Malformed) => return Err(GuestError::Malformed(message.request)),
            Err(MessageFault::Refused(RequestError::Fatal(fatal))) => {
                return Err(GuestError::Fatal(fatal));
            }
            Err(MessageFault::Refused(refusal)) => {
                rate_limited!(
                    warn,
                    "message {} of guest {} is refused: {}",
                    message.request,
                    device.guest(),
                    error_chain(&refusal)
                );
                let refused = acknowledgement(&message, 1);
                if refused.is_none()
                    && message.frontend_request() == Some(FrontendReq::GET_VRING_BASE)
                {
                    // The guest would wait for the reply without end.
                    return Err(GuestError::Unanswerable(message.request));
                }
                refused
            }
        };
        if let Some(payload) = answer {
            let deadline = Deadline::after(MESSAGE_TIMEOUT);
            let beside: Vec<BorrowedFd<'_>> = file.iter().map(AsFd::as_fd).collect();
            match message
                .reply(payload)
                .send(self.socket.as_fd(), &beside, deadline)
            {
                // The next receive returns the hang-up.
                Ok(()) | Err(MessageError::HungUp | MessageError::Reset) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn answer<D: Device>(
        &mut self,
        device: &mut D,
        message: &Message,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<Answer, MessageFault<D::Fatal>> {
        let offered = self.offered(device);
        let number = |number: u64| Ok(Answer::Payload(payload::from_u64(number)));
        let ring_state = || {
            let state = message.payload_as::<VringState>();
            state
                .map(|state| (state.index, state.num))
                .ok_or(MessageFault::Malformed)
        };
        let word = || message.u64().ok_or(MessageFault::Malformed);
        let Some(request) = message.frontend_request() else {
            return Err(unknown_request(message));
        };
        match request {
            FrontendReq::SET_OWNER => self.is_owned = true,
            FrontendReq::GET_FEATURES => return number(device.offered()),
            FrontendReq::GET_PROTOCOL_FEATURES => return number(offered.bits()),
            FrontendReq::SET_PROTOCOL_FEATURES => {
                let foreign = word()? & !protocol(device).bits();
                if foreign != 0 {
                    let text = format!("it takes the protocol features {foreign:#x}");
                    return Err(RequestError::Invalid(text).into());
                }
            }
            FrontendReq::GET_QUEUE_NUM => {
                return number(u64::from(device.num_request_queues()) + 1);
            }
            FrontendReq::SET_BACKEND_REQ_FD => match descriptors.pop() {
                Some(channel) => self.channel = Some(channel),
                None => return Err(MessageFault::Malformed),
            },
            FrontendReq::GET_CONFIG => {
                return Ok(Answer::Payload(self.config(device, &message.payload)?));
            }
            FrontendReq::SET_FEATURES => device.set_features(word()?)?,
            FrontendReq::SET_MEM_TABLE => {
                let memory = Memory::decode(&message.payload, descriptors);
                let memory = memory.map_err(|error| RequestError::Invalid(error.to_string()))?;
                device.set_memory(memory)?;
            }
            FrontendReq::SET_VRING_NUM => {
                let (ring, size) = ring_state()?;
                device.change(ring, &mut |ring| ring.set_size(size))?;
            }
            FrontendReq::SET_VRING_BASE => {
                let (ring, base) = ring_state()?;
                device.change(ring, &mut |ring| {
                    let base = u16::try_from(base);
                    ring.base = base.unwrap_or(ring.base);
                    base.is_ok()
                })?;
            }
            FrontendReq::SET_VRING_ADDR => {
                let ring = message.payload.first_chunk();
                let ring = ring.ok_or(MessageFault::Malformed)?;
                device.set_addresses(u32::from_ne_bytes(*ring), &message.payload)?;
            }
            FrontendReq::SET_VRING_ENABLE => {
                let (ring, enabled) = ring_state()?;
                device.change(ring, &mut |ring| {
                    ring.enabled = enabled == 1;
                    enabled <= 1
                })?;
            }
            FrontendReq::GET_VRING_BASE => {
                let (ring, _) = ring_state()?;
                let base = u32::from(device.stop_ring(ring)?);
                return Ok(Answer::Payload(payload::ring_state(ring, base)));
            }
            FrontendReq::SET_VRING_KICK => set_signal(device, Signal::Kick, message, descriptors)?,
            FrontendReq::SET_VRING_CALL => set_signal(device, Signal::Call, message, descriptors)?,
            FrontendReq::SET_VRING_ERR => set_signal(device, Signal::Error, message, descriptors)?,
            FrontendReq::GET_INFLIGHT_FD if device.has_inflight() => {
                let asked: Inflight =
                    payload::decode(&message.payload).ok_or(MessageFault::Malformed)?;
                let (rings, ring_size) = (asked.num_queues, asked.queue_size);
                let (file, len) = device.new_inflight(rings, ring_size)?;
                let description = Inflight::new(len, 0, rings, ring_size);
                return Ok(Answer::File(payload::encode(&description), file));
            }
            FrontendReq::SET_INFLIGHT_FD if device.has_inflight() => {
                let description = payload::decode(&message.payload);
                match (description, descriptors.pop()) {
                    (Some(description), Some(file)) => device.set_inflight(file, description)?,
                    _ => return Err(MessageFault::Malformed),
                }
            }
            FrontendReq::RESET_DEVICE | FrontendReq::RESET_OWNER => device.reset()?,
            _ => return Err(unknown_request(message)),
        }
        Ok(Answer::Done)
    }

    /// The protocol features to offer. QEMU warns of CONFIG, and crashes in some builds from 7.1 to
    /// 8.0. Unlike the guests that need it, it asks before SET_OWNER.
    fn offered<D: Device>(&self, device: &D) -> ProtocolFeatures {
        let all = protocol(device);
        match self.is_owned {
            true => all,
            false => all.difference(ProtocolFeatures::CONFIG),
        }
    }

    /// GET_CONFIG: the reply has exactly the size that the guest asks for. User Mode Linux asks for
    /// every size from 1 to 40.
    fn config<D: Device>(
        &mut self,
        device: &mut D,
        payload: &[u8],
    ) -> Result<Vec<u8>, MessageFault<D::Fatal>> {
        let head = payload.get(..size_of::<Config>()).unwrap_or_default();
        let question = payload::decode(head).ok_or(MessageFault::Malformed)?;
        let Config { offset, size, .. } = question;
        if size == 0 || size > MAX_CONFIG_LEN {
            return Err(MessageFault::Malformed);
        }
        let Some(config) = device.config()? else {
            // User Mode Linux asks for each byte of the tag.
            if !std::mem::replace(&mut self.is_tag_missed, true) {
                rate_limited!(
                    warn,
                    "guest {} asks for the tag, which no daemon tells: set it by --tag",
                    device.guest()
                );
            }
            // A reply without payload means failure.
            return Ok(Vec::new());
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let size = usize::try_from(size).unwrap_or(0);
        let mut answer = head.to_vec();
        let bytes = config.bytes().iter().copied().chain(std::iter::repeat(0));
        answer.extend(bytes.skip(from.min(config.bytes().len())).take(size));
        Ok(answer)
    }
}

/// The protocol features of a device's connection.
fn protocol<D: Device>(device: &D) -> ProtocolFeatures {
    match device.has_inflight() {
        true => PROTOCOL.union(ProtocolFeatures::INFLIGHT_SHMFD),
        false => PROTOCOL,
    }
}

/// SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR.
fn set_signal<D: Device>(
    device: &mut D,
    signal: Signal,
    message: &Message,
    mut descriptors: Vec<OwnedFd>,
) -> Result<(), MessageFault<D::Fatal>> {
    let word = message.u64().ok_or(MessageFault::Malformed)?;
    let expected = usize::from(word & NO_DESCRIPTOR == 0);
    if descriptors.len() != expected {
        let text = format!(
            "message {} has {} descriptors in place of {expected}",
            message.request,
            descriptors.len()
        );
        return Err(RequestError::Invalid(text).into());
    }
    let ring = u32::try_from(word & VRING_INDEX_MASK).unwrap_or(u32::MAX);
    let mut descriptor = descriptors.pop();
    match signal {
        // It starts the ring, so the daemon gets it together with the ring's addresses.
        Signal::Kick => device.change(ring, &mut |ring| {
            ring.set_signal(signal, descriptor.take());
            true
        })?,
        Signal::Call | Signal::Error => device.set_signal(ring, signal, descriptor)?,
    }
    Ok(())
}

/// Why a message fails.
enum MessageFault<F: Error + 'static> {
    Malformed,
    Refused(RequestError<F>),
}

impl<F: Error + 'static> From<RequestError<F>> for MessageFault<F> {
    fn from(refusal: RequestError<F>) -> Self {
        Self::Refused(refusal)
    }
}

fn unknown_request<F: Error>(message: &Message) -> MessageFault<F> {
    let text = format!("the device knows no message {}", message.request);
    RequestError::Invalid(text).into()
}

fn acknowledgement(message: &Message, code: u64) -> Option<Vec<u8>> {
    let wanted = message.needs_reply();
    wanted.then(|| payload::from_u64(code))
}
