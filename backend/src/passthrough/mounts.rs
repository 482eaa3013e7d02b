//! The mounts and devices below the share, and their properties.
//!
//! The guest's inodes name a mount by its index in the list, so each is recorded in the arena
//! ([`crate::state::mounts`]), and the next worker makes the same list from that.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gangplank_service::rate_limited;
use parking_lot::RwLock;

use super::file_type::FileType;
use super::mount_handles::{self, MountHandles};
use crate::state::arena::{Arena, Part};
use crate::state::change::Place;
use crate::state::mounts::{MAX_MOUNTS, MountRecord};
use crate::storage::kind;
use crate::sys::file::{self, Statx};

/// One (mount, device) pair. A mount has several devices if its file system has subvolumes.
#[derive(Debug)]
pub(super) struct Mount {
    index: MountIndex,
    properties: Properties,
    handles: MountHandles,
}

/// What the file system's type says of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Properties {
    kind: FsKind,
    ctime_is_reliable: bool,
}

/// Index of a [`Mount`] in the share's list; 0 is the root's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct MountIndex(pub(super) u32);

impl MountIndex {
    /// The mount of the share's root.
    pub(super) const ROOT: Self = Self(0);
}

/// Identifies an inode as long as it exists. A file system may give the number to a new inode
/// afterwards; one of another type is another inode in any case.
///
/// The type is packed to 13 bytes because a guest may know millions of inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(Rust, packed)]
pub(super) struct Identity {
    /// Mount and device.
    pub(super) mount: MountIndex,
    /// Inode number.
    pub(super) ino: u64,
    /// Type of the file.
    pub(super) file_type: FileType,
}

impl Identity {
    /// The identity of the inode with these attributes.
    pub(super) fn new(mount: MountIndex, stat: &Statx) -> Self {
        Self {
            mount,
            ino: stat.stx_ino,
            file_type: FileType::of(stat),
        }
    }
}

/// Classes of file systems with different guarantees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FsKind {
    /// A file system of this kernel: a short read ends at the end of the file or before an error,
    /// and close reports no error.
    Local,
    /// A remote or unknown file system.
    RemoteOrUnknown,
}

impl Properties {
    /// Bits of [`MountRecord::properties`].
    const LOCAL: u32 = 1;
    const RELIABLE_CTIME: u32 = 2;

    fn of(magic: u64) -> Self {
        Self {
            kind: fs_kind(magic),
            ctime_is_reliable: ctime_is_reliable(magic),
        }
    }

    fn bits(self) -> u32 {
        let local = match self.kind {
            FsKind::Local => Self::LOCAL,
            FsKind::RemoteOrUnknown => 0,
        };
        let reliable = match self.ctime_is_reliable {
            true => Self::RELIABLE_CTIME,
            false => 0,
        };
        local | reliable
    }

    fn from_bits(bits: u32) -> Self {
        Self {
            kind: match bits & Self::LOCAL {
                0 => FsKind::RemoteOrUnknown,
                _ => FsKind::Local,
            },
            ctime_is_reliable: bits & Self::RELIABLE_CTIME != 0,
        }
    }
}

impl Mount {
    /// Index in the share's list.
    pub(super) fn index(&self) -> MountIndex {
        self.index
    }

    /// Whether it is known to be a file system of this kernel.
    pub(super) fn is_local(&self) -> bool {
        self.properties.kind == FsKind::Local
    }

    /// Whether a short read ends at the end of the file or before an error.
    pub(super) fn short_read_is_final(&self) -> bool {
        self.properties.kind == FsKind::Local
    }

    /// Whether close can report an error that no other call reports.
    pub(super) fn close_reports_errors(&self) -> bool {
        self.properties.kind == FsKind::RemoteOrUnknown
    }

    /// Whether each change of a file's content updates its ctime, also through a mapping.
    pub(super) fn ctime_is_reliable(&self) -> bool {
        self.properties.ctime_is_reliable
    }

    /// The file handles of this mount.
    pub(super) fn handles(&self) -> &MountHandles {
        &self.handles
    }
}

/// All mounts of a share. They are few, so none is removed while the daemon runs.
#[derive(Debug)]
pub(super) struct Mounts {
    arena: Arc<Arena>,
    records: Part<MountRecord>,
    table: RwLock<MountTable>,
}

#[derive(Debug, Default)]
struct MountTable {
    list: Vec<(MountKey, Arc<Mount>)>,
    index: HashMap<MountKey, MountIndex>,
}

/// Mount id and device number. Before Linux 6.8 a new mount may reuse the id of a former one.
type MountKey = (u64, u64);

fn key_of(stat: &Statx) -> MountKey {
    let device = u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor);
    (stat.stx_mnt_id, device)
}

impl MountTable {
    /// Adds a mount behind the others.
    fn add(&mut self, key: MountKey, mount: Mount) -> Arc<Mount> {
        let mount = Arc::new(mount);
        self.list.push((key, Arc::clone(&mount)));
        self.index.insert(key, mount.index);
        mount
    }
}

impl Mounts {
    /// The mounts that earlier workers of the guest recorded in its arena. Takes over the
    /// descriptors that they recorded, so this must happen once in a worker.
    pub(super) fn restore(arena: &Arc<Arena>) -> Self {
        let records = arena.mounts();
        let count = arena.header().mounts.load(Ordering::Acquire);
        let mut table = MountTable::default();
        for (index, record) in (0..count).zip(records.iter()) {
            let key = (
                record.mount_id.load(Ordering::Relaxed),
                record.device.load(Ordering::Relaxed),
            );
            table.add(
                key,
                Mount {
                    index: MountIndex(index),
                    properties: Properties::from_bits(record.properties.load(Ordering::Relaxed)),
                    handles: MountHandles::restore(records.clone(), index, arena.holder()),
                },
            );
        }
        Self {
            arena: Arc::clone(arena),
            records,
            table: RwLock::new(table),
        }
    }

    /// Adds the mount of the share's root, the first of the list, or finds it. `stat` are the
    /// attributes of `root`.
    ///
    /// # Errors
    /// ESTALE if the first of the list is another mount: its workers had another directory, or
    /// another mount namespace.
    pub(super) fn find_or_add_root(
        &self,
        stat: &Statx,
        root: BorrowedFd<'_>,
    ) -> io::Result<Arc<Mount>> {
        let mount = self.find_or_add(stat, root)?;
        match mount.index {
            MountIndex::ROOT => Ok(mount),
            _ => Err(io::Error::from_raw_os_error(libc::ESTALE)),
        }
    }

    /// The mount that `stat` comes from, if it is known. `guess` is tried first.
    pub(super) fn find(&self, stat: &Statx, guess: MountIndex) -> Option<MountIndex> {
        let key = key_of(stat);
        let table = self.table.read();
        match table.list.get(guess.0 as usize) {
            Some((guessed, _)) if *guessed == key => Some(guess),
            _ => table.index.get(&key).copied(),
        }
    }

    /// The mount of `file`, whose attributes are `stat`. An unknown mount is added.
    ///
    /// # Errors
    /// ENFILE if there are too many mounts.
    pub(super) fn find_or_add(&self, stat: &Statx, file: BorrowedFd<'_>) -> io::Result<Arc<Mount>> {
        if let Some(mount) = self
            .find(stat, MountIndex::ROOT)
            .and_then(|index| self.get(index))
        {
            return Ok(mount);
        }
        let key = key_of(stat);
        let magic = file::file_system_magic(file).unwrap_or(0);
        let properties = Properties::of(magic);
        let mut table = self.table.write();
        // Another thread may have added it since.
        if let Some(index) = table.index.get(&key).copied() {
            return self.mount_at(&table, index);
        }
        let number = table.list.len();
        let (Some(record), Ok(index)) = (self.records.get(number), u32::try_from(number)) else {
            rate_limited!(
                error,
                "the share has more than {MAX_MOUNTS} mounts or subvolumes, so guests get ENFILE \
                 in the others; share a directory with fewer of them"
            );
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        };
        let (mount_id, device) = key;
        record.mount_id.set(mount_id);
        record.device.set(device);
        record.properties.set(properties.bits());
        // Also what a worker has left that died here before it stored the number of mounts.
        record.handles.set(match kind::is_fuse(magic) {
            true => mount_handles::FAILED,
            false => mount_handles::UNKNOWN,
        });
        let mount = Mount {
            index: MountIndex(index),
            properties,
            handles: MountHandles::restore(self.records.clone(), index, self.arena.holder()),
        };
        if index > 0 {
            log::info!(
                "a guest has come to a mount below the share: {}{}",
                kind::name_of(magic),
                match kind::is_fuse(magic) {
                    true => ", whose file handles end when the host drops an inode",
                    false => "",
                }
            );
        }
        self.arena.header().mounts.set(index + 1);
        Ok(table.add(key, mount))
    }

    /// The mount at an index.
    pub(super) fn get(&self, index: MountIndex) -> Option<Arc<Mount>> {
        let table = self.table.read();
        table
            .list
            .get(index.0 as usize)
            .map(|(_, mount)| Arc::clone(mount))
    }

    /// The guest's state has no file handles any more.
    pub(super) fn release_handles(&self) {
        let table = self.table.read();
        table
            .list
            .iter()
            .for_each(|(_, mount)| mount.handles.release_all());
    }

    fn mount_at(&self, table: &MountTable, index: MountIndex) -> io::Result<Arc<Mount>> {
        let entry = table.list.get(index.0 as usize);
        entry
            .map(|(_, mount)| Arc::clone(mount))
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ESTALE))
    }
}

/// Classifies a file system by its magic number (`linux/magic.h` and the file systems' headers).
/// Only those count as local whose reads are known to be short at the end of the file alone.
fn fs_kind(magic: u64) -> FsKind {
    const LOCAL: [u64; 15] = [
        0xEF53,      // ext2, ext3, ext4
        0x5846_5342, // xfs
        0x9123_683E, // btrfs
        0x0102_1994, // tmpfs
        0x8584_58F6, // ramfs
        0xF2F5_2010, // f2fs
        0x794C_7630, // overlayfs, which has a local upper layer
        0x2FC1_2FC1, // zfs
        0xCA45_1A4E, // bcachefs
        0x4D44,      // vfat
        0x2011_BAB0, // exfat
        0x9660,      // iso9660
        0x7371_7368, // squashfs
        0xE0F5_E1E2, // erofs
        0x3153_464A, // jfs
    ];
    if LOCAL.contains(&magic) {
        FsKind::Local
    } else {
        FsKind::RemoteOrUnknown
    }
}

/// Whether a file system updates ctime when a page of a writable mapping becomes dirty
/// (`page_mkwrite`), by magic number. tmpfs never writes pages back, so a dirty page never becomes
/// dirty again; overlayfs keeps its own times.
fn ctime_is_reliable(magic: u64) -> bool {
    const RELIABLE: [u64; 4] = [
        0xEF53,      // ext2, ext3, ext4
        0x5846_5342, // xfs
        0x9123_683E, // btrfs
        0xF2F5_2010, // f2fs
    ];
    RELIABLE.contains(&magic)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;
    use crate::state::change::killing;

    fn index_of(mounts: &Mounts, path: &str) -> MountIndex {
        let file = File::open(path).expect("opened");
        let stat = file::stat(file.as_fd()).expect("attributes");
        let mount = mounts.find_or_add(&stat, file.as_fd());
        mount.expect("a mount").index()
    }

    #[test]
    fn mounts_are_told_apart_by_what_is_not_used_again() {
        let file = File::open("/proc").expect("opened");
        let stat = file::stat(file.as_fd()).expect("attributes");
        let asked = file::stat_with(file.as_fd(), file::MOUNT, 0).expect("attributes");
        assert_eq!(key_of(&stat), key_of(&asked));
        if stat.stx_mask & file::MOUNT & !libc::STATX_MNT_ID == 0 {
            eprintln!("SKIPPED: this kernel has no unique mount ids");
            return;
        }
        // Unique mount ids start above 2^31 (`MNT_UNIQUE_ID_OFFSET`, `fs/namespace.c`).
        assert!(stat.stx_mnt_id > u64::from(u32::MAX) >> 1);
    }

    #[test]
    fn two_directories_of_one_file_system_are_one_place_and_proc_is_another() {
        let mounts = Mounts::restore(&Arena::small());
        let directory = tempfile::tempdir().expect("a directory");
        let inner = directory.path().join("inner");
        std::fs::create_dir(&inner).expect("made");
        let index = |path: &std::path::Path| {
            let file = File::open(path).expect("opened");
            let stat = file::stat(file.as_fd()).expect("attributes");
            let mount = mounts.find_or_add(&stat, file.as_fd()).expect("a mount");
            assert_eq!(mounts.find(&stat, MountIndex::ROOT), Some(mount.index()));
            mount.index()
        };
        assert_eq!(index(directory.path()), MountIndex::ROOT);
        assert_eq!(index(&inner), MountIndex::ROOT);
        assert_eq!(index("/proc".as_ref()), MountIndex(1));
        let proc = mounts.get(MountIndex(1)).expect("known");
        assert!(!proc.short_read_is_final());
        assert!(proc.close_reports_errors());
        assert!(mounts.get(MountIndex(2)).is_none());
    }

    /// Kills the worker before each change of adding a mount.
    #[test]
    fn the_next_worker_has_the_same_list_and_adds_to_it() {
        for kill_at in 0.. {
            let arena = Arena::small();
            let first = Mounts::restore(&arena);
            index_of(&first, "/");
            let added = killing::until(kill_at, || index_of(&first, "/proc"));
            let next = Mounts::restore(&arena);
            let known = next.get(MountIndex(1)).is_some();
            assert_eq!(known, added.is_some());
            // Another mount takes the place of one that was not recorded.
            let new = MountIndex(if known { 2 } else { 1 });
            assert_eq!(index_of(&next, "/sys"), new);
            assert_eq!(index_of(&next, "/"), MountIndex::ROOT);
            let root = |mounts: &Mounts| mounts.get(MountIndex::ROOT).expect("known").properties;
            assert_eq!(root(&first), root(&next));
            let third = Mounts::restore(&arena);
            assert_eq!(index_of(&third, "/sys"), new);
            if added.is_some() {
                let proc = next.get(MountIndex(1)).expect("known");
                assert!(proc.close_reports_errors() && !proc.ctime_is_reliable());
                assert_eq!(index_of(&third, "/proc"), MountIndex(1));
                break;
            }
        }
    }

    #[test]
    fn the_roots_mount_is_the_first_or_the_state_is_of_another_directory() {
        let mounts = Mounts::restore(&Arena::small());
        let root = |path: &str| {
            let file = File::open(path).expect("opened");
            let stat = file::stat(file.as_fd()).expect("attributes");
            mounts.find_or_add_root(&stat, file.as_fd())
        };
        assert_eq!(root("/").expect("added").index(), MountIndex::ROOT);
        assert_eq!(root("/").expect("found").index(), MountIndex::ROOT);
        let error = root("/proc").expect_err("another directory");
        assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
    }

    #[test]
    fn each_mount_that_is_known_has_a_record() {
        let arena = Arena::small();
        let count = u32::try_from(MAX_MOUNTS).expect("32 bits");
        arena.header().mounts.store(count, Ordering::Relaxed);
        let mounts = Mounts::restore(&arena);
        let file = File::open("/proc").expect("opened");
        let stat = file::stat(file.as_fd()).expect("attributes");
        let error = mounts.find_or_add(&stat, file.as_fd()).expect_err("full");
        assert_eq!(error.raw_os_error(), Some(libc::ENFILE));
    }
}
