//! Evicting descriptors when they run short.
//!
//! This happens when the guests' budget is used up or when the process or the system has no
//! descriptor left. The inodes that were not used recently are evicted first, from the guest that
//! holds the most descriptors.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use gangplank_service::rate_limited;

use super::budget::Permit;
use super::errno::descriptors_exhausted;
use super::inode_ref::InodeRef;
use super::inode_shard::SHARDS;
use super::inode_table::InodeTable;
use super::options::InodeFileHandles;
use super::reopen::NotReopenable;
use super::share::Share;
use crate::sys::file;

/// Number of descriptors to evict at a time, so that not every request scans the tables.
const EVICTION_BATCH: u64 = 256;

/// Number of shards to scan in one attempt: each twice, because the first scan only clears the
/// `used` flags.
const EVICTION_VISITS: usize = 2 * SHARDS + 1;

/// Pause after an attempt that evicted nothing.
const EVICTION_BACKOFF: Duration = Duration::from_millis(20);

/// Whether only inodes with a name may be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    Required,
    Optional,
}

impl Share {
    /// Whether descriptors of inodes may be evicted.
    pub(super) fn may_evict(&self) -> bool {
        match self.options.inode_file_handles {
            InodeFileHandles::Never => false,
            InodeFileHandles::Prefer => true,
            InodeFileHandles::Mandatory => self.abilities.can_open_by_handle,
        }
    }

    /// Acquires the right to open one descriptor for a guest; evicts others if necessary.
    ///
    /// # Errors
    /// ENFILE if no descriptor can be freed.
    pub(super) fn acquire_permit(&self) -> io::Result<Permit> {
        if let Some(permit) = self.budget.acquire() {
            return Ok(permit);
        }
        self.free_descriptors();
        self.budget.acquire().ok_or_else(|| {
            let limit = self.budget.limit();
            rate_limited!(
                error,
                "all {limit} descriptors for guests are in use and none can be evicted, so guests \
                 get ENFILE; raise --rlimit-nofile"
            );
            descriptors_exhausted()
        })
    }

    /// Calls `open`. If the process or the system has no descriptor left, frees some and calls
    /// `open` once more; descriptors outside the budget can use up the limit too.
    ///
    /// # Errors
    /// Those of `open`; ENFILE if no descriptor is left for the second call either.
    pub(super) fn open<T>(&self, mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match open() {
            Err(error) if out_of_descriptors(&error) => {
                self.free_descriptors();
                open().map_err(|error| {
                    if !out_of_descriptors(&error) {
                        return error;
                    }
                    rate_limited!(
                        error,
                        "cannot open a file for a guest: {error}; raise --rlimit-nofile or the \
                         system's limit (fs.file-max)"
                    );
                    descriptors_exhausted()
                })
            }
            result => result,
        }
    }

    /// Closes cached descriptors, or evicts inodes if there are none. Evicts nothing within
    /// [`EVICTION_BACKOFF`] of a failed attempt, because a guest must not be able to make the
    /// daemon scan all the time.
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

    /// Evicts inodes, first from the guest that holds the most descriptors, and returns how many.
    fn evict_descriptors(&self) -> u64 {
        let mut guests: Vec<Arc<InodeTable>> = self.registered();
        guests.sort_by_key(|guest| std::cmp::Reverse(guest.descriptors()));
        let wanted = EVICTION_BATCH.min(self.budget.limit() / 4).max(1);
        let mut freed = 0;
        // An inode without a name that is not open either exists only through its descriptor. Such
        // inodes are evicted last and give ESTALE afterwards.
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

    /// Evicts up to `wanted` descriptors of one shard of a guest's table and returns how many.
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
                        // Pinned, so that later scans skip it and the guest's account counts it.
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
