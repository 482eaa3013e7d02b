//! Names by which inodes without a descriptor are found again.
//!
//! ```text
//! the share's root ── "a" ── "b" ┬─ "file1"
//!                                └─ "file2"
//! ```
//!
//! An inode remembers its name and the directory that holds it. Directories are shared by all that
//! is in them, and remember the same of themselves, up to the share's root. A remembered directory
//! says what was found once; it depends on no inode that the guest knows, and does not follow
//! renames. What is found by it must be compared with the identity that it remembers.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};

use super::inode_memory::InodeMemory;
use super::inode_ref::BirthTime;
use super::mounts::Identity;

/// Limit of components in a remembered path, the inode's own name included. Inodes at deeper paths
/// keep their descriptors. Also the depth of the recursion when a directory is dropped with those
/// around it.
pub(super) const MAX_DEPTH: usize = 64;

/// Bytes of a remembered directory besides its name: the allocation, those of its names, and its
/// part of the map.
const DIR_BYTES: u64 = 176;

/// Fewest directories in the map before those no longer in use are removed.
const FIRST_SWEEP: usize = 64;

/// The name of an inode, and the directory that holds it.
#[derive(Debug, Clone)]
pub(super) struct RememberedName {
    /// The directory; `None` is the share's root.
    pub(super) dir: Option<Arc<RememberedDir>>,
    /// A single component.
    pub(super) name: Box<CStr>,
}

/// A directory on the way to remembered inodes.
#[derive(Debug)]
pub(super) struct RememberedDir {
    /// Its own name.
    pub(super) name: RememberedName,
    /// What it is.
    pub(super) identity: Identity,
    /// Its birth time, if the file system has one.
    pub(super) birth_time: Option<BirthTime>,
    memory: Arc<InodeMemory>,
}

/// The remembered directories of a guest.
#[derive(Debug)]
pub(super) struct RememberedDirs {
    memory: Arc<InodeMemory>,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    /// The latest of each identity.
    dirs: HashMap<Identity, Weak<RememberedDir>>,
    /// Number of directories at which those no longer in use are removed.
    sweep_at: usize,
}

impl RememberedName {
    /// Bytes of the name.
    pub(super) fn len(&self) -> usize {
        self.name.count_bytes()
    }
}

impl RememberedDir {
    /// Whether this is the path of the directory, relative to the share's root.
    pub(super) fn has_path(&self, path: &[u8]) -> bool {
        let mut dir = Some(self);
        for component in path.rsplit(|byte| *byte == b'/') {
            match dir {
                Some(named) if named.name.name.to_bytes() == component => {
                    dir = named.name.dir.as_deref();
                }
                _ => return false,
            }
        }
        dir.is_none()
    }

    fn is(&self, name: &RememberedName, birth_time: Option<BirthTime>) -> bool {
        let same_dir = match (&self.name.dir, &name.dir) {
            (None, None) => true,
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            _ => false,
        };
        same_dir && self.name.name == name.name && self.birth_time == birth_time
    }

    fn bytes(name: &RememberedName) -> u64 {
        DIR_BYTES + name.len() as u64
    }
}

impl Drop for RememberedDir {
    fn drop(&mut self) {
        self.memory.give_back(Self::bytes(&self.name));
    }
}

impl RememberedDirs {
    /// None yet. Their bytes are taken from `memory`.
    pub(super) fn new(memory: Arc<InodeMemory>) -> Self {
        Self {
            memory,
            known: Mutex::new(Known {
                dirs: HashMap::new(),
                sweep_at: FIRST_SWEEP,
            }),
        }
    }

    /// The directory as it was remembered last.
    pub(super) fn find(&self, identity: Identity) -> Option<Arc<RememberedDir>> {
        self.lock().dirs.get(&identity)?.upgrade()
    }

    /// Remembers a directory, or finds it if it is remembered by this name.
    ///
    /// # Errors
    /// ENOMEM if it does not fit the guest's memory.
    pub(super) fn remember(
        &self,
        name: RememberedName,
        identity: Identity,
        birth_time: Option<BirthTime>,
    ) -> io::Result<Arc<RememberedDir>> {
        let found = self.find(identity);
        if let Some(found) = found.filter(|found| found.is(&name, birth_time)) {
            return Ok(found);
        }
        self.memory.take(RememberedDir::bytes(&name))?;
        let dir = Arc::new(RememberedDir {
            name,
            identity,
            birth_time,
            memory: Arc::clone(&self.memory),
        });
        let mut known = self.lock();
        if known.dirs.len() >= known.sweep_at {
            known.dirs.retain(|_, dir| dir.strong_count() > 0);
            known.dirs.shrink_to_fit();
            known.sweep_at = (2 * known.dirs.len()).max(FIRST_SWEEP);
        }
        known.dirs.insert(identity, Arc::downgrade(&dir));
        Ok(dir)
    }

    // Under this lock no directory is dropped, and nothing else is locked.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::super::file_type::FileType;
    use super::super::mounts::MountIndex;
    use super::*;

    fn identity(ino: u64) -> Identity {
        Identity {
            mount: MountIndex::ROOT,
            ino,
            file_type: FileType::Directory,
        }
    }

    fn in_dir(dir: Option<&Arc<RememberedDir>>, name: &CStr) -> RememberedName {
        RememberedName {
            dir: dir.cloned(),
            name: name.into(),
        }
    }

    #[test]
    fn a_directory_is_remembered_once_and_by_its_latest_name() {
        let memory = InodeMemory::new(u64::MAX);
        let dirs = RememberedDirs::new(Arc::clone(&memory));
        let remember = |name, number| dirs.remember(name, identity(number), None).expect("room");
        let a = remember(in_dir(None, c"a"), 1);
        let b = remember(in_dir(Some(&a), c"b\xff"), 2);
        assert!(Arc::ptr_eq(&b, &remember(in_dir(Some(&a), c"b\xff"), 2)));
        assert!(b.has_path(b"a/b\xff"));
        for other in [&b"b\xff"[..], b"a", b"x/a/b\xff", b"a/b", b""] {
            assert!(!b.has_path(other), "{other:?}");
        }
        let renamed = remember(in_dir(None, c"c"), 2);
        assert!(renamed.has_path(b"c") && b.has_path(b"a/b\xff"));
        assert!(Arc::ptr_eq(
            &renamed,
            &dirs.find(identity(2)).expect("known")
        ));
        drop((a, b, renamed));
        assert_eq!(memory.used(), 0);
        assert!(dirs.find(identity(1)).is_none());
    }

    #[test]
    fn what_is_no_longer_in_use_is_removed() {
        let dirs = RememberedDirs::new(InodeMemory::new(u64::MAX));
        for number in 0..10_000 {
            dirs.remember(in_dir(None, c"name"), identity(number), None)
                .expect("room");
        }
        assert!(dirs.lock().dirs.len() <= FIRST_SWEEP);
    }

    #[test]
    fn a_directory_that_does_not_fit_is_not_remembered() {
        let memory = InodeMemory::new(2 * DIR_BYTES);
        let dirs = RememberedDirs::new(Arc::clone(&memory));
        let first = dirs.remember(in_dir(None, c"first"), identity(1), None);
        let second = dirs.remember(in_dir(None, c"second"), identity(2), None);
        assert!(first.is_ok() && second.is_err());
        drop((first, second));
        assert_eq!(memory.used(), 0);
    }
}
