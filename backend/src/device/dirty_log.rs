//! Which pages of the guest's memory the device writes, while the guest migrates (vhost-user,
//! "Migration").
//!
//! A frontend that copies the guest's memory while the guest runs sends SET_LOG_BASE with a bitmap,
//! and sets `VHOST_F_LOG_ALL` among the features. From then on a ring marks the buffers of a
//! request before it returns the request's chain, and the used ring after it has written to it.
//! The whole of a chain's writable buffers counts as written: a failed read leaves bytes behind the
//! reply. Without a bitmap, a ring looks at one flag.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use vhost::vhost_user::message::VhostUserVirtioFeatures;

use crate::sys::dirty_bitmap::DirtyBitmap;

/// Bytes of the pages that a bit stands for (`VHOST_LOG_PAGE`).
const PAGE: u64 = 4096;

/// The log of one device.
#[derive(Debug, Default)]
pub(super) struct DirtyLog {
    /// There is a bitmap, and the frontend has asked for it.
    is_on: AtomicBool,
    is_asked_for: AtomicBool,
    bitmap: RwLock<Option<DirtyBitmap>>,
}

impl DirtyLog {
    /// Whether to mark pages.
    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Marks the pages of `len` bytes at guest address `address`.
    pub(super) fn mark(&self, address: u64, len: u64) {
        let (Some(bitmap), Some(last)) = (&*self.bitmap.read(), len.checked_sub(1)) else {
            return;
        };
        bitmap.mark(address / PAGE, address.saturating_add(last) / PAGE);
    }

    /// The frontend has sent another bitmap.
    pub(super) fn set_bitmap(&self, bitmap: DirtyBitmap) {
        let former = self.bitmap.write().replace(bitmap);
        self.update();
        drop(former);
    }

    /// The frontend has set the features.
    pub(super) fn set_features(&self, features: u64) {
        let asked = features & VhostUserVirtioFeatures::LOG_ALL.bits() != 0;
        self.is_asked_for.store(asked, Ordering::Relaxed);
        self.update();
    }

    fn update(&self) {
        // Under the lock, so that the last of two changes counts.
        let bitmap = self.bitmap.write();
        let is_on = bitmap.is_some() && self.is_asked_for.load(Ordering::Relaxed);
        self.is_on.store(is_on, Ordering::Release);
    }
}
