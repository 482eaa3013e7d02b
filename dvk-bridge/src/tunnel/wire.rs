//! The messages between a tunnel and its server.
//!
//! All use DVK's message m7. The kind says what is asked; in an answer it is the result.
//!
//! ```text
//!            kind    i1        i2       i3       i4        p1        p2
//!   open     0x7101  generation (8 bytes) version  slots     config
//!   request  0x7102  session   slot     number   readable  writable  address
//!   ping     0x7103  session
//!   close    0x7104  session
//!
//!   opened   0       session   queues   slots    resumed
//!   done     0       written
//!   pending  1
//!   refused  -errno
//! ```
//!
//! - `generation` is a random number of the guest's device. A server that knows it gives the same
//!   session again. `config` is the address of [`CONFIG_LEN`] bytes, into which the server copies
//!   the device's configuration space.
//! - A request's readable bytes are at `address`, and its writable bytes follow them. Slot 0 is the
//!   high-priority queue's. `number` grows with each new request in the slot; the same number is
//!   the same request.
//! - `written` bytes of the writable ones are the reply.

use rustix::io::Errno;

use crate::abi::{M7, Message};

/// The version of these messages.
pub const VERSION: i32 = 1;

/// Bytes of file data in a request or reply at most: what DVK copies at once (`d_max_copylen`).
pub const MAX_DATA: u32 = 1 << 20;

/// Bytes of a request at most. Headers and arguments have a page.
pub const MAX_BYTES: u32 = MAX_DATA + 4096;

/// Pages of file data in a request or reply at most, as the reply to INIT says.
pub const MAX_PAGES: u16 = 256;

/// Bytes of a page of a guest at most (arm64 with pages of 64 KiB). `max_write` bounds what such a
/// guest writes, but only the pages bound what it reads.
const MAX_PAGE: u32 = 1 << 16;

/// Bytes of a reply at most. A reply of more than [`MAX_BYTES`] is copied in several pieces.
pub const MAX_REPLY: u32 = MAX_PAGES as u32 * MAX_PAGE + 4096;

/// Slots of a session at most.
pub const MAX_SLOTS: u16 = 64;

/// The slot of the high-priority queue.
pub const HIPRIO_SLOT: u16 = 0;

/// Bytes of the device's configuration space.
pub const CONFIG_LEN: u32 = 40;

const OPEN: i32 = 0x7101;
const REQUEST: i32 = 0x7102;
const PING: i32 = 0x7103;
const CLOSE: i32 = 0x7104;

/// The result of an answer whose request is not finished.
const PENDING: i32 = 1;

/// What a tunnel asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Give the guest's device a session.
    Open {
        /// The device's random number.
        generation: u64,
        /// Slots that it would use, the high-priority one included.
        slots: u16,
        /// Address of the configuration space.
        config: u32,
    },
    /// Carry out a request.
    Request(Request),
    /// Keep the session.
    Ping {
        /// The session.
        session: u32,
    },
    /// End the session.
    Close {
        /// The session.
        session: u32,
    },
}

/// One request of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The session.
    pub session: u32,
    /// Its slot.
    pub slot: u16,
    /// Its number in the slot.
    pub number: u32,
    /// Bytes to read.
    pub readable: u32,
    /// Bytes that may be written.
    pub writable: u32,
    /// Where they are.
    pub address: u32,
}

/// What a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To `open`.
    Opened {
        /// The session.
        session: u32,
        /// Server endpoints for requests, behind the first.
        queues: u16,
        /// Slots that the session has.
        slots: u16,
        /// Whether the session existed before.
        resumed: bool,
    },
    /// The request is finished, or the session kept or closed.
    Done {
        /// Bytes of the reply.
        written: u32,
    },
    /// The request is not finished.
    Pending,
    /// It was not carried out.
    Refused(Errno),
}

/// Why a message is not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Its kind is none of a tunnel.
    #[error("it has the kind {0:#x}, which no tunnel sends")]
    Kind(i32),
    /// Its version is another.
    #[error("it speaks version {0} of the tunnel's messages, and not {VERSION}")]
    Version(i32),
    /// A length or an address is impossible.
    #[error(
        "it asks for {readable} bytes to read and {writable} to write at {address:#x}, slot {slot}"
    )]
    Lengths {
        /// The session.
        session: u32,
        /// The slot.
        slot: i32,
        /// Bytes to read.
        readable: i32,
        /// Bytes to write.
        writable: u32,
        /// The address.
        address: u32,
    },
}

impl Call {
    /// The message that asks it.
    #[must_use]
    pub fn encode(&self) -> Message {
        match *self {
            Self::Open {
                generation,
                slots,
                config,
            } => {
                let [a, b, c, d, e, f, g, h] = generation.to_le_bytes();
                let arm = M7 {
                    i1: i32::from_le_bytes([a, b, c, d]),
                    i2: i32::from_le_bytes([e, f, g, h]),
                    i3: VERSION,
                    i4: slots.into(),
                    p1: config,
                    p2: 0,
                };
                Message::new(OPEN, &arm)
            }
            Self::Request(request) => {
                let arm = M7 {
                    i1: request.session.cast_signed(),
                    i2: request.slot.into(),
                    i3: request.number.cast_signed(),
                    i4: request.readable.cast_signed(),
                    p1: request.writable,
                    p2: request.address,
                };
                Message::new(REQUEST, &arm)
            }
            Self::Ping { session } => Message::new(PING, &of_session(session)),
            Self::Close { session } => Message::new(CLOSE, &of_session(session)),
        }
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(message: &Message) -> Result<Self, WireError> {
        let arm: M7 = message.arm();
        let session = arm.i1.cast_unsigned();
        match message.kind {
            OPEN if arm.i3 != VERSION => Err(WireError::Version(arm.i3)),
            OPEN => {
                let [a, b, c, d] = arm.i1.to_le_bytes();
                let [e, f, g, h] = arm.i2.to_le_bytes();
                Ok(Self::Open {
                    generation: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
                    slots: u16::try_from(arm.i4.clamp(0, i32::from(MAX_SLOTS))).unwrap_or(0),
                    config: arm.p1,
                })
            }
            REQUEST => {
                let request = Request {
                    session,
                    slot: u16::try_from(arm.i2).unwrap_or(u16::MAX),
                    number: arm.i3.cast_unsigned(),
                    readable: arm.i4.cast_unsigned(),
                    writable: arm.p1,
                    address: arm.p2,
                };
                match request.is_possible() {
                    true => Ok(Self::Request(request)),
                    false => Err(WireError::Lengths {
                        session,
                        slot: arm.i2,
                        readable: arm.i4,
                        writable: arm.p1,
                        address: arm.p2,
                    }),
                }
            }
            PING => Ok(Self::Ping { session }),
            CLOSE => Ok(Self::Close { session }),
            kind => Err(WireError::Kind(kind)),
        }
    }
}

impl Request {
    /// Whether slot, lengths and address are within their limits.
    fn is_possible(&self) -> bool {
        let lengths = (1..=MAX_BYTES).contains(&self.readable) && self.writable <= MAX_REPLY;
        let end = u64::from(self.address) + u64::from(self.readable) + u64::from(self.writable);
        lengths && self.slot < MAX_SLOTS && u32::try_from(end).is_ok()
    }

    /// The address of the writable bytes.
    #[must_use]
    pub const fn reply_address(&self) -> u32 {
        self.address.saturating_add(self.readable)
    }
}

impl Answer {
    /// The answer to `message`.
    #[must_use]
    pub fn encode(&self, message: &Message) -> Message {
        let mut answer = message.answer(0);
        match *self {
            Self::Opened {
                session,
                queues,
                slots,
                resumed,
            } => answer.set_arm(&M7 {
                i1: session.cast_signed(),
                i2: queues.into(),
                i3: slots.into(),
                i4: resumed.into(),
                p1: 0,
                p2: 0,
            }),
            Self::Done { written } => answer.set_arm(&of_session(written)),
            Self::Pending => answer.kind = PENDING,
            Self::Refused(errno) => answer.kind = -errno.raw_os_error(),
        }
        answer
    }

    /// Reads the answer to `call`. `None` if it is none.
    #[must_use]
    pub fn decode(message: &Message, call: &Call) -> Option<Self> {
        let arm: M7 = message.arm();
        match (message.kind, call) {
            (0, Call::Open { .. }) => Some(Self::Opened {
                session: arm.i1.cast_unsigned(),
                queues: u16::try_from(arm.i2).ok().filter(|queues| *queues > 0)?,
                slots: u16::try_from(arm.i3)
                    .ok()
                    .filter(|slots| (2..=MAX_SLOTS).contains(slots))?,
                resumed: arm.i4 != 0,
            }),
            (0, Call::Request(request)) => {
                let written = arm.i1.cast_unsigned();
                (written <= request.writable).then_some(Self::Done { written })
            }
            (0, _) => Some(Self::Done { written: 0 }),
            (PENDING, Call::Request(_)) => Some(Self::Pending),
            // Errnos of Linux end before 4096.
            (kind @ -4095..0, _) => Some(Self::Refused(Errno::from_raw_os_error(-kind))),
            _ => None,
        }
    }
}

/// An arm with one number.
fn of_session(number: u32) -> M7 {
    M7 {
        i1: number.cast_signed(),
        ..M7::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn possible() -> impl Strategy<Value = Request> {
        let lengths = (1..=MAX_BYTES, 0..=MAX_REPLY);
        (any::<[u32; 2]>(), 0..MAX_SLOTS, lengths, any::<u32>()).prop_map(
            |([session, number], slot, (readable, writable), address)| Request {
                session,
                slot,
                number,
                readable,
                writable,
                address: address.min(u32::MAX - readable - writable),
            },
        )
    }

    proptest! {
        #[test]
        fn what_a_tunnel_asks_is_what_its_server_reads(
            request in possible(),
            generation: u64,
            slots in 0..=MAX_SLOTS,
            config: u32,
        ) {
            let session = request.session;
            for call in [
                Call::Open { generation, slots, config },
                Call::Request(request),
                Call::Ping { session },
                Call::Close { session },
            ] {
                prop_assert_eq!(Call::decode(&call.encode()), Ok(call));
            }
        }

        #[test]
        fn no_message_gives_lengths_beyond_a_copy_or_an_address_that_overflows(
            kind in prop::sample::select(vec![OPEN, REQUEST, PING, CLOSE, 0, -1]),
            i: [i32; 4],
            p: [u32; 2],
        ) {
            let [i1, i2, i3, i4] = i;
            let [p1, p2] = p;
            let message = Message::new(kind, &M7 { i1, i2, i3, i4, p1, p2 });
            match Call::decode(&message) {
                Ok(Call::Request(request)) => {
                    prop_assert!(request.readable >= 1 && request.readable <= MAX_BYTES);
                    prop_assert!(request.writable <= MAX_REPLY && request.slot < MAX_SLOTS);
                    let end = request.reply_address().checked_add(request.writable);
                    prop_assert!(end.is_some());
                }
                Ok(Call::Open { slots, .. }) => prop_assert!(slots <= MAX_SLOTS),
                _ => {}
            }
        }

        #[test]
        fn no_answer_claims_more_than_there_is_room_for(
            request in possible(),
            kind in -5000..5,
            i: [i32; 4],
        ) {
            let [i1, i2, i3, i4] = i;
            let message = Message::new(kind, &M7 { i1, i2, i3, i4, p1: 0, p2: 0 });
            let call = Call::Request(request);
            if let Some(Answer::Done { written }) = Answer::decode(&message, &call) {
                prop_assert!(written <= request.writable);
            }
            let open = Call::Open { generation: 0, slots: 0, config: 0 };
            if let Some(Answer::Opened { slots, queues, .. }) = Answer::decode(&message, &open) {
                prop_assert!((2..=MAX_SLOTS).contains(&slots) && queues > 0);
            }
        }
    }

    #[test]
    fn answers_come_back_as_they_were_sent() {
        let open = Call::Open {
            generation: 1,
            slots: 2,
            config: 3,
        };
        let request = Call::Request(Request {
            session: 1,
            slot: 1,
            number: 1,
            readable: 1,
            writable: 100,
            address: 0,
        });
        let opened = Answer::Opened {
            session: 7,
            queues: 4,
            slots: 64,
            resumed: true,
        };
        for (call, answer) in [
            (open, opened),
            (request, Answer::Done { written: 100 }),
            (request, Answer::Pending),
            (request, Answer::Refused(Errno::STALE)),
            (open, Answer::Refused(Errno::NOTCONN)),
        ] {
            let message = answer.encode(&call.encode());
            assert_eq!(Answer::decode(&message, &call), Some(answer));
        }
        let message = Answer::Done { written: 101 }.encode(&request.encode());
        assert_eq!(Answer::decode(&message, &request), None);
    }
}
