//! Where everything stands in a journal.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Request;

/// Bytes of a journal.
pub(super) const LEN: u64 = 0x8000;

/// "GPJOURNL", little-endian.
pub(super) const MAGIC: u64 = 0x4c4e_5255_4f4a_5047;

/// Of the registers and the daemon. The head, the request in hand, its phase, the doubts and [`crate::fd_store`]'s messages never
/// change: a guest's CPU waits for what they say.
pub(super) const VERSION: u32 = 1;

/// [`Head`].
pub(super) const HEAD: usize = 0;

/// A [`Request`]: the one in hand.
pub(super) const REQUEST: usize = 64;

/// A [`Phase`]'s word: what is being done with it.
pub(super) const PHASE: usize = 128;

/// The requests that were put aside: [`UncertainRequest`].
pub(super) const UNCERTAIN: [usize; 4] = [192, 272, 352, 432];

/// Whether [`BACKEND`] counts.
pub(super) const BACKEND_VALID: usize = 512;

/// What was agreed on with the daemon.
pub(super) const BACKEND: usize = 520;

/// Which of [`REGISTERS`] counts: 1 or 2; none if 0, and nothing is known if [`UNREADABLE`].
pub(super) const CURRENT: usize = 1024;

/// [`CURRENT`] where the registers could not be written down.
pub(super) const UNREADABLE: u64 = 3;

/// The registers.
pub(super) const REGISTERS: [usize; 2] = [2048, 2048 + REGISTERS_LEN];

/// Bytes for them.
pub(super) const REGISTERS_LEN: usize = 0x3800;

#[allow(clippy::cast_possible_truncation)] // a constant that is smaller
const _: () = assert!(REGISTERS[1] + REGISTERS_LEN <= LEN as usize);
const _: () = assert!(REQUEST + size_of::<Request>() <= PHASE);
const _: () = assert!(UNCERTAIN[3] + size_of::<UncertainRequest>() <= BACKEND_VALID);

/// What every version can read.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
pub(super) struct Head {
    pub(super) magic: u64,
    pub(super) version: u32,
    pub(super) device: u32,
    /// The memory that the driver told; no bytes if it did not.
    pub(super) memory_start: u64,
    pub(super) memory_len: u64,
}

impl Head {
    pub(super) fn new(device: u32) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            device,
            ..Self::default()
        }
    }
}

/// A request whose completion is in doubt.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
pub(super) struct UncertainRequest {
    /// Whether there is one.
    pub(super) set: u64,
    pub(super) request: Request,
}

const _: () = assert!(size_of::<Head>() == 32 && size_of::<UncertainRequest>() == 72);

/// What is being done with the request in hand.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u64)]
pub(super) enum Phase {
    /// There is none.
    Free = 0,
    /// The driver may write it at any time, or has: see [`op`].
    Waiting = 1,
    /// It is given back to the driver, or was.
    Completing = 2,
}

impl Phase {
    /// None where the word is damaged: every version writes one of these.
    pub(super) fn from_word(word: u64) -> Option<Self> {
        match word {
            0 => Some(Self::Free),
            1 => Some(Self::Waiting),
            2 => Some(Self::Completing),
            _ => None,
        }
    }
}

/// How it is told whether the driver has written a request: no request of a guest has this operation.
pub(super) mod op {
    /// Which word of a request says what the guest does.
    pub(crate) const WORD: usize = 2;
    /// What it is before the driver has written.
    pub(crate) const ASK: u64 = 2;
}
