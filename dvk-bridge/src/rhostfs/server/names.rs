//! link, unlink, mknod, mkdir, rmdir, symlink, readlink, rename.

use std::ffi::{CStr, CString};

use gangplank_fuse::{EntryOut, MkdirIn, MknodIn};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::call::Name;
use super::credentials::Access;
use super::failure::Result;
use super::path::Path;
use super::request_context::{Answer, RequestContext};
use super::resolver::{Found, Last, SymlinkPolicy};

/// The two names are exchanged (`RENAME_EXCHANGE`).
const EXCHANGE: u32 = 2;
/// The new name must not exist (`RENAME_NOREPLACE`).
const NO_REPLACE: u32 = 1;

/// Type bits of a mode (`S_IFMT`), and those of a regular file.
const TYPE_BITS: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;

/// Whether a name may end in a slash.
#[derive(Clone, Copy, Eq, PartialEq)]
enum TrailingSlash {
    Allowed,
    /// The new file is not a directory.
    Refused,
}

impl RequestContext<'_> {
    pub(super) fn link(&self, old: Name, new: Name) -> Result<Answer> {
        let (old, new) = (self.path(old)?, self.path(new)?);
        let found = self.resolver().find(&old, Last::Keep)?;
        if found.is_directory() {
            return Err(Errno::PERM.into());
        }
        let (parent, name) = self.parent_for_new(&new, TrailingSlash::Refused)?;
        let entry = self.session.link(found.id(), parent.id(), name)?;
        self.finish_create(&entry)
    }

    pub(super) fn unlink(&self, name: Name) -> Result<Answer> {
        let path = self.path(name)?;
        let (parent, name) = self.resolver().parent(&path, Errno::ISDIR)?;
        let found = self.removable(&parent, name)?;
        match (path.means_directory(), found.is_directory()) {
            (_, true) => return Err(Errno::ISDIR.into()),
            (true, false) => return Err(Errno::NOTDIR.into()),
            (false, false) => {}
        }
        self.clients.reopen_parked(found.attr.ino, self.backend);
        self.session.unlink(parent.id(), name)?;
        self.resolver().changed(&parent, name);
        Ok(Answer::DONE)
    }

    pub(super) fn rmdir(&self, name: Name) -> Result<Answer> {
        let path = self.path(name)?;
        let root_or_dot = if path.names().is_empty() {
            Errno::BUSY
        } else {
            Errno::INVAL
        };
        let (parent, name) = self.resolver().parent(&path, root_or_dot)?;
        let found = self.removable(&parent, name)?;
        if !found.is_directory() {
            return Err(Errno::NOTDIR.into());
        }
        self.session.rmdir(parent.id(), name)?;
        self.resolver().changed(&parent, name);
        Ok(Answer::DONE)
    }

    pub(super) fn mknod(&self, name: Name, mode: u32, device: u32) -> Result<Answer> {
        let path = self.path(name)?;
        let (parent, name) = self.parent_for_new(&path, TrailingSlash::Refused)?;
        let kind = match mode & TYPE_BITS {
            0 => REGULAR,
            kind => kind,
        };
        if FileType::from_raw_mode(kind) == FileType::Directory {
            return Err(Errno::PERM.into());
        }
        let args = MknodIn {
            mode: kind | mode & 0o7777,
            rdev: device,
            ..MknodIn::default()
        };
        let entry = self.session.mknod(parent.id(), name, args)?;
        self.finish_create(&entry)
    }

    pub(super) fn mkdir(&self, name: Name, mode: u32) -> Result<Answer> {
        let path = self.path(name)?;
        let (parent, name) = self.parent_for_new(&path, TrailingSlash::Allowed)?;
        let args = MkdirIn {
            mode: mode & 0o7777,
            umask: 0,
        };
        let entry = self.session.mkdir(parent.id(), name, args)?;
        self.finish_create(&entry)
    }

    /// The target may be any text. The server follows links beneath the root only.
    pub(super) fn symlink(&self, target: Name, link: Name) -> Result<Answer> {
        let target = self.text(target, "a link's target")?;
        let target = CString::from_vec_with_nul(target).map_err(|_| Errno::INVAL)?;
        if target.is_empty() {
            return Err(Errno::NOENT.into());
        }
        let path = self.path(link)?;
        let (parent, name) = self.parent_for_new(&path, TrailingSlash::Refused)?;
        let entry = self.session.symlink(parent.id(), name, &target)?;
        self.finish_create(&entry)
    }

    /// An unpatched client does not say where its buffer is. A copy to the apparent address would
    /// corrupt its kernel.
    pub(super) fn readlink(&self, name: Name, size: i32, buffer: u32) -> Result<Answer> {
        if self.settings.symlinks != SymlinkPolicy::Patched {
            return Err(Errno::IO.into());
        }
        let room = usize::try_from(size).ok().filter(|size| *size > 0);
        let room = room.ok_or(Errno::INVAL)?;
        let path = self.path(name)?;
        let found = self.resolver().find(&path, Last::Keep)?;
        if found.kind() != FileType::Symlink {
            return Err(Errno::INVAL.into());
        }
        let mut target = self.session.readlink(found.id())?;
        let length = target.len().min(room);
        target.push(0);
        target.truncate(room);
        self.copy_to("a link's target", buffer, &target)?;
        Ok(Answer::Result(
            i32::try_from(length).map_err(|_| Errno::IO)?,
        ))
    }

    pub(super) fn rename(&self, old: Name, new: Name, flags: u32) -> Result<Answer> {
        if flags & !(NO_REPLACE | EXCHANGE) != 0 || flags == NO_REPLACE | EXCHANGE {
            return Err(Errno::INVAL.into());
        }
        let (old, new) = (self.path(old)?, self.path(new)?);
        let (old_parent, old_name) = self.resolver().parent(&old, Errno::BUSY)?;
        let moving = self.removable(&old_parent, old_name)?;
        let (new_parent, new_name) = self.resolver().parent(&new, Errno::BUSY)?;
        self.check_change(&new_parent)?;
        if moving.is_directory() && old_parent.id() != new_parent.id() {
            // A move to another directory changes its `..`.
            self.resolver().check(&moving, Access::WRITE)?;
        }
        if (old.means_directory() || new.means_directory()) && !moving.is_directory() {
            return Err(Errno::NOTDIR.into());
        }
        if let Some(there) = self.resolver().child(&new_parent, new_name)? {
            self.settings
                .credentials
                .check_sticky(&new_parent.attr, &there.attr)?;
            self.clients.reopen_parked(there.attr.ino, self.backend);
        }
        let (from, to) = (old_parent.id(), new_parent.id());
        if flags == 0 {
            self.session.rename(from, old_name, to, new_name)?;
        } else {
            self.session.rename2(from, old_name, to, new_name, flags)?;
        }
        self.resolver().changed(&old_parent, old_name);
        self.resolver().changed(&new_parent, new_name);
        if flags & EXCHANGE == 0 {
            self.clients.moved(&old, &new);
        }
        Ok(Answer::DONE)
    }

    /// The parent directory and name of a new file. The daemon checks that the name is free.
    fn parent_for_new<'a>(
        &self,
        path: &'a Path,
        slash: TrailingSlash,
    ) -> Result<(Found, &'a CStr)> {
        let (parent, name) = self.resolver().parent(path, Errno::EXIST)?;
        if path.means_directory() && slash == TrailingSlash::Refused {
            return Err(Errno::NOENT.into());
        }
        match self.check_change(&parent) {
            Ok(()) => Ok((parent, name)),
            // An existing file is the better reason.
            Err(refused) => match self.resolver().child(&parent, name)? {
                Some(_) => Err(Errno::EXIST.into()),
                None => Err(refused),
            },
        }
    }

    /// The file `name`, if the user may remove it from its directory.
    fn removable(&self, parent: &Found, name: &CStr) -> Result<Found> {
        let found = self.resolver().child(parent, name)?.ok_or(Errno::NOENT)?;
        self.check_change(parent)?;
        self.settings
            .credentials
            .check_sticky(&parent.attr, &found.attr)?;
        Ok(found)
    }

    pub(super) fn check_change(&self, directory: &Found) -> Result<()> {
        self.resolver().check(directory, Access::CHANGE)
    }

    /// Drops the reference that came with a new file.
    fn finish_create(&self, entry: &EntryOut) -> Result<Answer> {
        drop(self.resolver().found(entry));
        Ok(Answer::DONE)
    }
}
