//! The state of one guest's session.

use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::Mutex;

use super::ctime_stability::CtimeStability;
use super::dir_stream::PendingCount;
use super::inode_numbers::InodeNumbers;
use super::inode_table::InodeTable;
use super::lookup_predictor::LookupPredictor;
use super::negotiated_flags::NegotiatedFlags;
use super::open_files::OpenFiles;
use super::open_flags::GuestArchDetector;
use super::posix_locks::PosixLocks;
use super::share::Share;
use super::syncfs_directories::SyncfsDirectories;
use super::watched_directories::WatchedDirectories;

/// Everything that one guest's session holds. Dropping it frees all of it.
#[derive(Debug)]
pub(super) struct GuestState {
    /// The flags that INIT negotiated.
    pub(super) negotiated: NegotiatedFlags,
    /// The inodes that the guest knows.
    pub(super) inodes: InodeTable,
    /// Time of the last eviction that freed no descriptor; `None` if the last one freed some.
    pub(super) last_failed_eviction: Mutex<Option<Instant>>,
    /// The files and directories that the guest has open.
    pub(super) files: OpenFiles,
    /// Number of open directories that keep entries for the next READDIR.
    pub(super) pending_listings: PendingCount,
    /// The POSIX locks that the guest holds on the host's files.
    pub(super) posix_locks: PosixLocks,
    /// The inode numbers of mounts that are not announced.
    pub(super) inode_numbers: InodeNumbers,
    /// The guest's architecture.
    pub(super) guest_arch: GuestArchDetector,
    /// What the guest's last lookups found.
    pub(super) lookup_predictor: LookupPredictor,
    /// Which ctimes let the guest keep its cached pages.
    pub(super) ctime_stability: CtimeStability,
    /// The directories open for SYNCFS.
    pub(super) syncfs_directories: SyncfsDirectories,
    /// The directories whose changes the guest hears of.
    pub(super) watched: WatchedDirectories,
}

impl GuestState {
    /// The guest's state that is in the share's arena. At first, the guest holds nothing.
    pub(super) fn new(share: &Share) -> Self {
        let (arena, budget, options) = (&share.arena, &share.budget, &share.options);
        let inodes = InodeTable::new(arena, options.max_inode_memory, budget, &share.mounts);
        let files = OpenFiles::new(arena, budget);
        let posix_locks = PosixLocks::new(arena, budget);
        let open = files.len() + posix_locks.len();
        budget.count_earlier(inodes.descriptors(), open as u64);
        let seed = arena.header().hash_seed.load(Ordering::Relaxed);
        Self {
            negotiated: NegotiatedFlags::default(),
            inodes,
            last_failed_eviction: Mutex::default(),
            files,
            pending_listings: PendingCount::default(),
            posix_locks,
            inode_numbers: InodeNumbers::new(seed),
            guest_arch: GuestArchDetector::new(options.guest_arch),
            lookup_predictor: LookupPredictor::default(),
            ctime_stability: CtimeStability::default(),
            syncfs_directories: SyncfsDirectories::new(arena, budget),
            watched: WatchedDirectories::default(),
        }
    }

    /// Frees all inodes, open files and locks.
    pub(super) fn clear(&self) {
        self.posix_locks.clear();
        self.files.clear();
        self.syncfs_directories.clear();
        self.inodes.clear();
    }
}

impl Drop for GuestState {
    fn drop(&mut self) {
        self.clear();
    }
}
