//! Watching one guest's memory for being cut off behind the daemon's back.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::sys::guest_memory::{Guarded, tears};

/// The guarded mappings of one guest.
#[derive(Default)]
pub(super) struct Guards {
    /// Each memory that is still in use: requests keep the one they were found in.
    memories: Mutex<Vec<(Weak<GuestMemoryMmap>, Vec<Guarded>)>>,
    /// The count of [`tears`] that was looked into last.
    seen: AtomicUsize,
    torn: AtomicBool,
}

impl Guards {
    /// Guards `memory` from now on, and goes on guarding what is still in use.
    ///
    /// # Errors
    /// There are too many mappings.
    pub(super) fn add(&self, memory: &Arc<GuestMemoryMmap>) -> io::Result<()> {
        let guarded = memory
            .iter()
            .map(|region| {
                Guarded::new(
                    region.as_ptr(),
                    usize::try_from(region.len()).unwrap_or(usize::MAX),
                )
            })
            .collect::<io::Result<Vec<_>>>()?;
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        memories.retain(|(memory, _)| memory.strong_count() > 0);
        memories.push((Arc::downgrade(memory), guarded));
        Ok(())
    }

    /// Whether a part of the guest's memory turned out to be gone.
    pub(super) fn is_torn(&self) -> bool {
        let count = tears();
        if self.seen.swap(count, Ordering::Relaxed) != count {
            let memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
            if memories
                .iter()
                .flat_map(|(_, guarded)| guarded)
                .any(Guarded::is_torn)
            {
                self.torn.store(true, Ordering::Relaxed);
            }
        }
        self.torn.load(Ordering::Relaxed)
    }
}
