//! The state of a guest that leaves.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::AsFd;

use gangplank_fuse::NodeId;
use gangplank_service::rate_limited;

use super::super::fs::{Node, PassthroughFs};
use super::super::inode_transfer::KnownInode;
use super::super::mounts::Identity;
use super::listing::Listing;
use super::paths::{Directories, Located};
use crate::state::migration::{
    FileHandle, GuestState, Inode, Location, MigrationMode, ROOT_ID, TransferError,
};
use crate::sys;

impl PassthroughFs {
    /// What another daemon needs to know of the guest. Options and session are left out.
    ///
    /// # Errors
    /// The guest holds locks on the host's files: the kernel does not tell which.
    pub(super) fn save_guest(&self) -> Result<GuestState, TransferError> {
        let locks = self.state.posix_locks.len() + self.state.files.flocks();
        if locks > 0 {
            return Err(TransferError::Locks(locks));
        }
        let known = self.state.inodes.known();
        let mut without_handle = Listing::default();
        let mut state = GuestState {
            next_inode: self.state.inodes.next_id().max(ROOT_ID + 1),
            handles: self.state.files.known(),
            next_handle: self.state.files.next_handle(),
            ..GuestState::default()
        };
        let root = Inode {
            id: ROOT_ID,
            // The guest never forgets the root.
            references: 2,
            location: Location::Root,
            file_handle: self.handle_to_verify(
                &self.node(NodeId::ROOT).map_err(root_error)?,
                &mut without_handle,
            ),
        };
        state.inodes.push(root);
        match self.share.options.migration.mode {
            MigrationMode::FindPaths => {
                self.save_by_paths(&known, &mut state, &mut without_handle);
            }
            MigrationMode::FileHandles => {
                self.save_by_handles(&known, &mut state, &mut without_handle);
            }
        }
        if without_handle.count() > 0 {
            rate_limited!(
                warn,
                "{} inodes of the guest have no file handle: {without_handle}",
                without_handle.count()
            );
        }
        Ok(state)
    }

    fn save_by_paths(
        &self,
        known: &[KnownInode],
        state: &mut GuestState,
        without_handle: &mut Listing,
    ) {
        let ids: HashMap<Identity, u64> = known
            .iter()
            .map(|inode| (inode.identity, inode.id.get()))
            .chain([(self.share.root_identity, ROOT_ID)])
            .collect();
        let mut directories = Directories::new(&self.share, ids, state.next_inode);
        let mut found: HashMap<u64, (Location, Option<FileHandle>)> = HashMap::new();
        let mut add = |located: Vec<Located>| {
            for Located { id, path } in located {
                if let Ok(node) = self.node(id)
                    && let Some(location) = directories.locate(&path, node.identity)
                {
                    let handle = self.handle_to_verify(&node, without_handle);
                    found.insert(id.get(), (location, handle));
                }
            }
            known
                .iter()
                .filter(|inode| !found.contains_key(&inode.id.get()))
                .copied()
                .collect()
        };
        let missing: Vec<KnownInode> = add(self.current_paths(known));
        if !missing.is_empty() {
            // Their descriptors' names are gone, but they may have others.
            add(self.search(&missing));
        }

        let mut without_path = Listing::default();
        for inode in known {
            let id = inode.id.get();
            let (location, file_handle) = found.remove(&id).unwrap_or((Location::Invalid, None));
            let is_verified = !self.share.options.migration.verify_handles || file_handle.is_some();
            if !is_verified || location == Location::Invalid {
                without_path.add(id);
            }
            state.inodes.push(Inode {
                id,
                references: inode.lookups,
                location: if is_verified {
                    location
                } else {
                    Location::Invalid
                },
                file_handle: file_handle.filter(|_| is_verified),
            });
        }
        if without_path.count() > 0 {
            rate_limited!(
                warn,
                "{} inodes of the guest have no path that another daemon could find: \
                 {without_path}",
                without_path.count()
            );
        }
        let (above, next_inode) = directories.into_new();
        state
            .inodes
            .extend(above.into_iter().map(|(id, location)| Inode {
                id,
                references: 0,
                location,
                file_handle: None,
            }));
        state.next_inode = next_inode;
        // Each child holds a reference of its parent.
        let counts = state.child_counts();
        for inode in &mut state.inodes {
            inode.references += counts.get(&inode.id).copied().unwrap_or(0);
        }
    }

    fn save_by_handles(
        &self,
        known: &[KnownInode],
        state: &mut GuestState,
        without_handle: &mut Listing,
    ) {
        let mut mounts = BTreeMap::from([(0, Some(".".to_owned()))]);
        for inode in known {
            let id = inode.id.get();
            let node = self.node(inode.id);
            let handle =
                node.and_then(|node| Ok((sys::file_handle::FileHandle::of(node.as_fd())?, node)));
            let location = match handle {
                Ok((handle, node)) => {
                    let mount_id = u64::from(inode.identity.mount.0);
                    let path = mounts.entry(mount_id).or_insert(None);
                    // Any directory on the mount leads to it.
                    if path.is_none() && node.file_type.can_be_opened() {
                        let found = self.share.path_in_share(node.as_fd()).ok().flatten();
                        *path = found.and_then(|path| String::from_utf8(path.into()).ok());
                    }
                    Location::FileHandle(stream_handle(mount_id, &handle))
                }
                Err(error) => {
                    without_handle.add(format_args!("{id}: {error}"));
                    Location::Invalid
                }
            };
            state.inodes.push(Inode {
                id,
                references: inode.lookups,
                location,
                file_handle: None,
            });
        }
        let is_used = |mount: &u64| {
            state.inodes.iter().any(|inode| {
                matches!(&inode.location, Location::FileHandle(handle) if handle.mount_id == *mount)
            })
        };
        let mounts = mounts.into_iter().filter(|(mount, _)| is_used(mount));
        state.mount_paths = mounts
            .filter_map(|(mount, path)| Some((mount, path?)))
            .collect();
    }

    /// The handle that the destination compares, if the options ask for it.
    fn handle_to_verify(&self, node: &Node, without_handle: &mut Listing) -> Option<FileHandle> {
        if !self.share.options.migration.verify_handles {
            return None;
        }
        let handle = sys::file_handle::FileHandle::of(node.as_fd());
        let handle = handle.inspect_err(|error| {
            without_handle.add(format_args!("{}: {error}", node.id));
        });
        Some(stream_handle(node.identity.mount.0.into(), &handle.ok()?))
    }
}

fn stream_handle(mount_id: u64, handle: &sys::file_handle::FileHandle) -> FileHandle {
    FileHandle {
        mount_id,
        handle_type: handle.kind(),
        bytes: handle.bytes().to_vec(),
    }
}

fn root_error(source: io::Error) -> TransferError {
    TransferError::Inode {
        id: ROOT_ID,
        place: "the shared directory".to_owned(),
        source,
    }
}
