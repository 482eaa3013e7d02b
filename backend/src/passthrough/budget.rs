//! The descriptor budget: how many descriptors the guest may hold.
//!
//! Descriptors of most inodes can be evicted when another one is needed. Those of open files, of
//! locks and of inodes that cannot be reopened stay until the guest gives them up. Open files may
//! not take a small reserve, so that look-ups go on, by evicting, when the guest has opened all the
//! files that it may.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The number of descriptors held for the guest, and its limits.
#[derive(Debug)]
pub(super) struct Budget {
    held: Count,
    /// The descriptors of open files and locks among them.
    files: Count,
    /// The descriptors of inodes that cannot be evicted among them.
    pinned_inodes: AtomicU64,
}

/// A number with a limit.
#[derive(Debug)]
struct Count {
    now: AtomicU64,
    limit: u64,
}

/// What a descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PermitFor {
    /// An open file or a lock.
    File,
    /// An inode, or a file that is open during one request.
    Inode,
}

/// Why there is no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exhausted {
    /// The guest has opened all the files that it may.
    Files,
    /// All descriptors are in use.
    Budget,
}

/// The right to hold one descriptor. Dropping it returns it to the budget.
#[derive(Debug)]
pub(super) struct Permit {
    budget: Option<Arc<Budget>>,
    used_for: PermitFor,
    is_pinned: AtomicBool,
}

impl Count {
    fn new(limit: u64) -> Self {
        Self {
            now: AtomicU64::new(0),
            limit,
        }
    }

    /// Adds one unless the limit is reached.
    fn add(&self) -> bool {
        let add = |now| (now < self.limit).then_some(now + 1);
        self.now
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .is_ok()
    }

    fn subtract(&self) {
        self.now.fetch_sub(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }
}

impl Budget {
    /// Creates an unused budget of at least 1.
    pub(super) fn new(limit: u64) -> Arc<Self> {
        let limit = limit.max(1);
        Arc::new(Self {
            held: Count::new(limit),
            files: Count::new(limit - reserve(limit)),
            pinned_inodes: AtomicU64::new(0),
        })
    }

    /// Limit of descriptors.
    pub(super) fn limit(&self) -> u64 {
        self.held.limit
    }

    /// Number of descriptors held.
    pub(super) fn held(&self) -> u64 {
        self.held.get()
    }

    /// Number of descriptors held for open files and locks.
    pub(super) fn files(&self) -> u64 {
        self.files.get()
    }

    /// Number of descriptors held for inodes that cannot be evicted.
    pub(super) fn pinned_inodes(&self) -> u64 {
        self.pinned_inodes.load(Ordering::Relaxed)
    }

    /// Counts descriptors that an earlier worker opened for inodes, and for files and locks.
    pub(super) fn count_earlier(&self, inodes: u64, files: u64) {
        let all = inodes.saturating_add(files);
        self.held.now.fetch_add(all, Ordering::Relaxed);
        self.files.now.fetch_add(files, Ordering::Relaxed);
    }

    /// Acquires a permit.
    ///
    /// # Errors
    /// Which limit is reached.
    pub(super) fn acquire(self: &Arc<Self>, used_for: PermitFor) -> Result<Permit, Exhausted> {
        if used_for == PermitFor::File && !self.files.add() {
            return Err(Exhausted::Files);
        }
        if !self.held.add() {
            if used_for == PermitFor::File {
                self.files.subtract();
            }
            return Err(Exhausted::Budget);
        }
        Ok(Permit {
            budget: Some(Arc::clone(self)),
            used_for,
            is_pinned: AtomicBool::new(false),
        })
    }
}

/// Descriptors out of `limit` that open files may not take: a sixteenth, from 8 up to 1024. At most
/// half.
fn reserve(limit: u64) -> u64 {
    (limit / 16).clamp(8, 1024).min(limit / 2)
}

impl Permit {
    /// A permit that does not count against any budget.
    pub(super) fn uncounted() -> Self {
        Self {
            budget: None,
            used_for: PermitFor::Inode,
            is_pinned: AtomicBool::new(false),
        }
    }

    /// The permit of a descriptor that [`Budget::count_earlier`] has counted.
    pub(super) fn of_counted(budget: &Arc<Budget>, used_for: PermitFor) -> Self {
        Self {
            budget: Some(Arc::clone(budget)),
            used_for,
            is_pinned: AtomicBool::new(false),
        }
    }

    fn pin(&self) {
        if !self.is_pinned.swap(true, Ordering::Relaxed)
            && let Some(budget) = &self.budget
        {
            budget.pinned_inodes.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(budget) = &self.budget else {
            return;
        };
        if self.is_pinned.load(Ordering::Relaxed) {
            budget.pinned_inodes.fetch_sub(1, Ordering::Relaxed);
        }
        if self.used_for == PermitFor::File {
            budget.files.subtract();
        }
        budget.held.subtract();
    }
}

/// A descriptor that counts against the budget.
#[derive(Debug)]
pub(super) struct Descriptor {
    fd: OwnedFd,
    permit: Permit,
}

impl Descriptor {
    /// Combines a descriptor with its permit.
    pub(super) fn new(fd: OwnedFd, permit: Permit) -> Self {
        Self { fd, permit }
    }

    /// Counts the descriptor as pinned because its inode cannot be reopened.
    pub(super) fn pin(&self) {
        self.permit.pin();
    }

    /// Whether the descriptor is pinned.
    pub(super) fn is_pinned(&self) -> bool {
        self.permit.is_pinned.load(Ordering::Relaxed)
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(budget: &Arc<Budget>, used_for: PermitFor) -> (Vec<Permit>, Exhausted) {
        let mut taken = Vec::new();
        loop {
            match budget.acquire(used_for) {
                Ok(permit) => taken.push(permit),
                Err(exhausted) => return (taken, exhausted),
            }
        }
    }

    #[test]
    fn open_files_leave_the_reserve_to_inodes() {
        for (limit, reserve) in [(8, 4), (64, 8), (1600, 100), (1_000_000, 1024)] {
            let budget = Budget::new(limit);
            let (files, exhausted) = take_all(&budget, PermitFor::File);
            assert_eq!(files.len() as u64, limit - reserve);
            assert_eq!(exhausted, Exhausted::Files);
            let (inodes, exhausted) = take_all(&budget, PermitFor::Inode);
            assert_eq!(inodes.len() as u64, reserve);
            assert_eq!(exhausted, Exhausted::Budget);
            drop(files);
            assert_eq!((budget.held(), budget.files()), (reserve, 0));
        }
    }

    #[test]
    fn a_refused_permit_counts_nowhere() {
        let budget = Budget::new(16);
        let (inodes, _) = take_all(&budget, PermitFor::Inode);
        assert_eq!(inodes.len(), 16);
        let refused = budget.acquire(PermitFor::File).map(drop);
        assert_eq!(refused, Err(Exhausted::Budget));
        assert_eq!((budget.held(), budget.files()), (16, 0));
    }

    #[test]
    fn a_pinned_descriptor_counts_once_and_until_it_is_closed() {
        let budget = Budget::new(2);
        let file = std::fs::File::open("/dev/null").expect("opened");
        let permit = budget.acquire(PermitFor::Inode).expect("one of two");
        let descriptor = Descriptor::new(file.into(), permit);
        descriptor.pin();
        descriptor.pin();
        assert!(descriptor.is_pinned());
        assert_eq!(budget.pinned_inodes(), 1);
        drop(descriptor);
        assert_eq!((budget.held(), budget.pinned_inodes()), (0, 0));
    }
}
