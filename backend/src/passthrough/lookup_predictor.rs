//! Predicts whether a lookup finds an inode that the guest does not know.

use std::sync::atomic::{AtomicU8, Ordering};

use super::inode_table::IsNew;

/// Predicts whether the next lookup finds an inode that the guest does not know.
///
/// For an inode that the guest knows, one `statx(2)` on the name is enough. For a new one the
/// daemon has to open the name; opening first saves the `statx(2)` on the name. Guests tend to
/// revalidate known names, or to walk through new ones, many times in a row.
#[derive(Debug, Default)]
pub(super) struct LookupPredictor {
    /// Number of lookups in a row that found a new inode, at most `THRESHOLD`.
    new_in_a_row: AtomicU8,
}

impl LookupPredictor {
    /// Number of new inodes in a row after which the next is predicted to be new.
    const THRESHOLD: u8 = 2;

    /// Whether the next lookup is expected to find a new inode.
    pub(super) fn predicts_new(&self) -> bool {
        self.new_in_a_row.load(Ordering::Relaxed) >= Self::THRESHOLD
    }

    /// The name does not exist. Opening such a name costs more than a `statx(2)`.
    pub(super) fn record_failure(&self) {
        self.record(IsNew::No);
    }

    /// Records what a lookup found.
    pub(super) fn record(&self, is_new: IsNew) {
        let new = match is_new {
            IsNew::Yes => (self.new_in_a_row.load(Ordering::Relaxed) + 1).min(Self::THRESHOLD),
            IsNew::No => 0,
        };
        // Concurrent updates may lose one, which costs one system call.
        self.new_in_a_row.store(new, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_row_of_new_inodes_lets_expect_another() {
        let predictor = LookupPredictor::default();
        for is_new in [IsNew::Yes, IsNew::No, IsNew::Yes] {
            predictor.record(is_new);
            assert!(!predictor.predicts_new());
        }
        for _ in 0..1000 {
            predictor.record(IsNew::Yes);
            assert!(predictor.predicts_new());
        }
        predictor.record(IsNew::No);
        assert!(!predictor.predicts_new());
    }
}
