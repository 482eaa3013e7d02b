//! An id-mapped mount, which the programs of Debian 12 cannot make.
#![allow(unsafe_code, reason = "mount_setattr has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// The word that asks for the mount instead of checks.
pub(crate) const MOUNT: &str = "idmapped-mount";

/// `struct mount_attr` (`include/uapi/linux/mount.h`).
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Mounts `source` on `target` with the ids of the user namespace of process `pid`.
pub(crate) fn mount(source: &Path, target: &str, pid: &str) -> Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/user")).context("the user namespace")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, source, flags).context("copying the mount")?;
    let attributes = MountAttr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd())?,
    };
    // SAFETY: the path is NUL-terminated, and `attributes` is readable for its size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error()).context("mapping the mount's ids");
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&tree, c"", CWD, target, flags).context("attaching the mount")
}
