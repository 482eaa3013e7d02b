//! One guest's session: its driver, and its requests by slot.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gangplank_driver::{Driver, RawReply, RawRequest};
use gangplank_fuse::{
    Dialect, InHeader, InterruptIn, NodeId, Opcode, Operation, RequestHeader, Unique,
};
use gangplank_service::{error_chain, rate_limited};
use gangplank_vhost_user::client::CONFIG_LEN;
use log::debug;
use parking_lot::Mutex;
use rustix::io::Errno;
use zerocopy::FromBytes;

use super::init;
use crate::abi::Endpoint;
use crate::endpoint::{BoundEndpoint, RequestId};
use crate::tunnel::wire::{Answer, HIPRIO_SLOT, MAX_BYTES, Request};

/// How long a request is waited for when it arrives. Then its endpoints are free for others, and
/// the tunnel asks again.
const ANSWER_WAIT: Duration = Duration::from_millis(50);

/// How long a request waits for an entry of the driver's ring.
const RING_WAIT: Duration = Duration::from_millis(50);

/// One guest's session.
pub(super) struct Session {
    /// Its id.
    pub(super) id: u32,
    /// The random number of the guest's device.
    pub(super) generation: u64,
    /// The endpoint that opened it.
    pub(super) client: Endpoint,
    driver: Driver,
    slots: Vec<Mutex<Slot>>,
    heard: Mutex<Instant>,
    /// Whether there was a request.
    has_begun: AtomicBool,
    /// Requests that were put on the driver's queues.
    pub(super) requests: AtomicU64,
    /// Requests that were asked for again after a break.
    pub(super) repeated: AtomicU64,
}

/// A slot: its last request.
#[derive(Default)]
struct Slot {
    number: u32,
    state: SlotState,
}

/// How far a slot's request is.
#[derive(Default)]
enum SlotState {
    /// There was none.
    #[default]
    Empty,
    /// The daemon has it.
    InFlight {
        request: RawRequest,
        unique: Unique,
        is_init: bool,
        is_read: bool,
    },
    /// The daemon has replied. The reply is kept because it may be lost on its way.
    Done { reply: Vec<u8>, is_read: bool },
    /// A reply of more than [`MAX_BYTES`] to a READ was delivered. It is not kept: the read can be
    /// done again.
    Long,
}

impl Session {
    /// A session of `slots` slots on `driver`.
    pub(super) fn new(
        id: u32,
        generation: u64,
        client: Endpoint,
        driver: Driver,
        slots: u16,
    ) -> Self {
        Self {
            id,
            generation,
            client,
            driver,
            slots: (0..slots).map(|_| Mutex::default()).collect(),
            heard: Mutex::new(Instant::now()),
            has_begun: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            repeated: AtomicU64::new(0),
        }
    }

    /// The device's configuration space; zeros if the daemon tells none.
    pub(super) fn config(&self) -> [u8; CONFIG_LEN] {
        let config = self.driver.config();
        config.map_or([0; CONFIG_LEN], |config| *config.bytes())
    }

    /// Its slots.
    pub(super) fn slots(&self) -> u16 {
        u16::try_from(self.slots.len()).unwrap_or(u16::MAX)
    }

    /// Whether there was no request before this one.
    pub(super) fn is_first_request(&self) -> bool {
        !self.has_begun.swap(true, Ordering::Relaxed)
    }

    /// Whether there was a request.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Relaxed)
    }

    /// Notes that its tunnel lives.
    pub(super) fn touch(&self) {
        *self.heard.lock() = Instant::now();
    }

    /// How long its tunnel has been silent.
    pub(super) fn silence(&self) -> Duration {
        self.heard.lock().elapsed()
    }

    /// Why the daemon cannot be used any more, if that is so.
    pub(super) fn broken(&self) -> Option<String> {
        self.driver.broken().map(|error| error_chain(&error))
    }

    /// Ends all that waits for the daemon.
    pub(super) fn end(&self) {
        self.driver.give_up();
    }

    /// Carries out `asked`, whose bytes `endpoint` copies for the exchange `id`.
    pub(super) fn serve(
        &self,
        endpoint: &dyn BoundEndpoint,
        id: RequestId,
        asked: &Request,
    ) -> Answer {
        let Some(slot) = self.slots.get(usize::from(asked.slot)) else {
            return Answer::Refused(Errno::INVAL);
        };
        // Another thread works for an exchange that the tunnel has given up.
        let Some(mut slot) = slot.try_lock() else {
            return Answer::Pending;
        };
        let mut wait = ANSWER_WAIT;
        match asked.number.wrapping_sub(slot.number) {
            0 if !matches!(slot.state, SlotState::Long) => {
                wait = Duration::ZERO;
                self.repeated.fetch_add(1, Ordering::Relaxed);
            }
            // A late copy of a message of before.
            behind if behind > u32::MAX / 2 => return Answer::Refused(Errno::INVAL),
            _ => match self.submit(endpoint, id, asked) {
                Ok(state) => {
                    self.requests.fetch_add(1, Ordering::Relaxed);
                    if let SlotState::InFlight { unique, .. } = slot.state {
                        self.interrupt(unique);
                    }
                    *slot = Slot {
                        number: asked.number,
                        state,
                    };
                }
                Err(answer) => return answer,
            },
        }
        if let SlotState::InFlight {
            request,
            is_init,
            is_read,
            ..
        } = &mut slot.state
        {
            match request.wait(wait) {
                Ok(Some(reply)) => {
                    let mut bytes = bytes_of(&reply);
                    if *is_init {
                        init::cut(&mut bytes);
                    }
                    slot.state = SlotState::Done {
                        reply: bytes,
                        is_read: *is_read,
                    };
                }
                Ok(None) => return Answer::Pending,
                Err(error) => return self.lost(&error),
            }
        }
        let SlotState::Done { reply, is_read } = &slot.state else {
            return Answer::Refused(Errno::INVAL);
        };
        let answer = deliver(reply, endpoint, id, asked);
        if *is_read && reply.len() > usize::try_from(MAX_BYTES).unwrap_or(usize::MAX) {
            slot.state = SlotState::Long;
        }
        answer
    }

    /// The tunnel has given up a request that the daemon has not replied to, and has failed it at
    /// the guest. If it waits for a lock, it must not get it any more.
    fn interrupt(&self, unique: Unique) {
        // What the driver of Linux does (`FUSE_INT_REQ_BIT`, fs/fuse/dev.c).
        let header = RequestHeader {
            unique: Unique::new(unique.get() | 1),
            node: NodeId::default(),
            uid: 0,
            gid: 0,
            pid: 0,
        };
        let interrupt = Operation::Interrupt(InterruptIn {
            unique: unique.get(),
        });
        let mut bytes = Vec::new();
        let request = gangplank_fuse::Request::from(interrupt);
        let encoded = request.encode(&header, Dialect::default(), &mut bytes);
        let encoded = encoded.map_err(|error| error_chain(&error));
        let put = encoded.and_then(|()| {
            let put = self.put(HIPRIO_SLOT, &bytes, 0);
            put.map_err(|error| error_chain(&error))
        });
        // There is no reply to wait for.
        match put {
            Ok(Some(interrupt)) => drop(interrupt),
            Ok(None) => debug!("session {}: no room for an interrupt", self.id),
            Err(why) => debug!("session {}: no interrupt: {why}", self.id),
        }
    }

    /// Copies the bytes of a request and puts them on a queue of the driver.
    fn submit(
        &self,
        endpoint: &dyn BoundEndpoint,
        id: RequestId,
        asked: &Request,
    ) -> Result<SlotState, Answer> {
        let mut bytes = vec![0; usize::try_from(asked.readable).unwrap_or(usize::MAX)];
        if let Err(error) = endpoint.copy_from(id, asked.address, &mut bytes) {
            debug!("session {}: {}", self.id, error_chain(&error));
            return Err(Answer::Pending);
        }
        let header = InHeader::read_from_prefix(&bytes).ok();
        let header = header.map(|(header, _)| (header.unique, header.opcode));
        let (unique, opcode) = header.unwrap_or_default();
        match self.put(asked.slot, &bytes, asked.writable) {
            Ok(Some(request)) => Ok(SlotState::InFlight {
                request,
                unique: Unique::new(unique),
                is_init: init::is_init(&bytes),
                is_read: opcode == Opcode::Read as u32,
            }),
            Ok(None) => Err(Answer::Pending),
            Err(error) if error.is_fatal() => Err(self.lost(&error)),
            Err(error) => {
                debug!("session {}: {}", self.id, error_chain(&error));
                // Requests in flight have all of the memory.
                Err(Answer::Pending)
            }
        }
    }

    /// Puts a request on the queue of a slot, with room for its reply. `None` if the ring is full.
    fn put(
        &self,
        slot: u16,
        bytes: &[u8],
        room: u32,
    ) -> gangplank_driver::Result<Option<RawRequest>> {
        let len = |len: u32| usize::try_from(len).unwrap_or(usize::MAX);
        let buffer = self.driver.buffer(bytes.len())?;
        buffer.bytes().copy_from(bytes);
        let room = match room {
            0 => None,
            room => Some((self.driver.buffer(len(room))?, room)),
        };
        let sent = (buffer, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.driver
            .submit_raw(self.queue(slot), sent, room, RING_WAIT)
    }

    /// The driver's queue for a slot.
    fn queue(&self, slot: u16) -> usize {
        let requests = self.driver.queues().saturating_sub(1).max(1);
        match slot {
            HIPRIO_SLOT => 0,
            slot => 1 + usize::from(slot - 1) % requests,
        }
    }

    fn lost(&self, error: &gangplank_driver::Error) -> Answer {
        rate_limited!(warn, "session {}: {}", self.id, error_chain(error));
        Answer::Refused(Errno::NOTCONN)
    }
}

/// The bytes that the daemon has written.
fn bytes_of(reply: &RawReply) -> Vec<u8> {
    let Some(buffer) = &reply.buffer else {
        return Vec::new();
    };
    let mut bytes = vec![0; usize::try_from(reply.written).unwrap_or(0)];
    buffer.bytes().copy_to(&mut bytes);
    bytes
}

/// Copies a reply to the guest.
fn deliver(reply: &[u8], endpoint: &dyn BoundEndpoint, id: RequestId, asked: &Request) -> Answer {
    let written = u32::try_from(reply.len()).ok();
    let Some(written) = written.filter(|written| *written <= asked.writable) else {
        return Answer::Refused(Errno::INVAL);
    };
    if written > 0
        && let Err(error) = endpoint.copy_to(id, asked.reply_address(), reply)
    {
        debug!("{}", error_chain(&error));
        return Answer::Pending;
    }
    Answer::Done { written }
}
