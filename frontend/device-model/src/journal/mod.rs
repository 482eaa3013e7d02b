//! What a device model writes down so that a successor can go on, whenever and however it ends.
//!
//! It is shared memory of a file without a name, which the [`crate::fd_store`] keeps: a process that is killed between two
//! instructions leaves behind what it had written until then. So what is here is either one word, or is made valid by one:
//!
//! - **the request in hand**: the hypervisor's driver writes a guest's access straight into this memory, so there is no moment at
//!   which it has been taken and is not here;
//! - **the registers**, in two places, of which a word says which one counts;
//! - **the daemon**: what was agreed on with it, valid while no message is on its way.
//!
//! ```text
//!   free ── lay out ──> waiting ── the driver writes ──> in hand ── about to be completed ──> completing ──> free
//! ```
//!
//! What a successor finds in hand, it handles (again): every access can be, as long as its guest's CPU stands still. What it
//! finds completing has probably been completed and possibly not; it is a [`Unfinished::Uncertain`] one.

mod backend;
mod layout;
mod registers;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use log::error;
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

/// A request as the hypervisor's driver has it, in 64-bit words.
pub type Request = [u64; 8];

/// One device's journal.
#[derive(Debug)]
pub struct Journal {
    file: File,
    map: MmapRegion,
    /// The registers as they were written last, so that what has not changed is not written.
    last: Mutex<Vec<u8>>,
}

/// What a predecessor left undone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unfinished {
    /// It was taken and not completed.
    Taken(Request),
    /// It was about to be completed, with this answer in it.
    Uncertain(Request),
}

/// What is left of a predecessor's device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SavedRegisters {
    /// It never had an access.
    None,
    /// Its registers.
    Valid(Box<Registers>),
    /// Something that cannot be read: another version of this program wrote it.
    Unreadable,
}

/// Why there is no journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The host refuses memory.
    #[error("cannot {doing} the memory in which a device is written down")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file is something else.
    #[error("what is kept as device {device}'s journal is none")]
    Foreign {
        /// The device.
        device: u32,
    },
}

impl Journal {
    /// An empty one.
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

    /// The one that a predecessor has left, and whether it can be read beyond its head.
    ///
    /// # Errors
    /// [`JournalError`], if not even that.
    pub fn open(descriptor: OwnedFd, device: u32) -> Result<(Self, bool), JournalError> {
        let foreign = JournalError::Foreign { device };
        // Whoever touches a page behind a file's end is killed.
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

    /// What the holder keeps.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The memory that the hypervisor's driver told, if it did. This is read whichever version wrote it.
    pub fn memory(&self) -> Option<GuestRange> {
        let head: Head = self.read(HEAD);
        GuestRange::new(head.memory_start, head.memory_len)
    }

    /// Notes the memory that the hypervisor's driver told.
    pub fn set_memory(&self, memory: Option<GuestRange>) {
        let mut head: Head = self.read(HEAD);
        head.memory_start = memory.map_or(0, GuestRange::start);
        head.memory_len = memory.map_or(0, GuestRange::len);
        self.write(HEAD, head);
    }

    /// Where the driver is to put a guest's access, laid out so that it can be told whether it has.
    pub fn prepare_attach(&self) -> VolatileSlice<'_> {
        let mut empty: Request = [0; 8];
        empty[op::WORD] = op::ASK;
        self.write(REQUEST, empty);
        self.set_phase(Phase::Waiting);
        self.request_slice()
    }

    /// What the driver has put there.
    pub fn request(&self) -> Request {
        self.read(REQUEST)
    }

    /// Notes that `request` is about to be completed, as it stands: where the driver is to take it from.
    pub fn begin_complete(&self, request: Request) -> VolatileSlice<'_> {
        self.write(REQUEST, request);
        self.set_phase(Phase::Completing);
        self.request_slice()
    }

    /// Notes that nothing is in hand.
    pub fn end_request(&self) {
        self.set_phase(Phase::Free);
    }

    /// What a predecessor left in hand.
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
                error!("the journal of the access in hand is damaged: its phase is {word:#x}");
                (request[op::WORD] != op::ASK).then_some(Unfinished::Uncertain(request))
            }
        }
    }

    /// Puts a doubtful request aside, so that others can be served. There is room for a few; beyond
    /// that the first is dropped, and its guest's CPU may stand still for ever.
    pub fn set_aside(&self, request: Request) {
        if self.uncertain().contains(&request) {
            return;
        }
        let free = UNCERTAIN
            .iter()
            .find(|at| self.read::<UncertainRequest>(**at).set == 0);
        let at = *free.unwrap_or_else(|| {
            error!(
                "more accesses are in doubt than the journal has room for; one is dropped: {:x?}",
                self.read::<UncertainRequest>(UNCERTAIN[0]).request
            );
            &UNCERTAIN[0]
        });
        self.write(at, UncertainRequest { set: 0, request });
        self.write(at, UncertainRequest { set: 1, request });
    }

    /// The requests that were put aside.
    pub fn uncertain(&self) -> Vec<Request> {
        let doubts = UNCERTAIN
            .iter()
            .map(|at| self.read::<UncertainRequest>(*at));
        doubts
            .filter(|doubt| doubt.set != 0)
            .map(|doubt| doubt.request)
            .collect()
    }

    /// Drops the requests for which `is_settled`.
    pub fn drop_uncertain(&self, is_settled: impl Fn(&Request) -> bool) {
        for at in UNCERTAIN {
            let doubt: UncertainRequest = self.read(at);
            if doubt.set != 0 && is_settled(&doubt.request) {
                self.write(at, UncertainRequest { set: 0, ..doubt });
            }
        }
    }

    /// Forgets the registers and the daemon, as nobody can tell what they mean. The requests stay: they are written alike by every
    /// version.
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
    /// Outside the memory; all offsets are constants of the layout, which is asserted to fit.
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

    /// By one instruction; what was written before is there before it.
    fn store<T: AtomicAccess>(&self, offset: usize, word: T) {
        let stored = self
            .slice(offset, size_of::<T>())
            .store(word, 0, Ordering::Release);
        stored.expect("the place is aligned");
    }
}

/// Its size stays as it is.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);
