//! Attributes of mounts.
#![allow(unsafe_code, reason = "mount_setattr has no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::mount::MountAttrFlags;

/// `struct mount_attr` (`include/uapi/linux/mount.h`, Linux 5.12).
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Mounts a detached tree with `nodev` and `nosuid`, all mounts below it included.
///
/// # Errors
/// Those of mount_setattr(2). ENOSYS before Linux 5.12.
pub fn forbid_devices_and_set_id(tree: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = MountAttr {
        attr_set: (MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID)
            .bits()
            .into(),
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is NUL-terminated, and `attributes` is readable for its size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
