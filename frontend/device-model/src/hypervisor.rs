//! The port: what the device model needs of a hypervisor.
//!
//! A device sees nothing of a hypervisor but its [`Port`]. The guest's CPU waits from its access to
//! the device's window until the access is completed, and no known hypervisor sets a time limit.
//! [`Pending`] therefore completes an access exactly once, whatever becomes of its handler.

mod pending;
mod range;

use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

pub use pending::Pending;
pub use range::GuestRange;

/// One virtio device at the hypervisor: its window of registers, its interrupt line, its guest's
/// memory.
///
/// All methods but [`Port::next_access`] may be called from any thread at any time.
pub trait Port: Debug + Send + Sync {
    /// Where the device's registers lie in the guest's address space.
    fn window(&self) -> GuestRange;

    /// The only memory of the guest that the device may touch.
    fn memory(&self) -> &GuestMemory;

    /// Waits, without limit, for the guest's next access to the window. At most one thread may wait
    /// on a port. The first call blocks all signals on that thread. After
    /// [`PortError::Interrupted`] the caller calls again.
    fn next_access(&self) -> Result<Access, PortError>;

    /// Whether the end of a process can harm the hypervisor's driver while a thread of the process
    /// is in [`Port::next_access`].
    fn is_wait_fragile(&self) -> bool {
        false
    }

    /// Completes `access`, so that the guest's CPU goes on. A read gets `answer`, zero-extended.
    /// Must not be repeated after an error: the hypervisor may have given the request's slot to
    /// another request.
    fn complete(&self, access: Access, answer: u64) -> Result<(), PortError>;

    /// Makes a guest's write of `queue` to the register `QueueNotify` signal `kick` instead of
    /// coming as an access. Called once per queue; a second call with the same eventfd changes
    /// nothing. After the first call, no write to that register comes as an access, whichever queue
    /// it is for.
    fn connect_kick(&self, queue: u16, kick: &EventFd) -> Result<(), PortError>;

    /// Makes every write to the eventfd `interrupt`, by any process, raise the device's interrupt
    /// line. The counter of the eventfd stays. A second call with the same eventfd changes nothing.
    /// The eventfd must not be signalled before the guest's driver is ready.
    fn connect_interrupt(&self, interrupt: &EventFd) -> Result<(), PortError>;

    /// Undoes [`Port::connect_kick`]: kicks come as accesses again, which wait for the next process
    /// that serves the device.
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

/// The memory that a guest shares with the device model. No other memory of the guest can be
/// reached.
#[derive(Debug)]
pub struct GuestMemory {
    /// Mapped to reach the memory: shared, read-write, from offset 0, exactly as long as
    /// [`Self::range`].
    pub descriptor: OwnedFd,
    /// The guest addresses of the memory.
    pub range: GuestRange,
}

impl GuestMemory {
    /// The same memory by a duplicate of the descriptor. Fails as `dup` does.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            descriptor: self.descriptor.try_clone()?,
            range: self.range,
        })
    }
}

/// One load or store of the guest. It is neither `Clone` nor `Copy`: completing it consumes it.
#[derive(Debug, Eq, PartialEq)]
pub struct Access {
    /// Guest physical address, unchecked.
    pub address: u64,
    /// Bytes. Any value but 1, 2, 4 and 8 is an error of the hypervisor.
    pub width: u64,
    /// Load or store.
    pub operation: Operation,
    /// What the port needs to complete it.
    pub token: Token,
}

/// The kind of an access.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    /// A load.
    Read,
    /// A store, with the whole source register; only the lowest `width` bytes count.
    Write(u64),
    /// A kind that this program does not know, by the port's number. It is completed like a store.
    Unknown(u64),
}

/// The request as the hypervisor gave it, for the port alone.
#[derive(Debug, Eq, PartialEq)]
pub struct Token(pub [u64; 8]);

/// Why a port did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// A wait for an access ended without one.
    #[error("waiting for the guest's next access was interrupted")]
    Interrupted,
    /// The hypervisor has taken the device away: no access will come through this port any more.
    #[error("the hypervisor has taken the device away")]
    Gone,
    /// Two threads were to wait at the same time. Both might get the same access.
    #[error("another thread is waiting for this device's accesses already")]
    Busy,
    /// Another error.
    #[error("cannot {doing}")]
    Failed {
        /// The verb.
        doing: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}
