//! Messages between device model and fd store: sixteen bytes each way, with at most one descriptor.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Protocol and version, in every message. The protocol is small so that it never has to change:
/// the running fd store is the one that was started first, however often the device model is
/// replaced.
const MAGIC: u32 = 0x4c48_5047;

/// Most kicks of a device: vhost-user numbers queues by a byte.
const KICKS: u32 = 256;

/// The number of the first kick's slot.
const FIRST_KICK: u32 = 0x100;

/// Identifies one descriptor of a device.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Slot {
    /// The device's descriptor from the hypervisor's driver. It is never removed.
    Device,
    /// The memory of the [`crate::journal`].
    Journal,
    /// The eventfd that raises the interrupt line.
    Interrupt,
    /// The connection to the backend.
    Backend,
    /// The eventfd of a queue's kicks.
    Kick(u8),
}

impl Slot {
    /// Whether the descriptor may be replaced or removed. The kernel uses the others as long as the
    /// machine runs.
    pub(super) const fn is_replaceable(self) -> bool {
        matches!(self, Self::Journal | Self::Backend)
    }

    const fn to_wire(self) -> u32 {
        match self {
            Self::Device => 0,
            Self::Journal => 1,
            Self::Interrupt => 2,
            Self::Backend => 3,
            #[allow(clippy::cast_lossless)] // `From` is not const
            Self::Kick(queue) => FIRST_KICK + queue as u32,
        }
    }

    fn from_wire(wire: u32) -> Option<Self> {
        match wire {
            0 => Some(Self::Device),
            1 => Some(Self::Journal),
            2 => Some(Self::Interrupt),
            3 => Some(Self::Backend),
            _ => {
                let queue = wire
                    .checked_sub(FIRST_KICK)
                    .filter(|queue| *queue < KICKS)?;
                u8::try_from(queue).ok().map(Self::Kick)
            }
        }
    }
}

/// A device model's request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Request {
    /// Asks for the fd store's process.
    Hello,
    /// Claims a device for this connection, as long as the connection lasts.
    Claim { device: u32 },
    /// Asks for a duplicate of a descriptor.
    Get { device: u32, slot: Slot },
    /// Stores the descriptor that comes along.
    Put { device: u32, slot: Slot },
    /// Removes a descriptor.
    Drop { device: u32, slot: Slot },
}

/// The fd store's answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// Done. `process` is the fd store's in the answer to HELLO, and 0 otherwise. Comes with the
    /// descriptor that was asked for.
    Done { process: u32 },
    /// The slot is empty.
    Empty,
    /// Another process serves the device.
    Busy { process: u32 },
    /// The device has not been claimed on this connection.
    Unclaimed,
    /// The slot has a descriptor, which stays.
    Occupied,
    /// The fd store is full, or no descriptor came along.
    Refused,
    /// The request is not valid.
    Unknown,
}

/// A request or an answer, as sent. Both ends are on one host and use its byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
pub(super) struct Wire {
    magic: u32,
    /// Operation or result.
    word: u32,
    /// The device, or the process in an answer.
    number: u32,
    slot: u32,
}

const _: () = assert!(size_of::<Wire>() == 16);

mod operation {
    pub(super) const HELLO: u32 = 1;
    pub(super) const CLAIM: u32 = 2;
    pub(super) const GET: u32 = 3;
    pub(super) const PUT: u32 = 4;
    pub(super) const DROP: u32 = 5;
}

mod result {
    pub(super) const DONE: u32 = 0;
    pub(super) const EMPTY: u32 = 1;
    pub(super) const BUSY: u32 = 2;
    pub(super) const UNCLAIMED: u32 = 3;
    pub(super) const OCCUPIED: u32 = 4;
    pub(super) const REFUSED: u32 = 5;
    pub(super) const UNKNOWN: u32 = 6;
}

impl Request {
    pub(super) const fn to_wire(self) -> Wire {
        let (word, number, slot) = match self {
            Self::Hello => (operation::HELLO, 0, 0),
            Self::Claim { device } => (operation::CLAIM, device, 0),
            Self::Get { device, slot } => (operation::GET, device, slot.to_wire()),
            Self::Put { device, slot } => (operation::PUT, device, slot.to_wire()),
            Self::Drop { device, slot } => (operation::DROP, device, slot.to_wire()),
        };
        Wire {
            magic: MAGIC,
            word,
            number,
            slot,
        }
    }

    /// `None` if it is not a request.
    pub(super) fn from_wire(wire: Wire) -> Option<Self> {
        if wire.magic != MAGIC {
            return None;
        }
        let device = wire.number;
        let slot = Slot::from_wire(wire.slot);
        match wire.word {
            operation::HELLO => Some(Self::Hello),
            operation::CLAIM => Some(Self::Claim { device }),
            operation::GET => slot.map(|slot| Self::Get { device, slot }),
            operation::PUT => slot.map(|slot| Self::Put { device, slot }),
            operation::DROP => slot.map(|slot| Self::Drop { device, slot }),
            _ => None,
        }
    }
}

impl Answer {
    pub(super) const fn to_wire(self) -> Wire {
        let (word, number) = match self {
            Self::Done { process } => (result::DONE, process),
            Self::Empty => (result::EMPTY, 0),
            Self::Busy { process } => (result::BUSY, process),
            Self::Unclaimed => (result::UNCLAIMED, 0),
            Self::Occupied => (result::OCCUPIED, 0),
            Self::Refused => (result::REFUSED, 0),
            Self::Unknown => (result::UNKNOWN, 0),
        };
        Wire {
            magic: MAGIC,
            word,
            number,
            slot: 0,
        }
    }

    /// `None` if it is not an answer.
    pub(super) fn from_wire(wire: Wire) -> Option<Self> {
        if wire.magic != MAGIC {
            return None;
        }
        let process = wire.number;
        match wire.word {
            result::DONE => Some(Self::Done { process }),
            result::EMPTY => Some(Self::Empty),
            result::BUSY => Some(Self::Busy { process }),
            result::UNCLAIMED => Some(Self::Unclaimed),
            result::OCCUPIED => Some(Self::Occupied),
            result::REFUSED => Some(Self::Refused),
            result::UNKNOWN => Some(Self::Unknown),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slots_keep_their_numbers() {
        let slots = [
            (Slot::Device, 0),
            (Slot::Journal, 1),
            (Slot::Interrupt, 2),
            (Slot::Backend, 3),
            (Slot::Kick(0), 0x100),
            (Slot::Kick(255), 0x1ff),
        ];
        for (slot, wire) in slots {
            assert_eq!(slot.to_wire(), wire);
            assert_eq!(Slot::from_wire(wire), Some(slot));
        }
        for wire in [4, 0xff, 0x200, u32::MAX] {
            assert_eq!(Slot::from_wire(wire), None);
        }
    }

    proptest! {
        #[test]
        fn requests_survive_the_wire_and_noise_is_none(
            bytes in any::<[u32; 4]>(), known in 0u32..8,
        ) {
            let noise: Wire = zerocopy::transmute!(bytes);
            prop_assert!(noise.magic == MAGIC || Request::from_wire(noise).is_none());
            let told = Wire { magic: MAGIC, word: known, ..noise };
            if let Some(request) = Request::from_wire(told) {
                prop_assert_eq!(Request::from_wire(request.to_wire()), Some(request));
            }
            if let Some(answer) = Answer::from_wire(told) {
                prop_assert_eq!(Answer::from_wire(answer.to_wire()), Some(answer));
            }
        }
    }
}
