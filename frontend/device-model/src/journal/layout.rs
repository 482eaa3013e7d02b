//! The layout of a journal.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Request;

/// Bytes of a journal.
pub(super) const LEN: u64 = 0x8000;

/// "GPJOURNL", little-endian.
pub(super) const MAGIC: u64 = 0x4c4e_5255_4f4a_5047;

/// Version of the registers and the backend's state. The head, the request with its phase, the
/// uncertain requests and [`crate::fd_store`]'s messages never change, because a guest's CPU waits
/// for them.
pub(super) const VERSION: u32 = 1;

/// Offset of [`Head`].
pub(super) const HEAD: usize = 0;

/// Offset of the [`Request`] that is being handled.
pub(super) const REQUEST: usize = 64;

/// Offset of its [`Phase`].
pub(super) const PHASE: usize = 128;

/// Offsets of the uncertain requests: [`UncertainRequest`].
pub(super) const UNCERTAIN: [usize; 4] = [192, 272, 352, 432];

/// Offset of the word that says whether [`BACKEND`] is valid.
pub(super) const BACKEND_VALID: usize = 512;

/// Offset of the state of the connection to the backend.
pub(super) const BACKEND: usize = 520;

/// Offset of the word that says which of [`REGISTERS`] is valid: 1 or 2; 0 for neither,
/// [`UNREADABLE`] if nothing is known.
pub(super) const CURRENT: usize = 1024;

/// Value of [`CURRENT`] if the registers did not fit.
pub(super) const UNREADABLE: u64 = 3;

/// Offsets of the two copies of the registers.
pub(super) const REGISTERS: [usize; 2] = [2048, 2048 + REGISTERS_LEN];

/// Bytes of each copy.
pub(super) const REGISTERS_LEN: usize = 0x3800;

#[allow(clippy::cast_possible_truncation)] // a constant that is smaller
const _: () = assert!(REGISTERS[1] + REGISTERS_LEN <= LEN as usize);
const _: () = assert!(REQUEST + size_of::<Request>() <= PHASE);
const _: () = assert!(UNCERTAIN[3] + size_of::<UncertainRequest>() <= BACKEND_VALID);

/// Every version reads this.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
pub(super) struct Head {
    pub(super) magic: u64,
    pub(super) version: u32,
    pub(super) device: u32,
    /// The shared memory that the driver reported; no bytes if it reported none.
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

/// A request of which it is uncertain whether it was completed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
pub(super) struct UncertainRequest {
    /// Whether this slot is in use.
    pub(super) set: u64,
    pub(super) request: Request,
}

const _: () = assert!(size_of::<Head>() == 32 && size_of::<UncertainRequest>() == 72);

/// What is being done with the request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u64)]
pub(super) enum Phase {
    /// There is no request.
    Free = 0,
    /// The driver may write a request at any time, or has written one: see [`op`].
    Waiting = 1,
    /// The request is being given back to the driver, or was.
    Completing = 2,
}

impl Phase {
    /// `None` if the word is damaged: every version writes one of these.
    pub(super) fn from_word(word: u64) -> Option<Self> {
        match word {
            0 => Some(Self::Free),
            1 => Some(Self::Waiting),
            2 => Some(Self::Completing),
            _ => None,
        }
    }
}

/// Tells whether the driver has written a request: no request of a guest has this operation.
pub(super) mod op {
    /// The word of a request that has the operation.
    pub(crate) const WORD: usize = 2;
    /// The operation before the driver has written.
    pub(crate) const ASK: u64 = 2;
}
