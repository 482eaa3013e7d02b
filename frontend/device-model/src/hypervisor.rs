//! The port: what a device model needs of a hypervisor, in its own words.
//!
//! A hypervisor is one implementation of [`Port`]; a device of the model sees nothing else of it. The guest's CPU stands
//! still from the moment it touches the device's window until its access is completed, and no hypervisor known here sets
//! it a time limit: hence [`Pending`], which completes an access exactly once whatever becomes of its handler.

mod pending;
mod range;

use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

pub use pending::Pending;
pub use range::GuestRange;

/// One virtio device's door to the hypervisor: its window of registers, its interrupt line, its guest's memory.
///
/// All methods but [`Port::next_access`] may be called from any thread at any time.
pub trait Port: Debug + Send + Sync {
    /// Where the device's registers lie in the guest's address space.
    fn window(&self) -> GuestRange;

    /// The only memory of the guest that the device may touch.
    fn memory(&self) -> &GuestMemory;

    /// Waits, without limit, for the guest's next access to the window. At most one thread may wait on a port, and it
    /// lets no signal in from its first call on. [`PortError::Interrupted`] asks to be called again.
    fn next_access(&self) -> Result<Access, PortError>;

    /// Whether the hypervisor's driver may come to harm if a process ends while a thread of it is in [`Port::next_access`].
    fn is_wait_fragile(&self) -> bool {
        false
    }

    /// Ends `access` and lets the guest's CPU go on; a read gets `answer`, zero-extended. Not to be repeated on failure:
    /// by then the hypervisor may have given the request's place to somebody else.
    fn complete(&self, access: Access, answer: u64) -> Result<(), PortError>;

    /// From now on a guest's write of `queue` to the register `QueueNotify` signals `kick`, without an access being seen.
    /// Once per queue; the same eventfd again changes nothing. After the first, no write to that register is seen, whether it is of a queue or not.
    fn connect_kick(&self, queue: u16, kick: &EventFd) -> Result<(), PortError>;

    /// From now on every write to the eventfd `interrupt`, by whichever process, raises the device's interrupt line. Its
    /// counter is left alone; the same eventfd again changes nothing. Not to be signalled before the guest's driver is ready.
    fn connect_interrupt(&self, interrupt: &EventFd) -> Result<(), PortError>;

    /// Undoes [`Port::connect_kick`]: kicks come as accesses again, and wait for whoever serves the device next.
    fn disconnect_kick(&self, queue: u16, kick: &EventFd) -> Result<(), PortError>;

    /// Undoes [`Port::connect_interrupt`].
    fn disconnect_interrupt(&self, interrupt: &EventFd) -> Result<(), PortError>;

    /// Completes, in the background, the accesses of which a predecessor's journal does not say
    /// whether the predecessor completed them. Called once, when the device is served.
    ///
    /// # Errors
    /// Those of starting a thread.
    fn complete_uncertain(self: Arc<Self>) -> io::Result<()> {
        Ok(())
    }
}

/// The memory that a guest shares with the device model, whole: nothing else of the guest can be reached.
#[derive(Debug)]
pub struct GuestMemory {
    /// What is mapped to reach it: shared, read-write, from offset 0, exactly as long as [`Self::range`].
    pub descriptor: OwnedFd,
    /// Where the guest sees it.
    pub range: GuestRange,
}

impl GuestMemory {
    /// The same memory by another descriptor of it. Fails as `dup` does.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            descriptor: self.descriptor.try_clone()?,
            range: self.range,
        })
    }
}

/// One load or store of the guest. Neither cloned nor copied: it is completed once, by being given up.
#[derive(Debug, Eq, PartialEq)]
pub struct Access {
    /// Guest physical address. Nothing has been checked about it.
    pub address: u64,
    /// Bytes; anything but 1, 2, 4 and 8 is the hypervisor's error.
    pub width: u64,
    /// What the guest does there.
    pub operation: Operation,
    /// What the port needs to complete it.
    pub token: Token,
}

/// What an access does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    /// A load.
    Read,
    /// A store, with the whole source register: only the access's width of it counts.
    Write(u64),
    /// Something this program does not know, by the port's number. It is completed like a store.
    Unknown(u64),
}

/// A port's own note of an access, opaque to everybody else: the request as the hypervisor gave it.
#[derive(Debug, Eq, PartialEq)]
pub struct Token(pub [u64; 8]);

/// Why a port did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The wait for an access ended without one.
    #[error("waiting for the guest's next access was interrupted")]
    Interrupted,
    /// The hypervisor took the device away: nothing will come through this port any more.
    #[error("the hypervisor has taken the device away")]
    Gone,
    /// A second thread waited while one was waiting, which could hand both the same access.
    #[error("another thread is waiting for this device's accesses already")]
    Busy,
    /// Anything else.
    #[error("cannot {doing}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}
