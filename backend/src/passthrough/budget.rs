//! How many descriptors the guests may hold, all together.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The count of descriptors held for guests, and its limit.
#[derive(Debug)]
pub(super) struct Budget {
    held: AtomicU64,
    limit: u64,
}

/// The right to hold one descriptor; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit(Arc<Budget>);

impl Budget {
    /// Nothing held; at least 1 can be.
    pub(super) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            held: AtomicU64::new(0),
            limit: limit.max(1),
        })
    }

    /// Most descriptors that may be held.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Descriptors that are held.
    pub(super) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// A permit, or `None` where the limit is reached.
    pub(super) fn take(self: &Arc<Self>) -> Option<Permit> {
        let taken = self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                (held < self.limit).then_some(held + 1)
            });
        taken.is_ok().then(|| Permit(Arc::clone(self)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A descriptor that counts against the budget.
#[derive(Debug)]
pub(super) struct Descriptor {
    fd: OwnedFd,
    _permit: Permit,
}

impl Descriptor {
    /// The descriptor, counted.
    pub(super) fn new(fd: OwnedFd, permit: Permit) -> Self {
        Self {
            fd,
            _permit: permit,
        }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a guest gets where there is no descriptor to be had.
pub(super) fn exhausted() -> io::Error {
    io::Error::from_raw_os_error(libc::ENFILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_and_permits_come_back() {
        let budget = Budget::new(2);
        let first = budget.take().expect("one of two");
        let second = budget.take().expect("two of two");
        assert!(budget.take().is_none());
        drop(first);
        assert_eq!(budget.held(), 1);
        let _third = budget.take().expect("given back");
        drop(second);
        assert_eq!(budget.held(), 1);
    }
}
