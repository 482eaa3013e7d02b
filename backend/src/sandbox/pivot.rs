//! The roots of the processes: the acceptor's has the share and `/proc`, the root of a keeper and
//! its workers is the share.
//!
//! A worker needs `/proc` once, to open its own `/proc/self/fd`, and must not reach it afterwards.
//! All workers of a guest share a mount namespace, so that the numbers of mounts stay what they
//! are, and `/proc` must be mounted in it as long as the keeper starts workers. So it is mounted
//! outside the root, and only the keeper's working directory leads there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{chroot, fchdir, pivot_root};

use super::error::Error;
use super::proc_self;
use crate::sys::mount;

/// The share's directory in the acceptor's root.
const SHARE: &str = "share";

/// Makes a root that holds only `shared_dir`, with all mounts below it, and `/proc`, and detaches
/// all other mounts. Returns the shared directory.
///
/// The process must have a mount namespace of its own. Later mounts of the host below the share
/// propagate into it; its own mounts do not propagate to the host.
pub(super) fn enter_acceptor_root(shared_dir: &Path) -> Result<OwnedFd, Error> {
    let failed = |what| failed(shared_dir, what);
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(failed("detach the mounts from the host's"))?;
    let share = copy_mounts(shared_dir).map_err(failed("copy the shared directory's mounts"))?;
    // Device nodes in the share do not reach the host's devices, whoever opens them. Mounts that
    // the host adds later keep their own attributes.
    if let Err(error) = mount::forbid_devices_and_set_id(share.as_fd()) {
        log::debug!("cannot mount the share with nodev and nosuid: {error}");
    }
    let proc =
        copy_mounts(Path::new(proc_self::PROC)).map_err(failed("copy the mount of /proc"))?;

    let root = empty_root().map_err(failed("create an empty root"))?;
    // Any directory that exists can be the mount point: it goes with the old root. The shared one
    // would be locked meanwhile, and waits if a guest's look-up in it waits for a server.
    attach(&root, CWD, Path::new(proc_self::PROC)).map_err(failed("mount the empty root"))?;
    for (name, tree) in [(SHARE, &share), ("proc", &proc)] {
        rustix::fs::mkdirat(&root, name, Mode::from_raw_mode(0o755))
            .map_err(failed("create a directory in the new root"))?;
        attach(tree, root.as_fd(), Path::new(name)).map_err(failed("mount into the new root"))?;
    }
    pivot_into(&root, failed)?;
    open_directory("/share").map_err(failed("open the shared directory"))
}

/// Makes the share in the acceptor's root the root and working directory of the calling process and
/// of those that it starts. Returns the new root.
///
/// The process must have copied the acceptor's mount namespace and root, and have CAP_SYS_CHROOT.
/// Errors name `shared_dir`.
pub(super) fn enter_guest_root(shared_dir: &Path) -> Result<OwnedFd, Error> {
    let failed = |what| failed(shared_dir, what);
    let share = open_directory("/share").map_err(failed("open the shared directory"))?;
    fchdir(&share).map_err(failed("enter the shared directory"))?;
    chroot(".").map_err(failed(
        "make the share the root (chroot; it takes CAP_SYS_CHROOT)",
    ))?;
    open_directory("/").map_err(failed("open the new root"))
}

fn failed(shared_dir: &Path, what: &'static str) -> impl Fn(Errno) -> Error {
    move |error| Error::Pivot {
        what,
        shared_dir: shared_dir.to_owned(),
        source: error.into(),
    }
}

/// A detached copy of the mount that `path` lies on, from `path` down.
fn copy_mounts(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags)
}

/// A detached tmpfs for the mount points.
fn empty_root() -> Result<OwnedFd, Errno> {
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&tmpfs, "mode", "0755")?;
    fsconfig_create(&tmpfs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&tmpfs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn attach(tree: &OwnedFd, dir: BorrowedFd<'_>, path: &Path) -> Result<(), Errno> {
    move_mount(tree, "", dir, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Makes the mounted directory `root` the root of the mount namespace and detaches the old root
/// with everything mounted on it.
fn pivot_into<F: Fn(Errno) -> Error>(
    root: &OwnedFd,
    failed: impl Fn(&'static str) -> F,
) -> Result<(), Error> {
    let old_root = open_directory("/").map_err(failed("open the old root"))?;
    fchdir(root).map_err(failed("enter the new root"))?;
    // Stacks the old root on the new one; the unmount below removes it (pivot_root(2)).
    pivot_root(".", ".").map_err(failed("change the root (pivot_root)"))?;
    fchdir(&old_root).map_err(failed("return to the old root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(failed("detach the old root"))?;
    fchdir(root).map_err(failed("enter the new root"))
}

fn open_directory(path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}
