//! A guest's connection: its messages, taken one by one and answered (vhost-user, "Front-end message types").

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use gangplank_service::error_chain;
use gangplank_vhost_user::Deadline;
use gangplank_vhost_user::message::payload::{self, NO_DESCRIPTOR, VRING_INDEX_MASK};
use gangplank_vhost_user::message::{
    Config, FrontendReq, Inbox, Message, MessageError, ProtocolFeatures, VringState,
};
use log::{debug, error, info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::control::{Command, GuestCommand};
use super::device::{Device, Fatal, Phase, RequestError};
use super::memory::Memory;
use super::replacement::ReplaceError;
use super::ring::Signal;

/// Protocol features that the relay offers guests. It never sends a request over the backend
/// channel (BACKEND_REQ), but User Mode Linux (6.1) has no interrupt without one.
const PROTOCOL: ProtocolFeatures = ProtocolFeatures::MQ
    .union(ProtocolFeatures::REPLY_ACK)
    .union(ProtocolFeatures::BACKEND_REQ)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::RESET_DEVICE);

/// Descriptors beside one message of a guest at most: one for each of the 8 regions of a memory
/// table, and room.
const MAX_DESCRIPTORS: usize = 16;

/// Bytes of configuration space that can be asked for at a time (vhost-user, "Device configuration space").
const MAX_CONFIG_LEN: u32 = 256;

/// Messages that are taken in a row, before anything else has its turn.
const MAX_MESSAGES_IN_A_ROW: usize = 64;

/// How long a guest may take for the rest of a message, and to take an answer.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a guest's connection ended other than by the guest hanging up.
#[derive(Debug, thiserror::Error)]
pub(super) enum GuestError {
    /// The guest broke the protocol, or its socket failed.
    #[error("its connection failed")]
    Wire(#[from] MessageError),
    /// The guest sent a message that has another form.
    #[error("it sent a malformed message {0}")]
    Malformed(u32),
    /// A message that has no answer for what has happened.
    #[error("its message {0} cannot be obeyed, and has no answer for that")]
    Unanswerable(u32),
    /// The guest cannot be helped any more.
    #[error(transparent)]
    Fatal(#[from] Fatal),
    /// Nothing can be waited for any more.
    #[error("cannot wait for what comes next")]
    Wait(#[source] Errno),
}

/// What the relay does upon a message.
enum Answer {
    /// Sends this as the answer that the message has of its own.
    Payload(Vec<u8>),
    /// Acknowledges, where that is wanted.
    Done,
}

/// One guest's connection.
pub(super) struct Guest {
    socket: UnixStream,
    inbox: Inbox,
    /// When a message began that is not whole.
    begun: Option<Instant>,
    /// The channel for requests to the guest. User Mode Linux takes its closing for the end of the device, and so it is kept.
    channel: Option<OwnedFd>,
    /// Whether it has been said that the guest asked for a tag that nobody knows.
    is_tag_missed: bool,
    device: Device,
}

impl Guest {
    pub(super) fn new(socket: UnixStream, device: Device) -> Self {
        Self {
            socket,
            inbox: Inbox::new(MAX_DESCRIPTORS),
            begun: None,
            channel: None,
            is_tag_missed: false,
            device,
        }
    }

    /// Serves the guest until it hangs up. `told` is readable when there may be something in `commands`.
    pub(super) fn serve(
        &mut self,
        commands: &Receiver<GuestCommand>,
        told: &OwnedFd,
    ) -> Result<(), GuestError> {
        loop {
            let ready = self.wait(told)?;
            if ready.guest && !self.take_messages()? {
                return Ok(());
            }
            if let Some(begun) = self.begun
                && begun.elapsed() > MESSAGE_TIMEOUT
            {
                return Err(MessageError::Late(MESSAGE_TIMEOUT).into());
            }
            // By the guest's messages there may be another one since.
            if ready.daemon && self.device.daemon().is_some_and(is_readable) {
                self.device.daemon_hung_up()?;
            }
            if ready.commands {
                // Only a counter, to be reset.
                let _ = rustix::io::read(told, &mut [0; 8]);
                for command in commands.try_iter() {
                    self.obey(command)?;
                }
            }
            self.device.reply_errors_to_all()?;
            self.device.connect_if_due()?;
        }
    }

    fn wait(&self, told: &OwnedFd) -> Result<Ready, GuestError> {
        let kicks = self.device.kicks();
        let mut awaited = vec![
            PollFd::new(&self.socket, PollFlags::IN),
            PollFd::new(told, PollFlags::IN),
        ];
        let daemon = self.device.daemon();
        awaited.extend(daemon.map(|daemon| PollFd::new(daemon, PollFlags::IN)));
        let kicks = kicks.into_iter();
        awaited.extend(kicks.map(|kick| PollFd::from_borrowed_fd(kick, PollFlags::IN)));
        let message_end = self.begun.map(|begun| begun + MESSAGE_TIMEOUT);
        let until = [self.device.next_attempt(), message_end];
        let until = until.into_iter().flatten().min();
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // A millisecond more, so that the time has come when the wait is over.
        let left = left.and_then(|left| Timespec::try_from(left + Duration::from_millis(1)).ok());
        match poll(&mut awaited, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(GuestError::Wait(errno)),
        }
        let is_ready = |at: usize| {
            let ready = awaited.get(at).map(|ready| ready.revents());
            ready.is_some_and(|ready| !ready.is_empty())
        };
        Ok(Ready {
            guest: is_ready(0),
            commands: is_ready(1),
            daemon: daemon.is_some() && is_ready(2),
        })
    }

    /// Takes some of what the guest has sent; false when it has hung up.
    fn take_messages(&mut self) -> Result<bool, GuestError> {
        for _ in 0..MAX_MESSAGES_IN_A_ROW {
            match self.inbox.receive(self.socket.as_fd()) {
                Ok(Some(message)) => {
                    self.begun = None;
                    self.take(message)?;
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
        // The rest lies in the socket, and makes the next wait short.
        Ok(true)
    }

    fn take(&mut self, mut message: Message) -> Result<(), GuestError> {
        message.check_request()?;
        let descriptors = std::mem::take(&mut message.descriptors);
        let answer = match self.answer(&message, descriptors) {
            Ok(Answer::Payload(payload)) => Some(payload),
            Ok(Answer::Done) => acknowledgement(&message, 0),
            Err(MessageFault::Malformed) => return Err(GuestError::Malformed(message.request)),
            Err(MessageFault::Refused(RequestError::Fatal(fatal))) => return Err(fatal.into()),
            Err(MessageFault::Refused(refusal)) => {
                warn!(
                    "message {} of guest {} is refused: {}",
                    message.request,
                    self.device.guest(),
                    error_chain(&refusal)
                );
                let refused = acknowledgement(&message, 1);
                if refused.is_none()
                    && message.frontend_request() == Some(FrontendReq::GET_VRING_BASE)
                {
                    // It would be waited for without end, and there is no answer that means no.
                    return Err(GuestError::Unanswerable(message.request));
                }
                refused
            }
        };
        if let Some(payload) = answer {
            let deadline = Deadline::after(MESSAGE_TIMEOUT);
            match message
                .reply(payload)
                .send(self.socket.as_fd(), &[], deadline)
            {
                // It is seen when the next message is waited for.
                Ok(()) | Err(MessageError::HungUp | MessageError::Reset) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn answer(
        &mut self,
        message: &Message,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<Answer, MessageFault> {
        let device = &mut self.device;
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
            FrontendReq::SET_OWNER => {}
            FrontendReq::GET_FEATURES => return number(device.offered()),
            FrontendReq::GET_PROTOCOL_FEATURES => return number(PROTOCOL.bits()),
            FrontendReq::SET_PROTOCOL_FEATURES => {
                let foreign = word()? & !PROTOCOL.bits();
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
            FrontendReq::GET_CONFIG => return Ok(Answer::Payload(self.config(&message.payload)?)),
            FrontendReq::SET_FEATURES => device.set_features(word()?)?,
            FrontendReq::SET_MEM_TABLE => {
                let memory = Memory::decode(&message.payload, descriptors);
                let memory = memory.map_err(|error| RequestError::Invalid(error.to_string()))?;
                device.set_memory(memory)?;
            }
            FrontendReq::SET_VRING_NUM => {
                let (ring, size) = ring_state()?;
                device.change(ring, |ring| ring.set_size(size))?;
            }
            FrontendReq::SET_VRING_BASE => {
                let (ring, base) = ring_state()?;
                device.change(ring, |ring| {
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
                device.change(ring, |ring| {
                    ring.enabled = enabled == 1;
                    enabled <= 1
                })?;
            }
            FrontendReq::GET_VRING_BASE => {
                let (ring, _) = ring_state()?;
                let base = u32::from(device.stop_ring(ring)?);
                return Ok(Answer::Payload(payload::ring_state(ring, base)));
            }
            FrontendReq::SET_VRING_KICK => self.set_signal(Signal::Kick, message, descriptors)?,
            FrontendReq::SET_VRING_CALL => self.set_signal(Signal::Call, message, descriptors)?,
            FrontendReq::SET_VRING_ERR => self.set_signal(Signal::Error, message, descriptors)?,
            FrontendReq::RESET_DEVICE | FrontendReq::RESET_OWNER => device.reset()?,
            _ => return Err(unknown_request(message)),
        }
        Ok(Answer::Done)
    }

    /// SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR.
    fn set_signal(
        &mut self,
        signal: Signal,
        message: &Message,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<(), MessageFault> {
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
        let descriptor = descriptors.pop();
        match signal {
            // It starts the ring, so the daemon gets it with all else.
            Signal::Kick => self.device.change(ring, |ring| {
                ring.set_signal(signal, descriptor);
                true
            })?,
            Signal::Call | Signal::Error => self.device.set_signal(ring, signal, descriptor)?,
        }
        Ok(())
    }

    /// GET_CONFIG: the answer has exactly the size asked for; User Mode Linux asks for every size from 1 to 40.
    fn config(&mut self, payload: &[u8]) -> Result<Vec<u8>, MessageFault> {
        let head = payload.get(..size_of::<Config>()).unwrap_or_default();
        let question = payload::decode(head).ok_or(MessageFault::Malformed)?;
        let Config { offset, size, .. } = question;
        if size == 0 || size > MAX_CONFIG_LEN {
            return Err(MessageFault::Malformed);
        }
        let Some(config) = self.device.config().map_err(RequestError::from)? else {
            // User Mode Linux asks for each byte of it.
            if !std::mem::replace(&mut self.is_tag_missed, true) {
                warn!(
                    "guest {} asks for the tag: no daemon tells it, and none is given by --tag",
                    self.device.guest()
                );
            }
            // An answer without content means that it failed.
            return Ok(Vec::new());
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let size = usize::try_from(size).unwrap_or(0);
        let mut answer = head.to_vec();
        let bytes = config.bytes().iter().copied().chain(std::iter::repeat(0));
        answer.extend(bytes.skip(from.min(config.bytes().len())).take(size));
        Ok(answer)
    }

    fn obey(&mut self, command: GuestCommand) -> Result<(), GuestError> {
        let device = &mut self.device;
        let done = match &command.command {
            Command::Status => Ok(self.status()),
            Command::Pause => device.pause().map(str::to_owned),
            Command::Resume => device.resume().map(str::to_owned),
            Command::Switch { socket, files } => device.switch(socket, *files),
        };
        let done = match done {
            Err(ReplaceError::Fatal(fatal)) => {
                command.answer(Err(error_chain(&fatal)));
                return Err(fatal.into());
            }
            Err(error) => {
                error!(
                    "guest {}: {:?}: {}",
                    command.guest,
                    command.command,
                    error_chain(&error)
                );
                Err(error_chain(&error))
            }
            Ok(text) => {
                debug!("guest {}: {:?}: {text}", command.guest, command.command);
                Ok(text)
            }
        };
        command.answer(done);
        Ok(())
    }

    /// One line for an operator.
    fn status(&self) -> String {
        let device = &self.device;
        let phase = match &device.phase {
            Phase::Waiting => format!("waits for a daemon at {}", device.backend.display()),
            Phase::Served(daemon) => format!("served by {}", daemon.path().display()),
            Phase::Paused { state, .. } => match state {
                Some(state) => format!("paused, {} bytes of state saved", state.len()),
                None => "paused".to_owned(),
            },
            Phase::Lost => "has lost its daemon; requests are refused until it mounts anew".into(),
        };
        let ready = device.rings.iter().filter(|ring| ring.is_ready()).count();
        let counters = device.counters;
        format!(
            "{phase}; rings {ready}, daemons {}, losses {}, requests refused {}",
            counters.daemons, counters.losses, counters.refused
        )
    }
}

/// What a wait found.
struct Ready {
    guest: bool,
    commands: bool,
    daemon: bool,
}

/// Why a message is not obeyed.
enum MessageFault {
    Malformed,
    Refused(RequestError),
}

impl From<RequestError> for MessageFault {
    fn from(refusal: RequestError) -> Self {
        Self::Refused(refusal)
    }
}

/// Whether there is something to be read, or the end, right now.
fn is_readable(descriptor: &impl AsFd) -> bool {
    let mut awaited = [PollFd::new(descriptor, PollFlags::IN)];
    matches!(poll(&mut awaited, Some(&Timespec::default())), Ok(1..))
}

fn unknown_request(message: &Message) -> MessageFault {
    let text = format!("there is no message {}", message.request);
    RequestError::Invalid(text).into()
}

fn acknowledgement(message: &Message, code: u64) -> Option<Vec<u8>> {
    let wanted = message.needs_reply();
    wanted.then(|| payload::from_u64(code))
}

/// Serves a guest to its last message, and says how it ended.
pub(super) fn run(guest: &mut Guest, commands: &Receiver<GuestCommand>, told: &OwnedFd) {
    let number = guest.device.guest();
    match guest.serve(commands, told) {
        Ok(()) => info!("guest {number} has gone"),
        Err(error) => error!("guest {number} is dropped: {}", error_chain(&error)),
    }
}
