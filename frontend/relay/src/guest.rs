//! A guest's connection: takes its messages one by one and replies (vhost-user, "Front-end message
//! types").

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use gangplank_service::{error_chain, rate_limited};
use gangplank_vhost_user::Deadline;
use gangplank_vhost_user::message::payload::{self, NO_DESCRIPTOR, VRING_INDEX_MASK};
use gangplank_vhost_user::message::{
    Config, FrontendReq, Inbox, Message, MessageError, ProtocolFeatures, VringState,
};
use log::{debug, error};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::control::{Command, GuestCommand};
use super::daemon::Daemon;
use super::device::ReplaceError;
use super::device::{Device, Fatal, Phase, RequestError};
use super::memory::Memory;
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

/// Bytes of configuration space in one GET_CONFIG at most (vhost-user, "Virtio device config
/// space").
const MAX_CONFIG_LEN: u32 = 256;

/// Messages that the relay takes in a row before it looks at the other descriptors.
const MAX_MESSAGES_IN_A_ROW: usize = 64;

/// Time that a guest has to send the rest of a message, and to take a reply.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the relay closed a guest's connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum GuestError {
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
    Fatal(#[from] Fatal),
    /// poll failed.
    #[error("cannot wait for messages")]
    Wait(#[source] Errno),
}

/// How the relay replies to a message.
enum Answer {
    /// With this payload: the message has a reply of its own.
    Payload(Vec<u8>),
    /// With an acknowledgement, if the guest asks for one.
    Done,
}

/// One guest's connection.
pub(super) struct Guest {
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
    device: Device,
}

impl Guest {
    pub(super) fn new(socket: UnixStream, device: Device) -> Self {
        Self {
            socket,
            inbox: Inbox::new(MAX_DESCRIPTORS),
            begun: None,
            channel: None,
            is_owned: false,
            is_tag_missed: false,
            device,
        }
    }

    /// Serves the guest until it hangs up. `wakeup` is an eventfd, readable after a command was
    /// sent to `commands`.
    pub(super) fn serve(
        &mut self,
        commands: &Receiver<GuestCommand>,
        wakeup: &OwnedFd,
    ) -> Result<(), GuestError> {
        loop {
            let ready = self.wait(wakeup)?;
            if ready.guest && !self.take_messages()? {
                return Ok(());
            }
            if let Some(begun) = self.begun
                && begun.elapsed() > MESSAGE_TIMEOUT
            {
                return Err(MessageError::Late(MESSAGE_TIMEOUT).into());
            }
            // The guest's messages may have brought another daemon since the wait.
            if ready.daemon && self.device.daemon().is_some_and(is_readable) {
                self.device.daemon_hung_up()?;
            }
            if ready.commands {
                // It resets the counter, and fails only if that is 0.
                let _ = rustix::io::read(wakeup, &mut [0; 8]);
                for command in commands.try_iter() {
                    self.run_command(command)?;
                }
            }
            self.device.reply_errors_to_all()?;
            self.device.connect_if_due()?;
        }
    }

    fn wait(&self, wakeup: &OwnedFd) -> Result<Ready, GuestError> {
        let kicks = self.device.kicks();
        let mut awaited = vec![
            PollFd::new(&self.socket, PollFlags::IN),
            PollFd::new(wakeup, PollFlags::IN),
        ];
        let daemon = self.device.daemon();
        awaited.extend(daemon.map(|daemon| PollFd::new(daemon, PollFlags::IN)));
        let kicks = kicks.into_iter();
        awaited.extend(kicks.map(|kick| PollFd::from_borrowed_fd(kick, PollFlags::IN)));
        let message_end = self.begun.map(|begun| begun + MESSAGE_TIMEOUT);
        let until = [self.device.next_attempt(), message_end];
        let until = until.into_iter().flatten().min();
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // One millisecond more, so that the deadline is over when poll returns.
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

    /// Takes up to [`MAX_MESSAGES_IN_A_ROW`] messages. Returns false when the guest has hung up.
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
        // The rest is in the socket, so that the next wait ends at once.
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
                rate_limited!(
                    warn,
                    "message {} of guest {} is refused: {}",
                    message.request,
                    self.device.guest(),
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
            match message
                .reply(payload)
                .send(self.socket.as_fd(), &[], deadline)
            {
                // The next receive returns the hang-up.
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
        let offered = self.offered();
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
            FrontendReq::SET_OWNER => self.is_owned = true,
            FrontendReq::GET_FEATURES => return number(device.offered()),
            FrontendReq::GET_PROTOCOL_FEATURES => return number(offered.bits()),
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

    /// The protocol features to offer. QEMU warns of CONFIG, and crashes in some builds from 7.1 to
    /// 8.0. Unlike the guests that need it, it asks before SET_OWNER.
    fn offered(&self) -> ProtocolFeatures {
        match self.is_owned {
            true => PROTOCOL,
            false => PROTOCOL.difference(ProtocolFeatures::CONFIG),
        }
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
            // It starts the ring, so the daemon gets it together with the ring's addresses.
            Signal::Kick => self.device.change(ring, |ring| {
                ring.set_signal(signal, descriptor);
                true
            })?,
            Signal::Call | Signal::Error => self.device.set_signal(ring, signal, descriptor)?,
        }
        Ok(())
    }

    /// GET_CONFIG: the reply has exactly the size that the guest asks for. User Mode Linux asks for
    /// every size from 1 to 40.
    fn config(&mut self, payload: &[u8]) -> Result<Vec<u8>, MessageFault> {
        let head = payload.get(..size_of::<Config>()).unwrap_or_default();
        let question = payload::decode(head).ok_or(MessageFault::Malformed)?;
        let Config { offset, size, .. } = question;
        if size == 0 || size > MAX_CONFIG_LEN {
            return Err(MessageFault::Malformed);
        }
        let Some(config) = self.device.config().map_err(RequestError::from)? else {
            // User Mode Linux asks for each byte of the tag.
            if !std::mem::replace(&mut self.is_tag_missed, true) {
                rate_limited!(
                    warn,
                    "guest {} asks for the tag, which no daemon tells: set it by --tag",
                    self.device.guest()
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

    fn run_command(&mut self, command: GuestCommand) -> Result<(), GuestError> {
        let device = &mut self.device;
        let done = match &command.command {
            Command::Status => Ok(self.status()),
            Command::StatusJson => Ok(self.status_json().to_string()),
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

    /// The same as [`Guest::status`], with stable names.
    fn status_json(&self) -> serde_json::Value {
        let device = &self.device;
        let (phase, state_bytes) = match &device.phase {
            Phase::Waiting => ("waiting", None),
            Phase::Served(_) => ("served", None),
            Phase::Paused { state, .. } => ("paused", state.as_ref().map(Vec::len)),
            Phase::Lost => ("lost", None),
        };
        let daemon = device.daemon().map(Daemon::path);
        let ready = device.rings.iter().filter(|ring| ring.is_ready()).count();
        let counters = device.counters;
        serde_json::json!({
            "guest": device.guest(),
            "phase": phase,
            "daemon": daemon.map(Path::to_string_lossy),
            "backend": device.backend.to_string_lossy(),
            "saved_state_bytes": state_bytes,
            "rings": ready,
            "daemons": counters.daemons,
            "losses": counters.losses,
            "requests_refused": counters.refused,
        })
    }
}

/// Which descriptors are ready.
struct Ready {
    guest: bool,
    commands: bool,
    daemon: bool,
}

/// Why a message fails.
enum MessageFault {
    Malformed,
    Refused(RequestError),
}

impl From<RequestError> for MessageFault {
    fn from(refusal: RequestError) -> Self {
        Self::Refused(refusal)
    }
}

/// Whether data, or the end, can be read without waiting.
fn is_readable(descriptor: &impl AsFd) -> bool {
    let mut awaited = [PollFd::new(descriptor, PollFlags::IN)];
    matches!(poll(&mut awaited, Some(&Timespec::default())), Ok(1..))
}

fn unknown_request(message: &Message) -> MessageFault {
    let text = format!("the relay knows no message {}", message.request);
    RequestError::Invalid(text).into()
}

fn acknowledgement(message: &Message, code: u64) -> Option<Vec<u8>> {
    let wanted = message.needs_reply();
    wanted.then(|| payload::from_u64(code))
}

/// Serves a guest until its connection ends, and logs how it ended.
pub(super) fn run(guest: &mut Guest, commands: &Receiver<GuestCommand>, wakeup: &OwnedFd) {
    let number = guest.device.guest();
    match guest.serve(commands, wakeup) {
        Ok(()) => rate_limited!(info, "guest {number} has gone"),
        Err(error) => rate_limited!(error, "guest {number} is dropped: {}", error_chain(&error)),
    }
}
