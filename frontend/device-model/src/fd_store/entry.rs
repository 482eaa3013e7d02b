//! What the fd store keeps of one device, for the device model that serves the device.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gangplank_service::{error_chain, rate_limited};
use parking_lot::{Mutex, MutexGuard};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::client::FdStore;
use super::error::FdStoreError;
use super::eventfd::{as_descriptor, from_descriptor};
use super::message::Slot;

/// A device that this process alone serves.
#[derive(Debug)]
pub struct Entry {
    fd_store: Arc<FdStore>,
    device: u32,
    /// Duplicates of everything that the fd store keeps, for another fd store if this one goes.
    kept: Mutex<BTreeMap<Slot, OwnedFd>>,
    /// Whether the fd store lacks a descriptor that must not be lost.
    is_pending: AtomicBool,
}

impl Entry {
    /// Claims `device` as long as the process lives.
    ///
    /// # Errors
    /// [`FdStoreError::Busy`] if another process serves the device; or the fd store does not
    /// answer.
    pub fn claim(fd_store: Arc<FdStore>, device: u32) -> Result<Self, FdStoreError> {
        fd_store.claim(device)?;
        Ok(Self {
            fd_store,
            device,
            kept: Mutex::default(),
            is_pending: AtomicBool::new(false),
        })
    }

    /// The descriptor that a predecessor has put into `slot`.
    ///
    /// # Errors
    /// The fd store does not answer, or this process has no descriptor left.
    pub fn get(&self, slot: Slot) -> Result<Option<OwnedFd>, FdStoreError> {
        let Some(descriptor) = self.fd_store.get(self.device, slot)? else {
            return Ok(None);
        };
        let duplicate = duplicate(descriptor.as_fd())?;
        self.kept().insert(slot, duplicate);
        Ok(Some(descriptor))
    }

    /// Puts `descriptor` into `slot`.
    ///
    /// # Errors
    /// The fd store does not answer or refuses, or this process has no descriptor left.
    pub fn put(&self, slot: Slot, descriptor: BorrowedFd<'_>) -> Result<(), FdStoreError> {
        let duplicate = duplicate(descriptor)?;
        self.fd_store.put(self.device, slot, descriptor)?;
        self.kept().insert(slot, duplicate);
        Ok(())
    }

    /// Puts a `descriptor` that must not be lost into `slot`. If the fd store does not take it, the
    /// connection is shut down, and [`Entry::renew`] stores everything when there is another one.
    ///
    /// # Errors
    /// This process has no descriptor left.
    pub fn put_permanent(
        &self,
        slot: Slot,
        descriptor: BorrowedFd<'_>,
    ) -> Result<(), FdStoreError> {
        self.kept().insert(slot, duplicate(descriptor)?);
        if let Err(error) = self.fd_store.put(self.device, slot, descriptor) {
            self.is_pending.store(true, Ordering::Relaxed);
            rate_limited!(
                warn,
                "device {} is not kept over a restart yet: {}",
                self.device,
                error_chain(&error)
            );
            self.fd_store.hang_up();
        }
        Ok(())
    }

    /// Whether this process must not end before [`Entry::renew`] has succeeded.
    pub fn is_pending(&self) -> bool {
        self.is_pending.load(Ordering::Relaxed)
    }

    /// Removes the descriptor in `slot`: [`Slot::Backend`] or [`Slot::Journal`].
    ///
    /// # Errors
    /// The fd store does not answer or refuses.
    pub fn remove(&self, slot: Slot) -> Result<(), FdStoreError> {
        self.kept().remove(&slot);
        self.fd_store.remove(self.device, slot)
    }

    /// The eventfd in `slot`; makes one and puts it there if the slot is empty.
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

    /// Stores everything in the fd store of the present connection.
    ///
    /// # Errors
    /// As [`Entry::claim`] and [`Entry::put`].
    pub fn renew(&self) -> Result<(), FdStoreError> {
        self.fd_store.claim(self.device)?;
        for (slot, descriptor) in &*self.kept() {
            self.fd_store
                .put_again(self.device, *slot, descriptor.as_fd())?;
        }
        self.is_pending.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// The device's id.
    pub fn device(&self) -> u32 {
        self.device
    }

    #[cfg(test)]
    pub(super) fn moved_to(self, fd_store: Arc<FdStore>) -> Self {
        Self { fd_store, ..self }
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
