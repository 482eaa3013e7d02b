//! By which path another daemon reaches an inode.
//!
//! A descriptor's path is what `/proc/self/fd` says, and it is walked from the root before it
//! counts: the kernel adds remarks to it, and a name may lead elsewhere by now. Inodes that this
//! does not find are sought in the whole share: their descriptor's name is gone, but they may have
//! another.
//!
//! Directories on the way that the guest does not know are written as well, with ids that it has
//! not had.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use gangplank_fuse::NodeId;

use super::super::dir_stream;
use super::super::file_type::FileType;
use super::super::fs::PassthroughFs;
use super::super::inode_transfer::KnownInode;
use super::super::mounts::{Identity, MountIndex};
use super::super::share::Share;
use crate::state::migration::{Location, MAX_DEPTH, ROOT_ID};
use crate::sys::file;

/// An inode with its path.
pub(super) struct Located {
    pub(super) id: NodeId,
    /// From the root, without a slash before it.
    pub(super) path: Box<[u8]>,
}

/// The directories of the share, as far as they are on the way to a guest's inodes.
pub(super) struct Directories<'a> {
    share: &'a Share,
    /// The ids of inodes that the stream has.
    ids: HashMap<Identity, u64>,
    /// Those that the guest does not know, and where they are.
    new: Vec<(u64, Location)>,
    next_id: u64,
    /// The directories that were walked through last, from the root on.
    open: Vec<OpenDirectory>,
}

struct OpenDirectory {
    name: Box<[u8]>,
    directory: OwnedFd,
    id: u64,
}

impl<'a> Directories<'a> {
    pub(super) fn new(share: &'a Share, ids: HashMap<Identity, u64>, next_id: u64) -> Self {
        Self {
            share,
            ids,
            new: Vec::new(),
            next_id,
            open: Vec::new(),
        }
    }

    /// The location of the inode at `path`; `None` if it is another, or there is none.
    pub(super) fn locate(&mut self, path: &[u8], identity: Identity) -> Option<Location> {
        let mut above = path.rsplitn(2, |byte| *byte == b'/');
        let name = above.next()?;
        self.enter(above.next().unwrap_or_default()).ok()?;
        let (directory, parent) = self.current();
        let found = self.identity_at(directory, name).ok()?;
        (found == identity).then(|| Location::child(parent, OsStr::from_bytes(name)))
    }

    /// The inodes that the guest does not know, and the first id that is not used.
    pub(super) fn into_new(self) -> (Vec<(u64, Location)>, u64) {
        (self.new, self.next_id)
    }

    /// Opens the directory at `path`, and those on the way.
    fn enter(&mut self, path: &[u8]) -> io::Result<()> {
        let names: Vec<&[u8]> = path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
            .collect();
        let same = self.open.iter().zip(&names);
        let same = same
            .take_while(|(open, name)| *open.name == ***name)
            .count();
        self.open.truncate(same);
        for name in names.into_iter().skip(same) {
            self.enter_one(name)?;
        }
        Ok(())
    }

    fn enter_one(&mut self, name: &[u8]) -> io::Result<()> {
        let (above, parent) = self.current();
        let directory = file::open_path(above, &CString::new(name)?)?;
        let stat = file::identity(directory.as_fd())?;
        if FileType::of(&stat) != FileType::Directory {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let mount = self.share.mounts.find_or_add(&stat, directory.as_fd())?;
        let identity = Identity::new(mount.index(), &stat);
        let id = match self.ids.get(&identity) {
            Some(id) => *id,
            None => {
                let id = self.next_id;
                self.next_id += 1;
                self.ids.insert(identity, id);
                self.new
                    .push((id, Location::child(parent, OsStr::from_bytes(name))));
                id
            }
        };
        self.open.push(OpenDirectory {
            name: name.into(),
            directory,
            id,
        });
        Ok(())
    }

    /// The directory that was entered, and its id.
    fn current(&self) -> (BorrowedFd<'_>, u64) {
        match self.open.last() {
            Some(open) => (open.directory.as_fd(), open.id),
            None => (self.share.root.as_fd(), ROOT_ID),
        }
    }

    fn identity_at(&self, directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<Identity> {
        let stat = file::identity_at(directory, &CString::new(name)?)?;
        let mount = self
            .share
            .mounts
            .find(&stat, self.share.root_identity.mount);
        let mount = mount.ok_or(io::ErrorKind::NotFound)?;
        Ok(Identity::new(mount, &stat))
    }
}

impl PassthroughFs {
    /// The paths of inodes according to `/proc/self/fd`, sorted, so that those of one directory
    /// follow each other.
    pub(super) fn current_paths(&self, known: &[KnownInode]) -> Vec<Located> {
        let path_of = |inode: &KnownInode| {
            let node = self.node(inode.id).ok()?;
            let path = self.share.path_in_share(node.as_fd()).ok()??;
            Some(Located { id: inode.id, path })
        };
        let mut located: Vec<Located> = known.iter().filter_map(path_of).collect();
        located.sort_by(|one, other| one.path.cmp(&other.path));
        located
    }

    /// Seeks inodes in the whole share, and returns the paths of those that it finds.
    pub(super) fn search(&self, sought: &[KnownInode]) -> Vec<Located> {
        let has_name = |inode: &&KnownInode| {
            let stat = self
                .node(inode.id)
                .and_then(|node| file::identity(node.as_fd()));
            stat.is_ok_and(|stat| stat.stx_nlink > 0)
        };
        let sought = sought.iter().filter(has_name);
        let mut sought: HashMap<Identity, NodeId> =
            sought.map(|inode| (inode.identity, inode.id)).collect();
        let mut found = Vec::new();
        let mut unvisited: Vec<Vec<u8>> = vec![Vec::new()];
        while let (false, Some(directory)) = (sought.is_empty(), unvisited.pop()) {
            let depth = directory.iter().filter(|byte| **byte == b'/').count();
            // What cannot be listed has no name that the guest could use.
            let Ok(entries) = self.list(&directory) else {
                continue;
            };
            for (name, identity) in entries {
                let mut path = directory.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend(name.to_bytes());
                if let Some(id) = sought.remove(&identity) {
                    let path = path.clone().into();
                    found.push(Located { id, path });
                }
                if identity.file_type == FileType::Directory && depth < MAX_DEPTH as usize {
                    unvisited.push(path);
                }
            }
        }
        found
    }

    /// The names in the directory at `path`, and what they lead to.
    fn list(&self, path: &[u8]) -> io::Result<Vec<(CString, Identity)>> {
        let root = self.share.root.as_fd();
        let path = if path.is_empty() { b"." } else { path };
        let found = file::open_dir_beneath(root, path)?;
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let directory = file::reopen_through_proc(self.share.proc_self_fd(), found.as_fd(), flags)?;
        let names = dir_stream::names(directory.as_fd())?;
        let identified = names.into_iter().filter_map(|name| {
            let stat = file::identity_at(directory.as_fd(), &name).ok()?;
            let mount = self.share.mounts.find(&stat, MountIndex::ROOT)?;
            Some((name, Identity::new(mount, &stat)))
        });
        Ok(identified.collect())
    }
}
