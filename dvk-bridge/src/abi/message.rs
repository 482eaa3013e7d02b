//! The message: its source, its type, and one of thirteen layouts of a few numbers.
//!
//! ```text
//!  0        4        8                                    36          76
//!  m_source m_type   the arm ...                          (legacy only)
//! ```
//!
//! Messages of 36 bytes (early and current) and of 76 (legacy) differ only in the one arm that is
//! longer than 36 bytes allow.

use std::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::endpoint::Endpoint;
use super::wire::wire_struct;

/// Bytes before the arm.
const ARM_OFFSET: usize = 8;
/// Bytes of the longest arm: [`MBLegacy`].
const MAX_ARM_SIZE: usize = 68;

/// One message, independent of the generation.
///
/// The part that a shorter generation lacks is zero when decoded, and dropped when encoded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// The source. Carriers fill it in when sending and vouch for it when receiving.
    #[doc(alias = "m_source")]
    pub source: Endpoint,
    /// The type: the number of a request, or the result of a reply.
    #[doc(alias = "m_type")]
    pub kind: i32,
    arm: [u8; MAX_ARM_SIZE],
}

impl Message {
    /// The bit of [`Self::kind`] in notifications, next to the slot of the source.
    const NOTIFY: i32 = 0x1000;

    /// A message of `kind` with the numbers `arm` and zeros behind them. The carrier fills in the
    /// source.
    pub fn new(kind: i32, arm: &impl Arm) -> Self {
        let mut message = Self {
            source: Endpoint::NONE,
            kind,
            arm: [0; MAX_ARM_SIZE],
        };
        message.set_arm(arm);
        message
    }

    /// Its numbers, read as `A`.
    pub fn arm<A: Arm>(&self) -> A {
        // An arm is no longer than the longest.
        A::read_from_prefix(&self.arm).map_or_else(|_| A::new_zeroed(), |(arm, _)| arm)
    }

    /// Replaces the numbers by `arm` and keeps the bytes behind it.
    pub fn set_arm(&mut self, arm: &impl Arm) {
        // An arm is no longer than the longest.
        let _ = arm.write_to_prefix(&mut self.arm);
    }

    /// The answer with `result`, as DVK's servers send it: everything else stays as it came.
    pub fn answer(&self, result: i32) -> Self {
        Self {
            kind: result,
            ..*self
        }
    }

    /// Whether it is a notification. A request of the same number looks like one if its sender's
    /// slot is the low part of the number.
    pub fn is_notification(&self) -> bool {
        self.kind & !0xfff == Self::NOTIFY && self.kind & 0xfff == self.source.slot() & 0xfff
    }

    /// The notification that `source` sends.
    pub fn notification(source: Endpoint, arm: &M9) -> Self {
        Self {
            source,
            ..Self::new(Self::NOTIFY | source.slot() & 0xfff, arm)
        }
    }

    /// Decodes as much of a message as `bytes` holds. Returns `None` if source and type are
    /// missing.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (source, rest) = i32::read_from_prefix(bytes).ok()?;
        let (kind, rest) = i32::read_from_prefix(rest).ok()?;
        let mut arm = [0; MAX_ARM_SIZE];
        for (to, from) in arm.iter_mut().zip(rest) {
            *to = *from;
        }
        Some(Self {
            source: Endpoint::from_raw(source),
            kind,
            arm,
        })
    }

    /// Encodes the message into `bytes`, whose length is that of a generation. Bytes beyond 76
    /// stay.
    pub fn encode(&self, bytes: &mut [u8]) {
        let source = self.source.raw().to_le_bytes();
        let kind = self.kind.to_le_bytes();
        let whole = source.iter().chain(&kind).chain(&self.arm);
        for (to, from) in bytes.iter_mut().zip(whole) {
            *to = *from;
        }
    }
}

impl Default for Message {
    /// All zero.
    fn default() -> Self {
        Self {
            source: Endpoint::from_raw(0),
            kind: 0,
            arm: [0; MAX_ARM_SIZE],
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let M1 {
            i1,
            i2,
            i3,
            p1,
            p2,
            p3,
        } = self.arm();
        write!(
            f,
            "source {} type {} arm {i1:#x} {i2:#x} {i3:#x} {p1:#x} {p2:#x} {p3:#x}",
            self.source, self.kind
        )
    }
}

/// One layout of a message's numbers.
pub trait Arm: FromBytes + IntoBytes + Immutable + sealed::Sealed {}

mod sealed {
    pub trait Sealed {}
}

/// Declares the arms. Offsets count from the message's first byte.
macro_rules! arms {
    ($( $(#[$meta:meta])* $name:ident = $c_name:literal, $size:literal bytes {
        $( $(#[$field_meta:meta])* $field:ident: $ty:ty => $offset:literal, )*
    } )*) => { $(
        wire_struct! {
            $(#[$meta])*
            pub $name = $c_name, $size bytes from 8 {
                $( $(#[$field_meta])* #[allow(missing_docs)] $field: $ty => $offset, )*
            }
        }

        impl sealed::Sealed for $name {}
        impl Arm for $name {}

        const _: () = assert!($size <= MAX_ARM_SIZE && ARM_OFFSET == 8);
    )* };
}

arms! {
    /// Three integers, three addresses.
    M1 = "mess_1", 24 bytes {
        i1: i32 => 8,
        i2: i32 => 12,
        i3: i32 => 16,
        p1: u32 => 20,
        p2: u32 => 24,
        p3: u32 => 28,
    }
    /// Three integers, two longs, an address.
    M2 = "mess_2", 24 bytes {
        i1: i32 => 8,
        i2: i32 => 12,
        i3: i32 => 16,
        l1: i32 => 20,
        l2: i32 => 24,
        p1: u32 => 28,
    }
    /// Two integers, an address, a short text.
    M3 = "mess_3", 28 bytes {
        i1: i32 => 8,
        i2: i32 => 12,
        p1: u32 => 16,
        ca1: [u8; 14] => 20,
        padding: [u8; 2] => 34,
    }
    /// Five longs.
    M4 = "mess_4", 20 bytes {
        l1: i32 => 8,
        l2: i32 => 12,
        l3: i32 => 16,
        l4: i32 => 20,
        l5: i32 => 24,
    }
    /// Two shorts, two integers, three longs.
    M5 = "mess_5", 24 bytes {
        c1: i16 => 8,
        c2: i16 => 10,
        i1: i32 => 12,
        i2: i32 => 16,
        l1: i32 => 20,
        l2: i32 => 24,
        l3: i32 => 28,
    }
    /// A text.
    M6 = "mess_6", 28 bytes {
        ca1: [u8; 28] => 8,
    }
    /// Four integers, two addresses.
    M7 = "mess_7", 24 bytes {
        i1: i32 => 8,
        i2: i32 => 12,
        i3: i32 => 16,
        i4: i32 => 20,
        p1: u32 => 24,
        p2: u32 => 28,
    }
    /// Two integers, four addresses.
    M8 = "mess_8", 24 bytes {
        i1: i32 => 8,
        i2: i32 => 12,
        p1: u32 => 16,
        p2: u32 => 20,
        p3: u32 => 24,
        p4: u32 => 28,
    }
    /// An integer, a long, a time: the arm of notifications.
    M9 = "mess_9", 16 bytes {
        i1: i32 => 8,
        l1: i32 => 12,
        t1_sec: i32 => 16,
        t1_nsec: i32 => 20,
    }
    /// A destination, a count, four integers.
    MA = "mess_A", 24 bytes {
        dst: i32 => 8,
        nr: i32 => 12,
        ia: [i32; 4] => 16,
    }
    /// A count and a checksum, in the generations with messages of 36 bytes.
    MB = "mess_B", 20 bytes {
        nr: i32 => 8,
        md5: [u8; 16] => 12,
    }
    /// A count and a checksum, in the generation with messages of 76 bytes.
    MBLegacy = "mess_B", 68 bytes {
        nr: i32 => 8,
        md5: [i32; 16] => 12,
    }
    /// Four integers, a very short text. Not in the legacy generation.
    MC = "mess_C", 28 bytes {
        i1: i32 => 8,
        i2: i32 => 12,
        i3: i32 => 16,
        i4: i32 => 20,
        ca1: [u8; 10] => 24,
        padding: [u8; 2] => 34,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_changes_only_the_kind() {
        let arm = M1 {
            i1: 3,
            p1: 0x47d1_1000,
            ..M1::default()
        };
        let request = Message::new(33, &arm);
        let answer = request.answer(-2);
        assert_eq!((answer.kind, answer.arm::<M1>()), (-2, arm));
    }

    #[test]
    fn a_notification_is_detected_by_its_source() {
        let mut message = Message::notification(Endpoint::from_raw(4), &M9::default());
        assert_eq!(message.kind, 0x1004);
        assert!(message.is_notification());
        message.source = Endpoint::from_raw(10);
        assert!(!message.is_notification());
        assert!(Message::notification(Endpoint::from_raw(-2), &M9::default()).is_notification());
    }

    #[test]
    fn an_arm_of_the_legacy_message_survives_there_and_is_cut_elsewhere() {
        let arm = MBLegacy {
            nr: 1,
            md5: [7; 16],
        };
        let message = Message::new(1, &arm);
        let mut legacy = [0; 76];
        message.encode(&mut legacy);
        assert_eq!(Message::decode(&legacy).unwrap().arm::<MBLegacy>(), arm);
        let mut current = [0; 36];
        message.encode(&mut current);
        let cut = Message::decode(&current).unwrap().arm::<MBLegacy>();
        assert_eq!(cut.md5[..6], [7; 6]);
        assert_eq!(cut.md5[6..], [0; 10]);
    }

    proptest! {
        #[test]
        fn a_decoded_message_encodes_to_the_same_bytes(
            bytes: [[u8; 38]; 2],
            length in prop::sample::select(vec![36, 76]),
        ) {
            let bytes = bytes.as_flattened().get(..length).unwrap();
            let message = Message::decode(bytes).unwrap();
            let mut back = vec![0; length];
            message.encode(&mut back);
            prop_assert_eq!(back, bytes);
        }
    }
}
