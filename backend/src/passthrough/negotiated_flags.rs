//! The flags of a session.

use std::sync::atomic::{AtomicU64, Ordering};

use gangplank_fuse::InitFlags;

/// The flags that INIT negotiated.
#[derive(Debug, Default)]
pub(super) struct NegotiatedFlags {
    flags: AtomicU64,
}

impl NegotiatedFlags {
    /// Whether all of `flags` were negotiated.
    pub(super) fn has(&self, flags: InitFlags) -> bool {
        InitFlags::from_bits_retain(self.flags.load(Ordering::Relaxed)).contains(flags)
    }

    /// Sets the negotiated flags.
    pub(super) fn set(&self, flags: InitFlags) {
        self.flags.store(flags.bits(), Ordering::Relaxed);
    }

    /// Ends the session: no flag is negotiated.
    pub(super) fn clear(&self) {
        self.flags.store(0, Ordering::Relaxed);
    }
}
