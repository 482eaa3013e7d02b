//! GETATTR, STATX and SETATTR.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use gangplank_fuse::{
    AttrOut, GetattrFlags, Handle, NodeId, SetattrIn, SetattrValid, StatxIn, StatxOut,
};

use super::credentials::without_set_id;
use super::errno::not_openable;
use super::file_type::FileType;
use super::fs::{Node, PassthroughFs};
use crate::session::Caller;
use crate::session::file_system::{Attributes, GuestGid, GuestUid};
use crate::sys::setattr::{self, NewTime};
use crate::sys::{file, file_content};

impl Attributes for PassthroughFs {
    /// Reads the attributes, through the open file if the guest names a handle.
    fn getattr(&self, id: NodeId, handle: Option<Handle>) -> io::Result<AttrOut> {
        if let Some(handle) = handle
            && let Ok(open) = self.state.files.get(handle, id)
        {
            let stat = file::stat(open.as_fd())?;
            return Ok(self.attr_out(id, &self.seen(open.as_fd(), &stat)));
        }
        let node = self.node(id)?;
        let stat = file::stat(node.as_fd())?;
        Ok(self.attr_out(id, &self.seen(node.as_fd(), &stat)))
    }

    /// Reads the attributes that the guest asks for, including the birth time.
    fn statx(&self, id: NodeId, args: &StatxIn) -> io::Result<StatxOut> {
        // The flags that say how fresh the attributes must be; other flags concern path lookup.
        const SYNC: u32 = (libc::AT_STATX_FORCE_SYNC | libc::AT_STATX_DONT_SYNC).cast_unsigned();
        let mask = args.sx_mask | libc::STATX_INO | libc::STATX_TYPE | file::MOUNT;
        // The kernel rejects a mask with this reserved bit.
        let mask = mask & !libc::STATX__RESERVED.cast_unsigned();
        let flags = GetattrFlags::from_bits_retain(args.getattr_flags);
        let open = flags
            .contains(GetattrFlags::FH)
            .then(|| self.state.files.get(Handle::new(args.fh), id).ok())
            .flatten();
        let reply = |file: BorrowedFd<'_>| {
            let stat = file::stat_with(file, mask, args.sx_flags & SYNC)?;
            Ok(self.statx_out(id, &self.seen(file, &stat)))
        };
        match open {
            Some(open) => reply(open.as_fd()),
            None => reply(self.node(id)?.as_fd()),
        }
    }

    /// Changes the attributes in `args.valid` and returns the new attributes.
    ///
    /// The owner is changed first, because that clears set-user-ID and set-group-ID bits, which the
    /// mode may set.
    fn setattr(&self, _caller: Caller, id: NodeId, args: &SetattrIn) -> io::Result<AttrOut> {
        self.check_writable()?;
        let node = self.node(id)?;
        let valid = SetattrValid::from_bits_retain(args.valid);
        let is_recorded = self.maps_ownership() && node.file_type.can_be_opened();
        if is_recorded {
            let owned = SetattrValid::UID | SetattrValid::GID | SetattrValid::MODE;
            if valid.intersects(owned) {
                self.drop_file_capabilities(node.file_type, &node)?;
                self.change_record(&node, args)?;
            }
        } else if valid.intersects(SetattrValid::UID | SetattrValid::GID) {
            let id_map = &self.share.options.id_map;
            let uid = valid
                .contains(SetattrValid::UID)
                .then(|| id_map.host_uid(GuestUid::new(args.uid)))
                .transpose()?;
            let gid = valid
                .contains(SetattrValid::GID)
                .then(|| id_map.host_gid(GuestGid::new(args.gid)))
                .transpose()?;
            self.drop_file_capabilities(node.file_type, &node)?;
            setattr::change_owner(node.as_fd(), uid, gid)?;
        }
        if valid.contains(SetattrValid::MODE) && !is_recorded {
            if node.file_type == FileType::Symlink {
                return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
            }
            setattr::change_mode(self.share.proc_self_fd(), node.as_fd(), args.mode)?;
        }
        if valid.contains(SetattrValid::SIZE) {
            self.change_size(&node, valid, args)?;
            self.state
                .inodes
                .with_known_size(id, |known| known.set(args.size));
        }
        // The host sets ctime itself; a change of ctime alone is ignored.
        if valid.intersects(
            SetattrValid::ATIME
                | SetattrValid::MTIME
                | SetattrValid::ATIME_NOW
                | SetattrValid::MTIME_NOW,
        ) {
            let accessed = new_time(
                valid.contains(SetattrValid::ATIME),
                valid.contains(SetattrValid::ATIME_NOW),
                (args.atime, args.atimensec),
            );
            let modified = new_time(
                valid.contains(SetattrValid::MTIME),
                valid.contains(SetattrValid::MTIME_NOW),
                (args.mtime, args.mtimensec),
            );
            setattr::set_times(node.as_fd(), accessed, modified)?;
        }
        let stat = file::stat(node.as_fd())?;
        Ok(self.attr_out(id, &self.seen(node.as_fd(), &stat)))
    }
}

impl PassthroughFs {
    /// Sets the size through the guest's handle, or through a file opened for this call.
    fn change_size(&self, node: &Node, valid: SetattrValid, args: &SetattrIn) -> io::Result<()> {
        if i64::try_from(args.size).is_err() {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        let truncate = |file: BorrowedFd<'_>| {
            self.drop_file_capabilities(node.file_type, &file)?;
            if valid.contains(SetattrValid::KILL_SUIDGID) {
                return without_set_id(|| file_content::truncate(file, args.size));
            }
            file_content::truncate(file, args.size)
        };
        let open = valid
            .contains(SetattrValid::FH)
            .then(|| self.state.files.get(Handle::new(args.fh), node.id).ok())
            .flatten();
        if let Some(open) = open.filter(|open| open.writable) {
            return truncate(open.as_fd());
        }
        if node.file_type != FileType::Regular {
            return Err(not_openable(node.file_type, true));
        }
        let _permit = self.acquire_inode_permit()?;
        let file = self.reopen_file(node, libc::O_WRONLY)?;
        truncate(file.as_fd())
    }
}

fn new_time(given: bool, now: bool, time: (u64, u32)) -> NewTime {
    match (now, given) {
        (true, _) => NewTime::Now,
        (false, true) => NewTime::At(time.0.cast_signed(), time.1),
        (false, false) => NewTime::Omit,
    }
}
