//! The plain data of a migrated guest.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use super::Extension;

/// The state of a guest, unchecked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestState {
    /// The inodes that the guest knows or that are parents of such. None if the guest has not
    /// mounted the share.
    pub inodes: Vec<Inode>,
    /// The lowest inode id that was never used.
    pub next_inode: u64,
    /// The files and directories that the guest has open.
    pub handles: Vec<Handle>,
    /// The lowest handle id that was never used.
    pub next_handle: u64,
    /// What INIT negotiated, as far as virtiofsd records it.
    pub options: NegotiatedOptions,
    /// For each mount id of the source that a location has: the mount's path, from the root.
    pub mount_paths: BTreeMap<u64, String>,
    /// What only this daemon records. `None` in a stream of virtiofsd.
    pub extension: Option<Extension>,
}

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// The node id that the guest uses.
    pub id: u64,
    /// The guest's lookups, and one reference for each inode whose parent this is.
    pub references: u64,
    /// How the destination finds it.
    pub location: Location,
    /// What the destination compares with the handle of the inode that it finds. The mount id does
    /// not count.
    pub file_handle: Option<FileHandle>,
}

/// How the destination finds an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// The shared directory.
    Root,
    /// A name in another inode, of which this one holds a reference.
    Child {
        /// The other inode's id.
        parent: u64,
        /// One component of a path.
        name: String,
    },
    /// The source does not know where it is.
    Invalid,
    /// A path from the root, without a reference to it.
    Path(String),
    /// A file handle, whose mount id is a key of [`GuestState::mount_paths`].
    FileHandle(FileHandle),
}

impl Location {
    /// The name in the inode `parent`, or [`Location::Invalid`] if the name is not UTF-8: the
    /// stream cannot carry it. Only a child holds a reference of its parent.
    #[must_use]
    pub fn child(parent: u64, name: &OsStr) -> Self {
        match name.to_str() {
            Some(name) => Self::Child {
                parent,
                name: name.to_owned(),
            },
            None => Self::Invalid,
        }
    }
}

/// A file handle (name_to_handle_at(2)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHandle {
    /// The mount's id on the source's host.
    pub mount_id: u64,
    /// `handle_type` of `struct file_handle`.
    pub handle_type: i32,
    /// `f_handle` of `struct file_handle`.
    pub bytes: Vec<u8>,
}

/// An open file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    /// The handle that the guest uses.
    pub id: u64,
    /// The inode's id.
    pub inode: u64,
    /// The source host's flags of open(2).
    pub flags: i32,
}

/// What INIT negotiated, as far as virtiofsd records it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NegotiatedOptions {
    /// `--writeback`: the guest caches writes.
    pub writeback: bool,
    /// `--announce-submounts`: the guest knows of mount points.
    pub announce_submounts: bool,
    /// `--posix-acl`: the daemon checks ACLs.
    pub posix_acl: bool,
    /// Requests that create files carry a supplementary group.
    pub supplementary_group: bool,
}

impl GuestState {
    /// For each inode that is a parent, its id and how many inodes hold a reference of it. The
    /// destination drops these references when all inodes are open.
    #[must_use]
    pub fn child_counts(&self) -> BTreeMap<u64, u64> {
        let mut counts = BTreeMap::new();
        for inode in &self.inodes {
            if let Location::Child { parent, .. } = &inode.location {
                *counts.entry(*parent).or_default() += 1;
            }
        }
        counts
    }
}
