//! SETXATTR, GETXATTR, LISTXATTR and REMOVEXATTR (`--xattr`).

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;

use gangplank_fuse::{NodeId, SetxattrFlags, SetxattrIn};

use super::fs::PassthroughFs;
use super::xattr_names::ACCESS_ACL;
use crate::session::file_system::Xattrs;
use crate::sys::{file, setattr, xattr};

/// The kernel's limit of a name list, in bytes (`XATTR_LIST_MAX`, `linux/limits.h`).
const LIST_MAX: usize = 65_536;

impl Xattrs for PassthroughFs {
    /// Sets an attribute.
    fn setxattr(&self, id: NodeId, args: &SetxattrIn, name: &CStr, value: &[u8]) -> io::Result<()> {
        self.check_xattrs_enabled()?;
        let host_name = self.host_xattr_name(name)?;
        self.check_writable()?;
        let node = self.node(id)?;
        let proc = self.share.proc_self_fd();
        xattr::set(proc, node.as_fd(), &host_name, value, args.flags)?;
        let flags = SetxattrFlags::from_bits_retain(args.setxattr_flags);
        if flags.contains(SetxattrFlags::ACL_KILL_SGID) && name.to_bytes() == ACCESS_ACL {
            // The host does it only for callers that it knows, and here it knows the daemon.
            let mode = u32::from(file::stat(node.as_fd())?.stx_mode);
            if mode & libc::S_ISGID != 0 {
                setattr::change_mode(proc, node.as_fd(), mode & !libc::S_ISGID)?;
            }
        }
        Ok(())
    }

    /// Reads an attribute.
    fn getxattr(&self, id: NodeId, name: &CStr, value: &mut [u8]) -> io::Result<usize> {
        self.check_xattrs_enabled()?;
        // What the guest may not have does not exist.
        let name = self
            .host_xattr_name(name)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EPERM) => io::Error::from_raw_os_error(libc::ENODATA),
                _ => error,
            })?;
        let node = self.node(id)?;
        xattr::get(self.share.proc_self_fd(), node.as_fd(), &name, value)
    }

    /// Lists the names of the attributes that the guest may see.
    fn listxattr(&self, id: NodeId, names: &mut [u8]) -> io::Result<usize> {
        self.check_xattrs_enabled()?;
        let node = self.node(id)?;
        let proc = self.share.proc_self_fd();
        // The length without the filtered names is known only after reading all names.
        let length = xattr::list(proc, node.as_fd(), &mut [])?;
        if length == 0 {
            return Ok(0);
        }
        // Names may be added between the two calls, so the buffer is a little larger.
        let mut all = vec![0; (length + 256).min(LIST_MAX)];
        let length = xattr::list(proc, node.as_fd(), &mut all)?;
        all.truncate(length);
        let visible = all
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .filter_map(|name| self.guest_xattr_name(name));
        let total: usize = visible.clone().map(|name| name.len() + 1).sum();
        if names.is_empty() {
            return Ok(total);
        }
        let room = names
            .get_mut(..total)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ERANGE))?;
        let bytes = visible.flat_map(|name| name.iter().chain(&[0]));
        for (target, byte) in room.iter_mut().zip(bytes) {
            *target = *byte;
        }
        Ok(total)
    }

    /// Removes an attribute.
    fn removexattr(&self, id: NodeId, name: &CStr) -> io::Result<()> {
        self.check_xattrs_enabled()?;
        let name = self.host_xattr_name(name)?;
        self.check_writable()?;
        let node = self.node(id)?;
        xattr::remove(self.share.proc_self_fd(), node.as_fd(), &name)
    }
}
