//! One guest's session: its driver, and its requests by slot.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gangplank_driver::{Driver, RawReply, RawRequest};
use gangplank_service::{error_chain, rate_limited};
use gangplank_vhost_user::client::CONFIG_LEN;
use log::debug;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::init;
use crate::abi::Endpoint;
use crate::endpoint::{BoundEndpoint, RequestId};
use crate::tunnel::wire::{Answer, HIPRIO_SLOT, Request};

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
    InFlight { request: RawRequest, is_init: bool },
    /// The daemon has replied. The reply is kept because it may be lost on its way.
    Done(RawReply),
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
            0 => {
                wait = Duration::ZERO;
                self.repeated.fetch_add(1, Ordering::Relaxed);
            }
            // A late copy of a message of before.
            behind if behind > u32::MAX / 2 => return Answer::Refused(Errno::INVAL),
            _ => match self.submit(endpoint, id, asked) {
                Ok(state) => {
                    self.requests.fetch_add(1, Ordering::Relaxed);
                    *slot = Slot {
                        number: asked.number,
                        state,
                    };
                }
                Err(answer) => return answer,
            },
        }
        if let SlotState::InFlight { request, is_init } = &mut slot.state {
            match request.wait(wait) {
                Ok(Some(reply)) => {
                    if *is_init {
                        cut(&reply);
                    }
                    slot.state = SlotState::Done(reply);
                }
                Ok(None) => return Answer::Pending,
                Err(error) => return self.lost(&error),
            }
        }
        match &slot.state {
            SlotState::Done(reply) => deliver(reply, endpoint, id, asked),
            SlotState::Empty | SlotState::InFlight { .. } => Answer::Refused(Errno::INVAL),
        }
    }

    /// Copies the bytes of a request and puts them on a queue of the driver.
    fn submit(
        &self,
        endpoint: &dyn BoundEndpoint,
        id: RequestId,
        asked: &Request,
    ) -> Result<SlotState, Answer> {
        let len = |len: u32| usize::try_from(len).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len(asked.readable)];
        if let Err(error) = endpoint.copy_from(id, asked.address, &mut bytes) {
            debug!("session {}: {}", self.id, error_chain(&error));
            return Err(Answer::Pending);
        }
        let busy = |error| {
            debug!("session {}: {}", self.id, error_chain(&error));
            // Replies that are kept, and requests in flight, have all of the memory.
            Answer::Pending
        };
        let buffer = self.driver.buffer(bytes.len()).map_err(busy)?;
        buffer.bytes().copy_from(&bytes);
        let room = match asked.writable {
            0 => None,
            writable => Some((self.driver.buffer(len(writable)).map_err(busy)?, writable)),
        };
        let sent = (buffer, asked.readable);
        let submitted = self
            .driver
            .submit_raw(self.queue(asked.slot), sent, room, RING_WAIT);
        match submitted {
            Ok(Some(request)) => Ok(SlotState::InFlight {
                request,
                is_init: init::is_init(&bytes),
            }),
            Ok(None) => Err(Answer::Pending),
            Err(error) => Err(self.lost(&error)),
        }
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

/// Cuts a reply to INIT in place.
fn cut(reply: &RawReply) {
    let Some(buffer) = &reply.buffer else {
        return;
    };
    let written = usize::try_from(reply.written).unwrap_or(0);
    let mut bytes = vec![0_u8; written.min(init::INIT_LEN)];
    buffer.bytes().copy_to(&mut bytes);
    init::cut(&mut bytes);
    buffer.bytes().copy_from(&bytes);
}

/// Copies a reply to the guest.
fn deliver(
    reply: &RawReply,
    endpoint: &dyn BoundEndpoint,
    id: RequestId,
    asked: &Request,
) -> Answer {
    if reply.written > asked.writable {
        return Answer::Refused(Errno::INVAL);
    }
    if let Some(buffer) = reply.buffer.as_ref().filter(|_| reply.written > 0) {
        let mut bytes = vec![0_u8; usize::try_from(reply.written).unwrap_or(0)];
        buffer.bytes().copy_to(&mut bytes);
        if let Err(error) = endpoint.copy_to(id, asked.reply_address(), &bytes) {
            debug!("{}", error_chain(&error));
            return Answer::Pending;
        }
    }
    Answer::Done {
        written: reply.written,
    }
}
