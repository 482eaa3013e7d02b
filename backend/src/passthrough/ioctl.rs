//! IOCTL: the commands that have a meaning without the guest's memory, by a list.
//!
//! The guest's kernel asks for flags and projects itself, after checks of its own, since Linux
//! 5.13. Before, it passes a program's command on without checks, so the daemon checks as well.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use gangplank_fuse::{IoctlIn, NodeId};

use super::fs::PassthroughFs;
use crate::session::Caller;
use crate::session::file_system::{GuestUid, Ioctls};
use crate::sys::file;
use crate::sys::file_ioctl::{self, Attributes, Project, xflags};
use crate::sys::ids::HostUid;

/// The flags that only `CAP_LINUX_IMMUTABLE` may change (`FS_IMMUTABLE_FL`, `FS_APPEND_FL`,
/// `include/uapi/linux/fs.h`).
const PRIVILEGED_FLAGS: u32 = 0x10 | 0x20;

/// The same in `struct fsxattr` (`FS_XFLAG_IMMUTABLE`, `FS_XFLAG_APPEND`).
const PRIVILEGED_XFLAGS: u32 = 0x8 | 0x10;

impl Ioctls for PassthroughFs {
    fn ioctl(
        &self,
        caller: Caller,
        id: NodeId,
        args: &IoctlIn,
        input: &[u8],
        output: &mut [u8],
    ) -> io::Result<usize> {
        if !file_ioctl::ALL.contains(&args.cmd) {
            return Err(io::Error::from_raw_os_error(libc::ENOTTY));
        }
        let open = self.file_to_read(args.fh, id)?;
        let file = open.as_fd();
        match args.cmd {
            file_ioctl::GET_FLAGS => put(output, &file_ioctl::flags(file)?.to_ne_bytes()),
            file_ioctl::GET_ATTRIBUTES => put(output, &file_ioctl::attributes(file)?),
            file_ioctl::SET_FLAGS => {
                self.check_writable()?;
                let [a, b, c, d, ..] = *input else {
                    return Err(io::Error::from_raw_os_error(libc::EINVAL));
                };
                let flags = u32::from_ne_bytes([a, b, c, d]);
                self.check_project(id, || {
                    let changed = file_ioctl::flags(file)? ^ flags;
                    Ok(changed & file_ioctl::PASSES_PROJECT_ON_FLAG != 0)
                })?;
                self.check_may_change(caller, file, || {
                    Ok((file_ioctl::flags(file)? ^ flags) & PRIVILEGED_FLAGS != 0)
                })?;
                file_ioctl::set_flags(file, flags).map(|()| 0)
            }
            file_ioctl::SET_ATTRIBUTES => {
                self.check_writable()?;
                let attributes = Attributes::try_from(input)
                    .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
                self.check_project(id, || {
                    Ok(file_ioctl::project(file)? != Project::of(&attributes))
                })?;
                self.check_may_change(caller, file, || {
                    let changed = xflags(&file_ioctl::attributes(file)?) ^ xflags(&attributes);
                    Ok(changed & PRIVILEGED_XFLAGS != 0)
                })?;
                file_ioctl::set_attributes(file, &attributes).map(|()| 0)
            }
            file_ioctl::GET_ENCRYPTION_POLICY => file_ioctl::encryption_policy(file, output),
            _ => file_ioctl::verity_digest(file, output),
        }
    }
}

impl PassthroughFs {
    /// Refuses a change of a file's project where that would take the file out of a quota: in a
    /// share whose directory passes a project on, and of that directory itself, whose project is
    /// the host's affair.
    fn check_project(
        &self,
        id: NodeId,
        is_changed: impl FnOnce() -> io::Result<bool>,
    ) -> io::Result<()> {
        if !is_changed()? {
            return Ok(());
        }
        let _permit = self.acquire_file_permit()?;
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let root = file::open_at(self.share.root.as_fd(), c".", flags, 0)?;
        let root = file_ioctl::project(root.as_fd())?;
        match id == NodeId::ROOT || root.is_passed_on {
            true => Err(io::Error::from_raw_os_error(libc::EPERM)),
            false => Ok(()),
        }
    }

    /// Checks that the caller may change the flags of a file: root may, and its owner, unless the
    /// change is one that takes a capability. An unknown caller was checked by the guest's kernel.
    fn check_may_change(
        &self,
        caller: Caller,
        file: BorrowedFd<'_>,
        is_privileged: impl FnOnce() -> io::Result<bool>,
    ) -> io::Result<()> {
        if [GuestUid::ROOT, GuestUid::UNKNOWN].contains(&caller.uid) {
            return Ok(());
        }
        let owner = HostUid::new(file::stat(file)?.stx_uid);
        let is_owner = self.share.options.id_map.guest_uid(owner) == caller.uid;
        match is_owner && !is_privileged()? {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::EPERM)),
        }
    }
}

/// Puts a value into the reply. A program of an old guest has room for more, which is zero.
fn put(output: &mut [u8], value: &[u8]) -> io::Result<usize> {
    output.fill(0);
    let target = output.get_mut(..value.len());
    let target = target.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    target.copy_from_slice(value);
    Ok(output.len())
}
