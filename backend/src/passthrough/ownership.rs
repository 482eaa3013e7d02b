//! Owners, modes and types that the host does not have (`--ownership=mapped`).
//!
//! An ordinary user can give no file away and make no device. So these are kept in attributes of
//! the file, by the names that QEMU's 9P server gives them (`security_model=mapped-xattr`):
//!
//! | attribute | content, little-endian |
//! | --- | --- |
//! | `user.virtfs.uid`, `user.virtfs.gid` | the guest's ids, 32 bits each |
//! | `user.virtfs.mode` | the mode with the type, 32 bits |
//! | `user.virtfs.rdev` | the device number, 64 bits |
//!
//! Only regular files and directories have such attributes. So all else is a regular file on the
//! host; one that is a symbolic link to the guest contains its target. What has no attributes is
//! what the host says, but the daemon's user is the guest's root. `user.containers.override_stat`,
//! which fuse-overlayfs writes, is read as well.
//!
//! The guest's kernel checks access. On the host only the daemon's user may touch what it makes.

use std::borrow::Cow;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use gangplank_fuse::{InitFlags, SetattrIn, SetattrValid};

use super::file_type::FileType;
use super::fs::{Node, PassthroughFs};
use super::options::Ownership;
use crate::session::Creator;
use crate::sys::file::{self, Statx};
use crate::sys::{file_content, thread, xattr};

const UID: &CStr = c"user.virtfs.uid";
const GID: &CStr = c"user.virtfs.gid";
const MODE: &CStr = c"user.virtfs.mode";
const RDEV: &CStr = c"user.virtfs.rdev";

/// What QEMU's names begin with.
const QEMU: &[u8] = b"user.virtfs.";

/// fuse-overlayfs's attribute: `uid:gid:mode[:type]`, the mode in octal.
const OVERRIDE: &CStr = c"user.containers.override_stat";

/// Room for the names of a file's attributes. If they are more, each is asked for.
const LIST_ROOM: usize = 2048;

/// What is recorded of an object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Record {
    uid: Option<u32>,
    gid: Option<u32>,
    /// With the type, or without one if that is the host's.
    mode: Option<u32>,
    /// Major and minor number.
    rdev: Option<(u32, u32)>,
}

impl Record {
    /// The attributes of an object with this record. `own_uid` and `own_gid` are the daemon's.
    fn apply(self, stat: &mut Statx, (own_uid, own_gid): (u32, u32)) {
        let root_or = |id: u32, own: u32| if id == own { 0 } else { id };
        stat.stx_uid = self.uid.unwrap_or_else(|| root_or(stat.stx_uid, own_uid));
        stat.stx_gid = self.gid.unwrap_or_else(|| root_or(stat.stx_gid, own_gid));
        let Some(mode) = self.mode else {
            return;
        };
        let host_type = u32::from(stat.stx_mode) & libc::S_IFMT;
        // A directory stays one, and nothing else becomes one.
        let file_type = match mode & libc::S_IFMT {
            0 | libc::S_IFDIR => host_type,
            recorded if host_type == libc::S_IFREG => recorded,
            _ => host_type,
        };
        // Both parts have 16 bits.
        stat.stx_mode = u16::try_from(file_type | mode & 0o7777).unwrap_or(stat.stx_mode);
        if matches!(file_type, libc::S_IFCHR | libc::S_IFBLK) {
            (stat.stx_rdev_major, stat.stx_rdev_minor) = self.rdev.unwrap_or_default();
        }
        if matches!(
            file_type,
            libc::S_IFCHR | libc::S_IFBLK | libc::S_IFIFO | libc::S_IFSOCK
        ) {
            (stat.stx_size, stat.stx_blocks) = (0, 0);
        }
    }

    /// Reads fuse-overlayfs's attribute.
    fn of_override(text: &str) -> Option<Self> {
        let mut fields = text.trim_end_matches('\0').split(':');
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let mode = u32::from_str_radix(fields.next()?, 8).ok()? & 0o7777;
        let (kind, rdev) = match fields.next() {
            None => (0, None),
            Some(name) => {
                let mut parts = name.split('-');
                let kind = match parts.next()? {
                    "file" => libc::S_IFREG,
                    "dir" => libc::S_IFDIR,
                    "symlink" => libc::S_IFLNK,
                    "pipe" => libc::S_IFIFO,
                    "socket" => libc::S_IFSOCK,
                    "char" => libc::S_IFCHR,
                    "block" => libc::S_IFBLK,
                    _ => return None,
                };
                let numbers = parts.next().zip(parts.next());
                let rdev = numbers
                    .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
                (kind, rdev)
            }
        };
        Some(Self {
            uid: Some(uid),
            gid: Some(gid),
            mode: Some(kind | mode),
            rdev,
        })
    }
}

/// Whether an attribute of the host belongs to the daemon, so that guests must not see it.
pub(super) fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(QEMU) || name == OVERRIDE.to_bytes()
}

impl PassthroughFs {
    /// Whether owners, modes and types are recorded.
    pub(super) fn maps_ownership(&self) -> bool {
        self.share.options.ownership == Ownership::Mapped
    }

    /// The mode with which the host makes an object that the guest wants to have `mode`.
    pub(super) fn host_mode(&self, mode: u32) -> u32 {
        match (self.maps_ownership(), mode & libc::S_IFMT) {
            (false, _) => mode,
            (true, libc::S_IFDIR) => libc::S_IFDIR | 0o700,
            (true, _) => libc::S_IFREG | 0o600,
        }
    }

    /// What is to be recorded of a new object in `parent`; `None` if nothing is. `mode` has the
    /// type.
    ///
    /// # Errors
    /// EINVAL for an id that does not exist; those of `statx(2)`.
    pub(super) fn new_record(
        &self,
        creator: &Creator<'_>,
        parent: &Node,
        mode: u32,
        rdev: Option<(u32, u32)>,
    ) -> io::Result<Option<Record>> {
        if !self.maps_ownership() {
            return Ok(None);
        }
        let caller = creator.caller;
        check_ids([caller.uid.get(), caller.gid.get()])?;
        let umask = match self.state.negotiated.has(InitFlags::DONT_MASK) {
            true if mode & libc::S_IFMT != libc::S_IFLNK => creator.umask & 0o777,
            _ => 0,
        };
        let mut mode = mode & !umask;
        let mut gid = caller.gid.get();
        let above = file::stat(parent.as_fd())?;
        let above = self.seen(parent.as_fd(), &above);
        // As the kernel does in such a directory (`inode_init_owner`, `fs/inode.c`).
        if u32::from(above.stx_mode) & libc::S_ISGID != 0 {
            let is_member = above.stx_gid == gid || caller.uid.get() == 0;
            gid = above.stx_gid;
            if mode & libc::S_IFMT == libc::S_IFDIR {
                mode |= libc::S_ISGID;
            } else if !is_member && mode & libc::S_IXGRP != 0 {
                mode &= !libc::S_ISGID;
            }
        }
        Ok(Some(Record {
            uid: Some(caller.uid.get()),
            gid: Some(gid),
            mode: Some(mode),
            rdev,
        }))
    }

    /// The attributes that the guest sees of a file whose attributes on the host are `stat`.
    pub(super) fn seen<'s>(&self, file: BorrowedFd<'_>, stat: &'s Statx) -> Cow<'s, Statx> {
        if !self.maps_ownership() {
            return Cow::Borrowed(stat);
        }
        let mut seen = *stat;
        let (uid, gid) = thread::initial_ids();
        self.record_of(file, stat)
            .apply(&mut seen, (uid.get(), gid.get()));
        Cow::Owned(seen)
    }

    /// Changes what is recorded of a file: owner, group and mode, as far as `args` says.
    ///
    /// # Errors
    /// EPERM if the host's file system cannot record it; EINVAL for an id that does not exist.
    pub(super) fn change_record(&self, node: &Node, args: &SetattrIn) -> io::Result<()> {
        let valid = SetattrValid::from_bits_retain(args.valid);
        let given = |flag, value| valid.contains(flag).then_some(value);
        let (uid, gid) = (
            given(SetattrValid::UID, args.uid),
            given(SetattrValid::GID, args.gid),
        );
        check_ids([uid.unwrap_or(0), gid.unwrap_or(0)])?;
        let stat = file::stat(node.as_fd())?;
        let stat = self.seen(node.as_fd(), &stat);
        let kind = u32::from(stat.stx_mode) & libc::S_IFMT;
        let record = Record {
            uid: uid.filter(|uid| *uid != stat.stx_uid),
            gid: gid.filter(|gid| *gid != stat.stx_gid),
            mode: given(SetattrValid::MODE, kind | args.mode & 0o7777)
                .filter(|mode| *mode != u32::from(stat.stx_mode)),
            rdev: None,
        };
        self.set_record(node.as_fd(), &record)
    }

    /// Records an object.
    ///
    /// # Errors
    /// Those of `setxattr(2)`: EPERM for a type of file that has no such attributes.
    pub(super) fn set_record(&self, file: BorrowedFd<'_>, record: &Record) -> io::Result<()> {
        let set =
            |name: &CStr, value: &[u8]| xattr::set(self.share.proc_self_fd(), file, name, value, 0);
        for (name, value) in [(UID, record.uid), (GID, record.gid), (MODE, record.mode)] {
            if let Some(value) = value {
                set(name, &value.to_le_bytes())?;
            }
        }
        if let Some((major, minor)) = record.rdev {
            set(RDEV, &rustix::fs::makedev(major, minor).to_le_bytes())?;
        }
        Ok(())
    }

    /// Reads the target of a symbolic link that is a regular file on the host.
    ///
    /// # Errors
    /// EINVAL if the file is no link to the guest.
    pub(super) fn read_recorded_link(&self, node: &Node, target: &mut [u8]) -> io::Result<usize> {
        let stat = file::stat(node.as_fd())?;
        let stat = self.seen(node.as_fd(), &stat);
        if FileType::of(&stat) != FileType::Symlink {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let _permit = self.acquire_inode_permit()?;
        let content = self.reopen_file(node, libc::O_RDONLY)?;
        let length = usize::try_from(stat.stx_size).unwrap_or(usize::MAX);
        let room = target
            .get_mut(..length)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENAMETOOLONG))?;
        file_content::read_exact_at(content.as_fd(), room, 0)?;
        Ok(length)
    }

    fn record_of(&self, file: BorrowedFd<'_>, stat: &Statx) -> Record {
        if !FileType::of(stat).can_be_opened() {
            return Record::default();
        }
        let proc = self.share.proc_self_fd();
        let mut names = [0; LIST_ROOM];
        let names = xattr::list(proc, file, &mut names).map(|length| &names[..length]);
        let is_there = |wanted: &CStr| match names {
            Ok(names) => names
                .split(|byte| *byte == 0)
                .any(|name| name == wanted.to_bytes()),
            // More names than there is room for, or a file system without attributes.
            Err(_) => true,
        };
        let get = |name: &CStr, expected: usize| {
            let mut number = [0; 8];
            let length = is_there(name).then(|| xattr::get(proc, file, name, &mut number));
            (length?.ok()? == expected).then(|| u64::from_le_bytes(number))
        };
        let get_u32 = |name| get(name, 4).and_then(|number| u32::try_from(number).ok());
        let (uid, gid, mode) = (get_u32(UID), get_u32(GID), get_u32(MODE));
        let record = Record {
            uid,
            gid,
            mode,
            rdev: get(RDEV, 8).map(|rdev| (rustix::fs::major(rdev), rustix::fs::minor(rdev))),
        };
        if record != Record::default() || !is_there(OVERRIDE) {
            return record;
        }
        let mut text = [0; 100];
        let length = xattr::get(proc, file, OVERRIDE, &mut text).unwrap_or(0);
        let text = text
            .get(..length)
            .and_then(|text| std::str::from_utf8(text).ok());
        text.and_then(Record::of_override).unwrap_or_default()
    }
}

/// Rejects the id that means "none".
fn check_ids(ids: [u32; 2]) -> io::Result<()> {
    if ids.contains(&u32::MAX) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_fuse_overlayfs_are_read() {
        let record = |uid, gid, mode, rdev| {
            Some(Record {
                uid: Some(uid),
                gid: Some(gid),
                mode: Some(mode),
                rdev,
            })
        };
        for (text, expected) in [
            ("0:0:0755:dir", record(0, 0, libc::S_IFDIR | 0o755, None)),
            ("1:2:4711", record(1, 2, 0o4711, None)),
            ("1:2:0644:file", record(1, 2, libc::S_IFREG | 0o644, None)),
            (
                "0:6:0660:block-8-1",
                record(0, 6, libc::S_IFBLK | 0o660, Some((8, 1))),
            ),
            (
                "0:0:0666:char-1-3",
                record(0, 0, libc::S_IFCHR | 0o666, Some((1, 3))),
            ),
            ("0:0:0600:pipe", record(0, 0, libc::S_IFIFO | 0o600, None)),
            ("", None),
            ("0:0", None),
            ("0:0:999", None),
            ("-1:0:755", None),
            ("0:0:755:door", None),
        ] {
            assert_eq!(Record::of_override(text), expected, "{text}");
        }
    }
}
