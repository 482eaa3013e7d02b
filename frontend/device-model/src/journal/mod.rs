//! The journal of a device: what a successor needs in order to go on, whenever and however this
//! process ends.
//!
//! It is an unnamed file in memory, which the [`crate::fd_store`] keeps. A process that is killed
//! between two instructions leaves what it had written until then. Everything in the journal is
//! therefore one word, or is made valid by one:
//!
//! - **the request**: the hypervisor's driver writes a guest's access straight into this memory, so
//!   that no request can be taken and missing here;
//! - **the registers**, in two copies, and a word that says which copy is valid;
//! - **the backend**: the state of the connection, valid while no message is on its way.
//!
//! ```text
//!   free ── prepare_attach ─> waiting ── driver writes ─> taken ── begin_complete ─> completing
//!     ^                                                                                │
//!     └──────────────────────────────── end_request ───────────────────────────────────┘
//! ```
//!
//! A successor handles a request that was taken, possibly for the second time: that does no harm as
//! long as the guest's CPU waits. A request in the phase `completing` has probably been completed
//! and possibly not; it is [`Unfinished::Uncertain`].

mod backend;
mod layout;
mod registers;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use gangplank_service::rate_limited;
use parking_lot::Mutex;
use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create,
};
use rustix::io::Errno;
use vm_memory::{AtomicAccess, Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::hypervisor::GuestRange;
use crate::mmio::Registers;
use layout::{
    HEAD, Head, LEN, MAGIC, PHASE, Phase, REQUEST, UNCERTAIN, UncertainRequest, VERSION, op,
};

/// A request of the hypervisor's driver, in 64-bit words.
pub type Request = [u64; 8];

/// One device's journal.
#[derive(Debug)]
pub struct Journal {
    file: File,
    map: MmapRegion,
    /// The registers as written last. Unchanged registers are not written again.
    last: Mutex<Vec<u8>>,
}

/// A request that a predecessor did not finish.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unfinished {
    /// It was taken and not completed.
    Taken(Request),
    /// It was being completed, with this answer in it.
    Uncertain(Request),
}

/// The registers that a predecessor has saved.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SavedRegisters {
    /// None: the guest has made no access.
    None,
    /// Its registers.
    Valid(Box<Registers>),
    /// Unreadable: another version of this program wrote them, or they are damaged.
    Unreadable,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The host refused memory.
    #[error("cannot {doing} the memory of a device's journal")]
    System {
        /// The verb.
        doing: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is not this device's journal.
    #[error("the file kept as device {device}'s journal is not a journal of that device")]
    Foreign {
        /// The device.
        device: u32,
    },
}

impl Journal {
    /// Makes an empty journal.
    ///
    /// # Errors
    /// [`JournalError::System`].
    pub fn new(device: u32) -> Result<Self, JournalError> {
        let failed = |errno: Errno| JournalError::System {
            doing: "make",
            source: errno.into(),
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("gangplank-journal", flags).map_err(failed)?;
        ftruncate(&file, LEN).map_err(failed)?;
        fcntl_add_seals(&file, SEALS).map_err(failed)?;
        let journal = Self::map(file.into())?;
        journal.write(HEAD, Head::new(device));
        Ok(journal)
    }

    /// Opens a predecessor's journal. Also returns whether its version is this program's; only the
    /// head, the request and the uncertain requests can be read otherwise.
    ///
    /// # Errors
    /// [`JournalError`] if the file is too short, not sealed, or not this device's journal.
    pub fn open(descriptor: OwnedFd, device: u32) -> Result<(Self, bool), JournalError> {
        let foreign = JournalError::Foreign { device };
        // Access to a page beyond the end of a file kills the process.
        let sealed = fcntl_get_seals(&descriptor).is_ok_and(|seals| seals.contains(SEALS));
        let long = rustix::fs::fstat(&descriptor)
            .is_ok_and(|file| u64::try_from(file.st_size).is_ok_and(|len| len >= LEN));
        if !sealed || !long {
            return Err(foreign);
        }
        let journal = Self::map(descriptor.into())?;
        let head: Head = journal.read(HEAD);
        if head.magic != MAGIC || head.device != device {
            return Err(foreign);
        }
        Ok((journal, head.version == VERSION))
    }

    /// The journal's file, for the fd store.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The shared memory that the hypervisor's driver reported, if it did. Every version writes
    /// this alike.
    pub fn memory(&self) -> Option<GuestRange> {
        let head: Head = self.read(HEAD);
        GuestRange::new(head.memory_start, head.memory_len)
    }

    /// Saves the shared memory that the hypervisor's driver reports.
    pub fn set_memory(&self, memory: Option<GuestRange>) {
        let mut head: Head = self.read(HEAD);
        head.memory_start = memory.map_or(0, GuestRange::start);
        head.memory_len = memory.map_or(0, GuestRange::len);
        self.write(HEAD, head);
    }

    /// The memory for the driver's next request, prepared so that a successor can tell whether the
    /// driver has written one.
    pub fn prepare_attach(&self) -> VolatileSlice<'_> {
        let mut empty: Request = [0; 8];
        empty[op::WORD] = op::ASK;
        self.write(REQUEST, empty);
        self.set_phase(Phase::Waiting);
        self.request_slice()
    }

    /// The request that the driver has written.
    pub fn request(&self) -> Request {
        self.read(REQUEST)
    }

    /// Notes that `request` is about to be completed. Returns the memory that the driver is to take
    /// it from.
    pub fn begin_complete(&self, request: Request) -> VolatileSlice<'_> {
        self.write(REQUEST, request);
        self.set_phase(Phase::Completing);
        self.request_slice()
    }

    /// Notes that there is no request.
    pub fn end_request(&self) {
        self.set_phase(Phase::Free);
    }

    /// The request that a predecessor did not finish.
    pub fn unfinished(&self) -> Option<Unfinished> {
        let request = self.request();
        let word = self.load(PHASE);
        match Phase::from_word(word) {
            Some(Phase::Completing) => Some(Unfinished::Uncertain(request)),
            Some(Phase::Waiting) if request[op::WORD] != op::ASK => {
                Some(Unfinished::Taken(request))
            }
            Some(Phase::Waiting | Phase::Free) => None,
            None => {
                rate_limited!(
                    error,
                    "the journal is damaged: the request's phase is {word:#x}"
                );
                (request[op::WORD] != op::ASK).then_some(Unfinished::Uncertain(request))
            }
        }
    }

    /// Sets an uncertain request aside, so that others can be handled. If there are too many, the
    /// first one is dropped, and its guest's CPU may wait for ever.
    pub fn set_aside(&self, request: Request) {
        if self.uncertain().contains(&request) {
            return;
        }
        let free = UNCERTAIN
            .iter()
            .find(|at| self.read::<UncertainRequest>(**at).set == 0);
        let at = *free.unwrap_or_else(|| {
            rate_limited!(
                error,
                "the journal has no room for another uncertain request, one is dropped: {:x?}",
                self.read::<UncertainRequest>(UNCERTAIN[0]).request
            );
            &UNCERTAIN[0]
        });
        self.write(at, UncertainRequest { set: 0, request });
        self.write(at, UncertainRequest { set: 1, request });
    }

    /// The uncertain requests.
    pub fn uncertain(&self) -> Vec<Request> {
        let doubts = UNCERTAIN
            .iter()
            .map(|at| self.read::<UncertainRequest>(*at));
        doubts
            .filter(|doubt| doubt.set != 0)
            .map(|doubt| doubt.request)
            .collect()
    }

    /// Drops the uncertain requests for which `is_settled`.
    pub fn drop_uncertain(&self, is_settled: impl Fn(&Request) -> bool) {
        for at in UNCERTAIN {
            let doubt: UncertainRequest = self.read(at);
            if doubt.set != 0 && is_settled(&doubt.request) {
                self.write(at, UncertainRequest { set: 0, ..doubt });
            }
        }
    }

    /// Forgets the registers and the backend's state of an unknown version. The requests stay:
    /// every version writes them alike.
    pub fn reset(&self) {
        let head: Head = self.read(HEAD);
        self.clear_backend();
        self.forget_registers();
        let version = VERSION;
        self.write(HEAD, Head { version, ..head });
    }

    fn map(file: File) -> Result<Self, JournalError> {
        let failed = |source| JournalError::System {
            doing: "map",
            source,
        };
        let size = usize::try_from(LEN).map_err(|_| failed(Errno::NOMEM.into()))?;
        let backing = FileOffset::new(file.try_clone().map_err(failed)?, 0);
        let map = MmapRegion::from_file(backing, size);
        let map = map.map_err(|error| failed(io::Error::other(error)))?;
        Ok(Self {
            file,
            map,
            last: Mutex::default(),
        })
    }

    fn request_slice(&self) -> VolatileSlice<'_> {
        self.slice(REQUEST, size_of::<Request>())
    }

    fn set_phase(&self, phase: Phase) {
        self.store(PHASE, phase as u64);
    }

    /// # Panics
    /// If the range is outside the journal. All offsets are constants of the layout, which is
    /// asserted to fit.
    fn slice(&self, offset: usize, len: usize) -> VolatileSlice<'_> {
        let slice = self.map.as_volatile_slice().subslice(offset, len);
        slice.expect("the layout fits into the memory")
    }

    fn read<T: FromBytes + IntoBytes>(&self, offset: usize) -> T {
        let mut value = T::new_zeroed();
        self.slice(offset, size_of::<T>())
            .copy_to(value.as_mut_bytes());
        value
    }

    fn write<T: IntoBytes + Immutable>(&self, offset: usize, value: T) {
        self.slice(offset, size_of::<T>())
            .copy_from(value.as_bytes());
    }

    fn load(&self, offset: usize) -> u64 {
        let word = self
            .slice(offset, size_of::<u64>())
            .load(0, Ordering::Acquire);
        word.expect("the place is aligned")
    }

    /// Stores with one instruction, after everything that was written before (release).
    fn store<T: AtomicAccess>(&self, offset: usize, word: T) {
        let stored = self
            .slice(offset, size_of::<T>())
            .store(word, 0, Ordering::Release);
        stored.expect("the place is aligned");
    }
}

/// The file's size never changes.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);
