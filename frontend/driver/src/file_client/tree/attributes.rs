//! Attributes that a copy takes over: owner, extended attributes, permissions, times.

use rustix::fs::FileType;
use rustix::io::Errno;

use super::super::error::{Error, Result};
use super::{Item, Tree};

/// Bits of a mode that chmod(2) sets.
const MODE: u32 = 0o7777;
/// The set-user-id and set-group-id bits.
const SET_ID: u32 = 0o6000;

/// Whether extended attributes are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Xattrs {
    Copy,
    Leave,
}

/// Gives `to` the attributes of `item`. What only root may do is left out where it is refused: the
/// owner, and with it the set-id bits, and attributes outside of `user.`.
pub(super) fn preserve<S: Tree, T: Tree>(
    source: &S,
    target: &T,
    item: &Item<S::File>,
    to: &T::File,
    xattrs: Xattrs,
) -> Result<()> {
    let attr = &item.attr;
    let is_link = item.kind() == FileType::Symlink;
    let mut is_owner_kept = true;
    if let Err(error) = target.set_owner(to, Some(attr.uid), attr.gid) {
        is_owner_kept = false;
        ignore(error, &[Errno::PERM, Errno::INVAL, Errno::NOSYS])?;
        // A user may give a file to another group of theirs.
        let given = target.set_owner(to, None, attr.gid);
        given.or_else(|error| ignore(error, &[Errno::PERM, Errno::INVAL, Errno::NOSYS]))?;
    }
    let copied = match xattrs {
        Xattrs::Copy => source.xattrs(&item.file)?,
        Xattrs::Leave => Vec::new(),
    };
    // Before the permissions: the file may be one that its owner must not write.
    for (name, value) in copied {
        if let Err(error) = target.set_xattr(to, &name, &value) {
            let is_users = name.as_bytes().starts_with(b"user.");
            let ignored: &[Errno] = match is_users {
                true => &[Errno::OPNOTSUPP, Errno::NOSYS],
                false => &[
                    Errno::OPNOTSUPP,
                    Errno::NOSYS,
                    Errno::PERM,
                    Errno::ACCESS,
                    Errno::INVAL,
                ],
            };
            ignore(error, ignored)?;
        }
    }
    if !is_link {
        let kept = if is_owner_kept { MODE } else { MODE & !SET_ID };
        target.set_mode(to, attr.mode & kept)?;
    }
    target.set_times(to, attr)
}

/// Whether [`preserve`] would change the permissions or the time of modification.
pub(super) fn differ<S, T>(item: &Item<S>, other: &Item<T>) -> bool {
    let is_link = item.kind() == FileType::Symlink;
    let modes_differ = !is_link && (item.attr.mode ^ other.attr.mode) & (MODE & !SET_ID) != 0;
    modes_differ || !is_same_time(item, other)
}

/// Whether both were modified at the same time, as far as their file systems tell.
pub(super) fn is_same_time<S, T>(item: &Item<S>, other: &Item<T>) -> bool {
    let (one, other) = (&item.attr, &other.attr);
    let fractions = (one.mtimensec, other.mtimensec);
    one.mtime == other.mtime && (fractions.0 == fractions.1 || fractions.0 == 0 || fractions.1 == 0)
}

/// Success if the error is one of `errnos`.
fn ignore(error: Error, errnos: &[Errno]) -> Result<()> {
    match error.errno() {
        Some(errno) if errnos.contains(&errno) => Ok(()),
        _ => Err(error),
    }
}
