//! The descriptor budget: how many descriptors each guest and all guests together may hold.
//!
//! Most descriptors can be evicted when another guest needs one. Descriptors of open files, of
//! locks and of inodes that cannot be reopened are pinned. A guest may pin more descriptors while
//! it has fewer than [`PINNED_TO_FREE`] times the number that all guests' pinned descriptors leave
//! free. So a guest that is alone gets most of the budget, idle guests cost the others nothing, and
//! a new guest always gets some.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Limit of a guest's pinned descriptors, as a multiple of the free ones. With 4, a guest that is
/// alone can pin four fifths of the budget.
const PINNED_TO_FREE: u64 = 4;

/// The number of descriptors held for guests, and its limit.
#[derive(Debug)]
pub(super) struct Budget {
    held: AtomicU64,
    pinned: AtomicU64,
    limit: u64,
}

/// One guest's pinned descriptors.
#[derive(Debug, Default)]
pub(super) struct Account {
    pinned: AtomicU64,
    /// The pinned descriptors that belong to inodes.
    pinned_inodes: AtomicU64,
}

/// Why a descriptor is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PinFor {
    /// An open file or a lock.
    File,
    /// An inode.
    Inode,
}

/// The right to hold one descriptor. Dropping it returns it to the budget.
#[derive(Debug)]
pub(super) struct Permit {
    budget: Arc<Budget>,
    pinned: OnceLock<(Arc<Account>, PinFor)>,
}

impl Budget {
    /// Creates an unused budget of at least 1.
    pub(super) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            held: AtomicU64::new(0),
            pinned: AtomicU64::new(0),
            limit: limit.max(1),
        })
    }

    /// Limit of descriptors.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Number of descriptors held.
    pub(super) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether a guest may pin one more open file.
    pub(super) fn may_pin_file(&self, account: &Account) -> bool {
        self.allows(account.pinned())
    }

    /// Whether a guest may hold one more inode that may turn out to be pinned. Its open files do
    /// not count.
    pub(super) fn may_pin_inode(&self, account: &Account) -> bool {
        let pinned_inodes = account.pinned_inodes.load(Ordering::Relaxed);
        pinned_inodes == 0 || self.allows(pinned_inodes)
    }

    fn allows(&self, pinned: u64) -> bool {
        let free = self
            .limit
            .saturating_sub(self.pinned.load(Ordering::Relaxed));
        pinned < free.saturating_mul(PINNED_TO_FREE)
    }

    /// Acquires a permit; `None` if the limit is reached.
    pub(super) fn acquire(self: &Arc<Self>) -> Option<Permit> {
        let taken = self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                (held < self.limit).then_some(held + 1)
            });
        taken.is_ok().then(|| Permit {
            budget: Arc::clone(self),
            pinned: OnceLock::new(),
        })
    }
}

impl Account {
    /// Number of the guest's pinned descriptors.
    pub(super) fn pinned(&self) -> u64 {
        self.pinned.load(Ordering::Relaxed)
    }
}

impl Permit {
    /// A permit that does not count against any budget.
    pub(super) fn uncounted() -> Self {
        Self {
            budget: Arc::new(Budget {
                held: AtomicU64::new(1),
                pinned: AtomicU64::new(0),
                limit: 1,
            }),
            pinned: OnceLock::new(),
        }
    }

    /// Counts the descriptor as pinned from now on.
    pub(super) fn pin(&self, account: &Arc<Account>, reason: PinFor) {
        if self.pinned.set((Arc::clone(account), reason)).is_err() {
            return;
        }
        self.budget.pinned.fetch_add(1, Ordering::Relaxed);
        account.pinned.fetch_add(1, Ordering::Relaxed);
        if reason == PinFor::Inode {
            account.pinned_inodes.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some((account, reason)) = self.pinned.get() {
            self.budget.pinned.fetch_sub(1, Ordering::Relaxed);
            account.pinned.fetch_sub(1, Ordering::Relaxed);
            if *reason == PinFor::Inode {
                account.pinned_inodes.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.budget.held.fetch_sub(1, Ordering::Relaxed);
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
    pub(super) fn pin(&self, account: &Arc<Account>) {
        self.permit.pin(account, PinFor::Inode);
    }

    /// Whether the descriptor is pinned.
    pub(super) fn is_pinned(&self) -> bool {
        self.permit.pinned.get().is_some()
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

    /// Acquires pinned permits for a guest until the budget denies one.
    fn take_all(budget: &Arc<Budget>, account: &Arc<Account>) -> Vec<Permit> {
        let mut taken = Vec::new();
        while budget.may_pin_file(account) {
            let permit = budget.acquire().expect("less than the limit");
            permit.pin(account, PinFor::File);
            taken.push(permit);
        }
        taken
    }

    #[test]
    fn however_many_are_greedy_something_is_left() {
        let budget = Budget::new(1000);
        let accounts: Vec<_> = (0..3).map(|_| Arc::new(Account::default())).collect();
        let first = take_all(&budget, &accounts[0]);
        assert_eq!(first.len(), 800);
        let second = take_all(&budget, &accounts[1]);
        assert_eq!(second.len(), 160);
        assert_eq!(take_all(&budget, &accounts[2]).len(), 32);
        // The second guest has pinned less, so it may use the returned permits.
        drop(first);
        assert_eq!(accounts[0].pinned(), 0);
        assert!(budget.may_pin_file(&accounts[1]));
        drop(second);
        assert_eq!(budget.pinned.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn open_files_keep_no_inode_out_and_inodes_do() {
        let budget = Budget::new(10);
        let account = Arc::new(Account::default());
        let files = take_all(&budget, &account);
        assert!(budget.may_pin_inode(&account));
        drop(files);
        let inodes: Vec<_> = (0..8).filter_map(|_| budget.acquire()).collect();
        inodes
            .iter()
            .for_each(|permit| permit.pin(&account, PinFor::Inode));
        assert!(!budget.may_pin_inode(&account) && !budget.may_pin_file(&account));
        assert!(budget.may_pin_inode(&Account::default()));
        drop(inodes);
        assert!(budget.may_pin_inode(&account));
    }

    #[test]
    fn the_limit_holds_and_permits_come_back() {
        let budget = Budget::new(2);
        let first = budget.acquire().expect("one of two");
        let second = budget.acquire().expect("two of two");
        assert!(budget.acquire().is_none());
        drop(first);
        assert_eq!(budget.held(), 1);
        let _third = budget.acquire().expect("given back");
        drop(second);
        assert_eq!(budget.held(), 1);
    }
}
