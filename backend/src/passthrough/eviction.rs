//! Making do with the descriptors there are.
//!
//! When the guests' budget is used up, or the process or the system has no descriptor left, inodes that were not used
//! lately give up theirs, those of the guest that holds most first.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::budget::{Permit, descriptors_exhausted};
use super::inode_table::{InodeTable, SHARDS};
use super::options::InodeFileHandles;
use super::reopen::{InodeRef, NotReopenable};
use super::share::Share;
use crate::rate_limited;
use crate::sys::file;

/// Descriptors given up at a time, so that the search for them is not repeated for every single one.
const EVICTION_BATCH: u64 = 256;

/// Shards looked at in one search: each twice, since the first visit only takes away the sign of recent use.
const EVICTION_VISITS: usize = 2 * SHARDS + 1;

/// How long nothing is sought after nothing was found.
const EVICTION_BACKOFF: Duration = Duration::from_millis(20);

/// Whether an inode must have a name to be given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    Required,
    Optional,
}

impl Share {
    /// Whether inodes may give up their descriptors.
    pub(super) fn may_evict(&self) -> bool {
        match self.options.inode_file_handles {
            InodeFileHandles::Never => false,
            InodeFileHandles::Prefer => true,
            InodeFileHandles::Mandatory => self.abilities.can_open_by_handle,
        }
    }

    /// The right to open one more descriptor for a guest, if need be by taking one from an inode that was not
    /// used lately.
    ///
    /// # Errors
    /// ENFILE where none can be had.
    pub(super) fn acquire_permit(&self) -> io::Result<Permit> {
        if let Some(permit) = self.budget.acquire() {
            return Ok(permit);
        }
        self.free_descriptors();
        self.budget.acquire().ok_or_else(|| {
            let limit = self.budget.limit();
            rate_limited!(
                error,
                "guests hold {limit} descriptors, the limit that --rlimit-nofile sets, and none can be given up: \
                 guests get ENFILE"
            );
            descriptors_exhausted()
        })
    }

    /// Calls `open`, and once more with fewer descriptors held where the process or the system has no more: others than
    /// the guests' files need them too.
    ///
    /// # Errors
    /// Those of `open`; ENFILE where the second attempt fails like the first.
    pub(super) fn open<T>(&self, mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match open() {
            Err(error) if out_of_descriptors(&error) => {
                self.free_descriptors();
                open().map_err(|error| {
                    if !out_of_descriptors(&error) {
                        return error;
                    }
                    rate_limited!(error, "no descriptor is left for guests' files: {error}");
                    descriptors_exhausted()
                })
            }
            result => result,
        }
    }

    /// Closes what guests have closed, or else has inodes give up descriptors, unless that was tried in vain a moment ago: a
    /// guest that asks for more and more must not make the daemon search all the time.
    fn free_descriptors(&self) {
        let guests = self.registered();
        if guests
            .iter()
            .map(|guest| guest.fd_cache().clear())
            .sum::<usize>()
            > 0
        {
            return;
        }
        let recently = |last: &Instant| last.elapsed() < EVICTION_BACKOFF;
        let last_failed = || {
            let last = self.last_failed_eviction.lock();
            last.unwrap_or_else(PoisonError::into_inner)
        };
        if !self.may_evict() || last_failed().as_ref().is_some_and(recently) {
            return;
        }
        let freed = self.evict_descriptors();
        *last_failed() = (freed == 0).then(Instant::now);
    }

    /// Has inodes give up descriptors, of the guest that holds most first, and returns how many.
    fn evict_descriptors(&self) -> u64 {
        let mut guests: Vec<Arc<InodeTable>> = self.registered();
        guests.sort_by_key(|guest| std::cmp::Reverse(guest.descriptors()));
        let wanted = EVICTION_BATCH.min(self.budget.limit() / 4).max(1);
        let mut freed = 0;
        // An inode without a name, and not open, lives by its descriptor alone. Those go last, and are stale from then on.
        for names in [Names::Required, Names::Optional] {
            for guest in &guests {
                for _ in 0..EVICTION_VISITS {
                    if freed >= wanted {
                        return freed;
                    }
                    freed += self.evict(guest, wanted - freed, names);
                }
            }
            if freed > 0 {
                break;
            }
        }
        freed
    }

    /// Has one shard of a guest's table give up to `wanted` descriptors; returns how many it gave up.
    fn evict(&self, guest: &InodeTable, wanted: u64, names: Names) -> u64 {
        let mut freed = 0;
        for candidate in guest.eviction_candidates(usize::try_from(wanted).unwrap_or(usize::MAX)) {
            let file = candidate.descriptor.as_fd();
            let has_name = file::stat(file).is_ok_and(|stat| stat.stx_nlink > 0);
            if names == Names::Required && !has_name {
                continue;
            }
            let inode_ref = if candidate.has_stable_ref {
                None
            } else {
                match self.inode_ref(
                    candidate.identity,
                    file,
                    candidate.file_type.can_be_opened(),
                ) {
                    Ok(inode_ref) => Some(inode_ref),
                    Err(_) if !has_name => Some(InodeRef::Unlinked),
                    Err(NotReopenable::Temporarily) => continue,
                    Err(NotReopenable::Permanently) => {
                        // Not tried again for each call from now on, and counted as the guest's own.
                        candidate.descriptor.pin(guest.account());
                        continue;
                    }
                }
            };
            if guest.evict(candidate, inode_ref) {
                freed += 1;
            }
        }
        freed
    }
}

fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}
