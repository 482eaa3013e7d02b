//! Evicting descriptors when they run short.
//!
//! This happens when the guest's budget is used up or when the process or the system has no
//! descriptor left. The inodes that were not used recently are evicted first. Those that have no
//! name any more are evicted last, because the guest cannot reach them afterwards.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use gangplank_service::rate_limited;

use super::budget::{Exhausted, Permit, PermitFor};
use super::errno::descriptors_exhausted;
use super::fs::PassthroughFs;
use super::inode_eviction::EvictionCandidate;
use super::inode_ref::InodeRef;
use super::inode_shard::SHARDS;
use super::options::InodeFileHandles;
use super::reopen::NotReopenable;
use super::share::Share;
use crate::sys::file;

/// Number of descriptors to evict at a time, so that not every request scans the table.
const EVICTION_BATCH: usize = 256;

/// Number of shards to scan in one attempt: each twice, because the first scan only clears the
/// `used` flags.
const EVICTION_VISITS: usize = 2 * SHARDS + 1;

/// Pause after an attempt that evicted nothing.
const EVICTION_BACKOFF: Duration = Duration::from_millis(20);

impl Share {
    /// Whether descriptors of inodes may be evicted.
    pub(super) fn may_evict(&self) -> bool {
        match self.options.inode_file_handles {
            InodeFileHandles::Never => false,
            InodeFileHandles::Prefer => true,
            InodeFileHandles::Mandatory => self.abilities.can_open_by_handle,
        }
    }
}

impl PassthroughFs {
    /// Acquires the right to hold one open file, or another descriptor that cannot be evicted.
    ///
    /// # Errors
    /// ENFILE if the guest has opened all the files that it may, or no descriptor is available.
    pub(super) fn acquire_file_permit(&self) -> io::Result<Permit> {
        self.acquire(PermitFor::File)
            .map_err(|exhausted| self.report(exhausted))
    }

    /// Acquires the right to hold an inode that the guest may not know yet.
    ///
    /// # Errors
    /// ENOMEM if the guest may know no more inodes; ENFILE if no descriptor is available.
    pub(super) fn acquire_new_inode_permit(&self) -> io::Result<Permit> {
        let memory = self.state.inodes.memory();
        if !memory.has_room() {
            return Err(memory.exhausted());
        }
        self.acquire_inode_permit()
    }

    /// [`Self::acquire_new_inode_permit`] for a caller that can do without.
    pub(super) fn try_acquire_new_inode_permit(&self) -> Option<Permit> {
        let has_room = self.state.inodes.memory().has_room();
        has_room.then(|| self.acquire(PermitFor::Inode).ok())?
    }

    /// Acquires the right to hold a known inode by a descriptor, or to open a file for one request.
    ///
    /// # Errors
    /// ENFILE if no descriptor is available.
    pub(super) fn acquire_inode_permit(&self) -> io::Result<Permit> {
        self.acquire(PermitFor::Inode)
            .map_err(|exhausted| self.report(exhausted))
    }

    /// Acquires a permit; closes cached descriptors and evicts inodes if necessary.
    fn acquire(&self, used_for: PermitFor) -> Result<Permit, Exhausted> {
        let acquire = || self.share.budget.acquire(used_for);
        let exhausted = match acquire() {
            Ok(permit) => return Ok(permit),
            Err(exhausted) => exhausted,
        };
        if self.state.inodes.fd_cache().clear() > 0
            && let Ok(permit) = acquire()
        {
            return Ok(permit);
        }
        // Cached descriptors count as files, inodes do not.
        if exhausted == Exhausted::Budget {
            self.evict_inodes();
        }
        acquire()
    }

    fn report(&self, exhausted: Exhausted) -> io::Error {
        let budget = &self.share.budget;
        match exhausted {
            Exhausted::Files => rate_limited!(
                error,
                "the guest has {} files open, all that it may, so it gets ENFILE; raise \
                 --rlimit-nofile",
                budget.files()
            ),
            Exhausted::Budget => rate_limited!(
                error,
                "all {} descriptors for the guest's files are in use: {} by open files and {} by \
                 inodes that cannot be reopened; the guest gets ENFILE; raise --rlimit-nofile",
                budget.limit(),
                budget.files(),
                budget.pinned_inodes()
            ),
        }
        descriptors_exhausted()
    }

    /// Calls `open`. If the process or the system has no descriptor left, frees some and calls
    /// `open` once more; descriptors outside the budget can use up the limit too.
    ///
    /// # Errors
    /// Those of `open`; ENFILE if no descriptor is left for the second call either.
    pub(super) fn open_or_evict<T>(
        &self,
        mut open: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        match open() {
            Err(error) if out_of_descriptors(&error) => {
                if self.state.inodes.fd_cache().clear() == 0 {
                    self.evict_inodes();
                }
                open().map_err(|error| {
                    if !out_of_descriptors(&error) {
                        return error;
                    }
                    rate_limited!(
                        error,
                        "cannot open a file for the guest: {error}; raise --rlimit-nofile or the \
                         system's limit (fs.file-max)"
                    );
                    descriptors_exhausted()
                })
            }
            result => result,
        }
    }

    /// Evicts inodes, but nothing within [`EVICTION_BACKOFF`] of an attempt that evicted nothing,
    /// because the guest must not be able to make the daemon scan all the time.
    fn evict_inodes(&self) {
        let recently = |last: &Instant| last.elapsed() < EVICTION_BACKOFF;
        let last_failed = || self.state.last_failed_eviction.lock();
        if !self.share.may_evict() || last_failed().as_ref().is_some_and(recently) {
            return;
        }
        let freed = self.evict_batch();
        *last_failed() = (freed == 0).then(Instant::now);
    }

    /// Evicts up to [`EVICTION_BATCH`] inodes and returns how many.
    fn evict_batch(&self) -> usize {
        let quarter = usize::try_from(self.share.budget.limit() / 4).unwrap_or(usize::MAX);
        let wanted = quarter.clamp(1, EVICTION_BATCH);
        let inodes = &self.state.inodes;
        let mut freed = 0;
        let mut nameless = Vec::new();
        for _ in 0..EVICTION_VISITS {
            if freed >= wanted {
                return freed;
            }
            if nameless.len() >= wanted {
                break;
            }
            for candidate in inodes.eviction_candidates(wanted - freed) {
                if !has_name(&candidate) {
                    nameless.push(candidate);
                } else if self.evict(candidate) {
                    freed += 1;
                }
            }
        }
        // An inode without a name that is not open either exists only through its descriptor, and
        // gives ESTALE afterwards.
        for candidate in nameless {
            if freed >= wanted {
                break;
            }
            if self.evict_nameless(candidate) {
                freed += 1;
            }
        }
        freed
    }

    /// Evicts an inode that has a name, if it can be reopened. Returns whether that freed its
    /// descriptor.
    fn evict(&self, candidate: EvictionCandidate) -> bool {
        if candidate.has_stable_ref {
            return self.state.inodes.evict(candidate, None);
        }
        match self.reference_to(&candidate) {
            Ok(inode_ref) => self.state.inodes.evict(candidate, Some(inode_ref)),
            Err(NotReopenable::Temporarily) => false,
            Err(NotReopenable::Permanently) => {
                // Pinned, so that later scans skip it and the log tells the number.
                candidate.descriptor.pin();
                false
            }
        }
    }

    /// Evicts an inode that has no name. Returns whether that freed its descriptor.
    fn evict_nameless(&self, candidate: EvictionCandidate) -> bool {
        let inode_ref = match candidate.has_stable_ref {
            true => None,
            // Open files keep the inode in existence, so a handle can still lead to it.
            false => Some(self.reference_to(&candidate).unwrap_or(InodeRef::Unlinked)),
        };
        self.state.inodes.evict(candidate, inode_ref)
    }

    fn reference_to(&self, candidate: &EvictionCandidate) -> Result<InodeRef, NotReopenable> {
        self.inode_ref(candidate.identity, candidate.descriptor.as_fd())
    }
}

fn has_name(candidate: &EvictionCandidate) -> bool {
    file::identity(candidate.descriptor.as_fd()).is_ok_and(|stat| stat.stx_nlink > 0)
}

fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}
