//! Makes the shared directory the root of a mount namespace with no other mounts.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount,
    open_tree, unmount,
};
use rustix::process::{fchdir, pivot_root};

use super::error::Error;

/// Makes `shared_dir`, with all mounts below it, the root of the calling process's mount namespace,
/// and detaches all other mounts. Returns the new root.
///
/// The process must have a mount namespace of its own. Later mounts of the host below the share
/// propagate into it; its own mounts do not propagate to the host.
pub(super) fn pivot_into(shared_dir: &Path) -> Result<OwnedFd, Error> {
    let failed = |what| {
        move |error: Errno| Error::Pivot {
            what,
            source: error.into(),
        }
    };
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(failed("detach the mounts from the host's"))?;

    // pivot_root needs a mount point, so a copy of the directory's mount tree is mounted over it.
    let share = open_tree(
        CWD,
        shared_dir,
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE,
    )
    .map_err(failed("copy the shared directory's mounts"))?;
    move_mount(
        &share,
        "",
        CWD,
        shared_dir,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(failed("mount the shared directory"))?;

    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old_root = rustix::fs::openat(CWD, "/", directory, Mode::empty())
        .map_err(failed("open the old root"))?;
    fchdir(&share).map_err(failed("enter the shared directory"))?;
    // Stacks the old root on the new one; the unmount below removes it (pivot_root(2)).
    pivot_root(".", ".").map_err(failed("make the shared directory the root (pivot_root)"))?;
    fchdir(&old_root).map_err(failed("return to the old root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(failed("detach the old root"))?;
    fchdir(&share).map_err(failed("enter the shared directory"))?;

    rustix::fs::openat(CWD, "/", directory, Mode::empty()).map_err(failed("open the new root"))
}
