//! What is kept of one device, as the device model that serves it sees it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gangplank_service::error_chain;
use log::warn;
use parking_lot::{Mutex, MutexGuard};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::client::FdStore;
use super::error::FdStoreError;
use super::eventfd::{as_descriptor, from_descriptor};
use super::message::Slot;

/// A device that this process, and no other, serves.
#[derive(Debug)]
pub struct Entry {
    holder: Arc<FdStore>,
    device: u32,
    /// Duplicates of all that the holder keeps, to be kept by another should it go.
    kept: Mutex<BTreeMap<Slot, OwnedFd>>,
    /// Whether something that must not be lost is in this process only.
    is_pending: AtomicBool,
}

impl Entry {
    /// Claims `device` as long as the process lives.
    ///
    /// # Errors
    /// [`FdStoreError::Busy`] where another process serves it; or the holder does not answer.
    pub fn claim(holder: Arc<FdStore>, device: u32) -> Result<Self, FdStoreError> {
        holder.claim(device)?;
        Ok(Self {
            holder,
            device,
            kept: Mutex::default(),
            is_pending: AtomicBool::new(false),
        })
    }

    /// What a predecessor has left in `slot`.
    ///
    /// # Errors
    /// The holder does not answer, or there is no descriptor left.
    pub fn get(&self, slot: Slot) -> Result<Option<OwnedFd>, FdStoreError> {
        let Some(descriptor) = self.holder.get(self.device, slot)? else {
            return Ok(None);
        };
        let duplicate = duplicate(descriptor.as_fd())?;
        self.kept().insert(slot, duplicate);
        Ok(Some(descriptor))
    }

    /// Has `descriptor` kept.
    ///
    /// # Errors
    /// The holder does not answer, or will not; or there is no descriptor left.
    pub fn put(&self, slot: Slot, descriptor: BorrowedFd<'_>) -> Result<(), FdStoreError> {
        let duplicate = duplicate(descriptor)?;
        self.holder.put(self.device, slot, descriptor)?;
        self.kept().insert(slot, duplicate);
        Ok(())
    }

    /// Has `descriptor` kept, in whatever time it takes: it must not be lost. Where the holder does not do it at once, the connection
    /// is ended, and everything is kept when there is another: see [`Entry::renew`].
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn put_permanent(
        &self,
        slot: Slot,
        descriptor: BorrowedFd<'_>,
    ) -> Result<(), FdStoreError> {
        self.kept().insert(slot, duplicate(descriptor)?);
        if let Err(error) = self.holder.put(self.device, slot, descriptor) {
            self.is_pending.store(true, Ordering::Relaxed);
            warn!(
                "device {} is not kept yet: {}",
                self.device,
                error_chain(&error)
            );
            self.holder.hang_up();
        }
        Ok(())
    }

    /// Whether this process must not end before [`Entry::renew`] has succeeded.
    pub fn is_pending(&self) -> bool {
        self.is_pending.load(Ordering::Relaxed)
    }

    /// Has what is in `slot` let go of: [`Slot::Daemon`] or [`Slot::Journal`].
    ///
    /// # Errors
    /// The holder does not answer, or will not.
    pub fn remove(&self, slot: Slot) -> Result<(), FdStoreError> {
        self.kept().remove(&slot);
        self.holder.remove(self.device, slot)
    }

    /// The eventfd that is kept in `slot`; a new one if there is none.
    ///
    /// # Errors
    /// As [`Entry::put`].
    pub fn eventfd(&self, slot: Slot) -> Result<EventFd, FdStoreError> {
        if let Some(left) = self.get(slot)? {
            return Ok(from_descriptor(left));
        }
        let made = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK);
        let made = made.map_err(|source| FdStoreError::System {
            doing: "make an eventfd",
            source,
        })?;
        self.put(slot, as_descriptor(&made))?;
        Ok(made)
    }

    /// Has everything kept by the holder that the connection leads to by now.
    ///
    /// # Errors
    /// As [`Entry::claim`] and [`Entry::put`].
    pub fn renew(&self) -> Result<(), FdStoreError> {
        self.holder.claim(self.device)?;
        for (slot, descriptor) in &*self.kept() {
            self.holder
                .put_again(self.device, *slot, descriptor.as_fd())?;
        }
        self.is_pending.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Which device it is.
    pub fn device(&self) -> u32 {
        self.device
    }

    #[cfg(test)]
    pub(super) fn moved_to(self, holder: Arc<FdStore>) -> Self {
        Self { holder, ..self }
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<Slot, OwnedFd>> {
        self.kept.lock()
    }
}

fn duplicate(descriptor: BorrowedFd<'_>) -> Result<OwnedFd, FdStoreError> {
    let duplicate = descriptor.try_clone_to_owned();
    duplicate.map_err(|source| FdStoreError::System {
        doing: "duplicate a descriptor",
        source,
    })
}
