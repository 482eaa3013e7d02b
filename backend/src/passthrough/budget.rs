//! How many descriptors the guests may hold, all together and each.
//!
//! Most can be taken from a guest when others need them. Those that cannot (of open files, of locks, of inodes that
//! there is no way to find again) are fixed, and counted for each guest: it may have more of them as long as it has
//! less than [`FIXED_TO_FREE`] times what all guests' fixed ones leave. So a guest that is alone gets most, guests that
//! hold nothing take nothing from others, and however many are greedy, something is left for the next.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// How many times what is free one guest's fixed descriptors may be: four fifths of all for one that is alone.
const FIXED_TO_FREE: u64 = 4;

/// The count of descriptors held for guests, and its limit.
#[derive(Debug)]
pub(super) struct Budget {
    held: AtomicU64,
    fixed: AtomicU64,
    limit: u64,
}

/// One guest's fixed descriptors.
#[derive(Debug, Default)]
pub(super) struct Account {
    fixed: AtomicU64,
    /// Those of them that hold inodes.
    pinned: AtomicU64,
}

/// What a fixed descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// An open file, or locks.
    File,
    /// An inode.
    Inode,
}

/// The right to hold one descriptor; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    budget: Arc<Budget>,
    fixed: OnceLock<(Arc<Account>, Use)>,
}

impl Budget {
    /// Nothing held; at least 1 can be.
    pub(super) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            held: AtomicU64::new(0),
            fixed: AtomicU64::new(0),
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

    /// Whether a guest may have one more fixed descriptor.
    pub(super) fn has_share_left(&self, account: &Account) -> bool {
        self.allows(account.fixed())
    }

    /// Whether a guest may have one more inode that may turn out to be fixed; its open files do not matter.
    pub(super) fn may_pin(&self, account: &Account) -> bool {
        let pinned = account.pinned.load(Ordering::Relaxed);
        pinned == 0 || self.allows(pinned)
    }

    fn allows(&self, fixed: u64) -> bool {
        let free = self
            .limit
            .saturating_sub(self.fixed.load(Ordering::Relaxed));
        fixed < free.saturating_mul(FIXED_TO_FREE)
    }

    /// A permit, or `None` where the limit is reached.
    pub(super) fn take(self: &Arc<Self>) -> Option<Permit> {
        let taken = self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                (held < self.limit).then_some(held + 1)
            });
        taken.is_ok().then(|| Permit {
            budget: Arc::clone(self),
            fixed: OnceLock::new(),
        })
    }
}

impl Account {
    /// Descriptors that cannot be taken from the guest.
    pub(super) fn fixed(&self) -> u64 {
        self.fixed.load(Ordering::Relaxed)
    }
}

impl Permit {
    /// The right to hold one that is not counted.
    pub(super) fn uncounted() -> Self {
        Self {
            budget: Arc::new(Budget {
                held: AtomicU64::new(1),
                fixed: AtomicU64::new(0),
                limit: 1,
            }),
            fixed: OnceLock::new(),
        }
    }

    /// Counts it as fixed from now on.
    pub(super) fn fix(&self, account: &Arc<Account>, purpose: Use) {
        if self.fixed.set((Arc::clone(account), purpose)).is_err() {
            return;
        }
        self.budget.fixed.fetch_add(1, Ordering::Relaxed);
        account.fixed.fetch_add(1, Ordering::Relaxed);
        if purpose == Use::Inode {
            account.pinned.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some((account, purpose)) = self.fixed.get() {
            self.budget.fixed.fetch_sub(1, Ordering::Relaxed);
            account.fixed.fetch_sub(1, Ordering::Relaxed);
            if *purpose == Use::Inode {
                account.pinned.fetch_sub(1, Ordering::Relaxed);
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
    /// The descriptor, counted.
    pub(super) fn new(fd: OwnedFd, permit: Permit) -> Self {
        Self { fd, permit }
    }

    /// Counts it as one that cannot be taken from the guest.
    pub(super) fn pin(&self, account: &Arc<Account>) {
        self.permit.fix(account, Use::Inode);
    }

    /// Whether it cannot be taken from the guest.
    pub(super) fn is_fixed(&self) -> bool {
        self.permit.fixed.get().is_some()
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

    /// Takes fixed permits for a guest until it is refused.
    fn take_all(budget: &Arc<Budget>, account: &Arc<Account>) -> Vec<Permit> {
        let mut taken = Vec::new();
        while budget.has_share_left(account) {
            let permit = budget.take().expect("less than the limit");
            permit.fix(account, Use::File);
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
        // What another gives back is for the one that has less.
        drop(first);
        assert_eq!(accounts[0].fixed(), 0);
        assert!(budget.has_share_left(&accounts[1]));
        drop(second);
        assert_eq!(budget.fixed.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn open_files_keep_no_inode_out_and_inodes_do() {
        let budget = Budget::new(10);
        let account = Arc::new(Account::default());
        let files = take_all(&budget, &account);
        assert!(budget.may_pin(&account));
        drop(files);
        let inodes: Vec<_> = (0..8).filter_map(|_| budget.take()).collect();
        inodes
            .iter()
            .for_each(|permit| permit.fix(&account, Use::Inode));
        assert!(!budget.may_pin(&account) && !budget.has_share_left(&account));
        assert!(budget.may_pin(&Account::default()));
        drop(inodes);
        assert!(budget.may_pin(&account));
    }

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
