//! Creates, renames and removes names.

use std::ffi::OsStr;

use gangplank_service::rate_limited;
use log::warn;
use rustix::io::Errno;

use super::super::calls::Target;
use super::super::nodes::{S_IFDIR, S_IFMT};
use super::arguments::{Creator, Owner};
use super::{InodeOps, Result, identity};
use crate::abi::rhostfs::UsrStat;

/// Set-group-id bit. A directory with it gives its group to new entries.
const S_ISGID: u32 = 0o2000;
/// The bits that a change of owner clears.
const SET_IDS: u32 = 0o6000;
const S_IFLNK: u32 = 0o120_000;

/// Flags of renameat2 that the protocol supports.
const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;

impl InodeOps {
    /// Creates a directory.
    pub(crate) fn make_directory(
        &mut self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        creator: Creator,
    ) -> Result<(u64, UsrStat)> {
        let path = self.path_of(parent, name)?;
        self.calls.mkdir(&path, mode & 0o7777)?;
        self.finish_create(parent, name, &path, mode, creator)
    }

    /// Creates a file that is neither a directory nor a link. `mode` includes the kind.
    pub(crate) fn make_node(
        &mut self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        dev: u32,
        creator: Creator,
    ) -> Result<(u64, UsrStat)> {
        let path = self.path_of(parent, name)?;
        self.calls.mknod(&path, mode, dev)?;
        self.finish_create(parent, name, &path, mode, creator)
    }

    /// Creates a symbolic link with the text `target`.
    pub(crate) fn make_link(
        &mut self,
        parent: u64,
        name: &OsStr,
        target: &[u8],
        creator: Creator,
    ) -> Result<(u64, UsrStat)> {
        let path = self.path_of(parent, name)?;
        self.calls.symlink(target, &path)?;
        self.finish_create(parent, name, &path, 0, creator)
    }

    /// Gives the node another name.
    pub(crate) fn link(&mut self, node: u64, parent: u64, name: &OsStr) -> Result<(u64, UsrStat)> {
        let old = self.path(node)?;
        let new = self.path_of(parent, name)?;
        self.calls.link(&old, &new)?;
        let stat = self.calls.stat(Target::Path(&new))?;
        let node = if self.nodes.identity(node) == Some(identity(&stat)) {
            self.nodes.bind(parent, name, node);
            node
        } else {
            self.adopt(parent, name, &stat)
        };
        self.note(node, &stat);
        self.nodes.looked_up(node);
        Ok((node, stat))
    }

    /// Removes a name that is not a directory's.
    pub(crate) fn unlink(&mut self, parent: u64, name: &OsStr) -> Result<()> {
        let path = self.path_of(parent, name)?;
        self.calls.unlink(&path)?;
        self.nodes.unbind(parent, name);
        Ok(())
    }

    /// Removes an empty directory.
    pub(crate) fn remove_directory(&mut self, parent: u64, name: &OsStr) -> Result<()> {
        let path = self.path_of(parent, name)?;
        self.calls.rmdir(&path)?;
        self.nodes.unbind(parent, name);
        Ok(())
    }

    /// Renames with Linux's rename flags.
    pub(crate) fn rename(
        &mut self,
        old: (u64, &OsStr),
        new: (u64, &OsStr),
        flags: u32,
    ) -> Result<()> {
        if flags & !(RENAME_NOREPLACE | RENAME_EXCHANGE) != 0 {
            return Err(Errno::INVAL);
        }
        let old_path = self.path_of(old.0, old.1)?;
        let new_path = self.path_of(new.0, new.1)?;
        self.calls.rename(&old_path, &new_path, flags)?;
        self.nodes.renamed(old, new, flags & RENAME_EXCHANGE != 0);
        Ok(())
    }

    /// The node of the new file at `path`, after a change of owner to its creator.
    fn finish_create(
        &mut self,
        parent: u64,
        name: &OsStr,
        path: &[u8],
        mode: u32,
        creator: Creator,
    ) -> Result<(u64, UsrStat)> {
        let mut stat = self.calls.stat(Target::Path(path))?;
        self.change_owner(Target::Path(path), parent, &mut stat, mode, creator);
        let node = self.adopt(parent, name, &stat);
        self.nodes.looked_up(node);
        Ok((node, stat))
    }

    /// Changes the owner of the new file in `parent` to its creator, if the mount does that.
    pub(super) fn change_owner(
        &mut self,
        target: Target<'_>,
        parent: u64,
        stat: &mut UsrStat,
        mode: u32,
        creator: Creator,
    ) {
        let groups = self.nodes.permissions(parent) & S_ISGID == 0;
        let uid = (stat.uid != creator.uid).then_some(creator.uid);
        let gid = (groups && stat.gid != creator.gid).then_some(creator.gid);
        let wanted = self.owner == Owner::Caller && !self.chown_refused;
        let possible = stat.mode & S_IFMT != S_IFLNK || self.calls.dialect().can_chown_links();
        if !wanted || !possible || (uid, gid) == (None, None) {
            return;
        }
        let given = self.calls.chown(target, uid, gid).and_then(|()| {
            // The change of owner cleared these bits, except on directories.
            if mode & SET_IDS != 0 && stat.mode & S_IFMT != S_IFDIR {
                self.calls.chmod(target, mode & 0o7777)
            } else {
                Ok(())
            }
        });
        match given {
            Ok(()) => {
                stat.uid = uid.unwrap_or(stat.uid);
                stat.gid = gid.unwrap_or(stat.gid);
            }
            Err(error) if error.is(Errno::PERM) => {
                warn!("the server cannot change owners; new files belong to the server's user");
                self.chown_refused = true;
            }
            Err(error) => rate_limited!(
                warn,
                "cannot change the owner of a new file to user {}: {error}",
                creator.uid
            ),
        }
    }
}
