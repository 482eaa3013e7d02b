//! System calls that change directory entries.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, RenameFlags};

use super::file::{DescriptorName, mode_bits};

/// Creates a directory.
///
/// # Errors
/// Those of `mkdirat(2)`.
pub fn make_directory(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(dir, name, mode_bits(mode))?)
}

/// Creates a file, FIFO, socket or device node. `mode` holds the type; `major` and `minor` the
/// device number.
///
/// # Errors
/// Those of `mknodat(2)`.
pub fn make_node(
    dir: BorrowedFd<'_>,
    name: &CStr,
    mode: u32,
    major: u32,
    minor: u32,
) -> io::Result<()> {
    let device = rustix::fs::makedev(major, minor);
    Ok(rustix::fs::mknodat(
        dir,
        name,
        FileType::from_raw_mode(mode),
        mode_bits(mode),
        device,
    )?)
}

/// Creates a symbolic link.
///
/// # Errors
/// Those of `symlinkat(2)`.
pub fn make_symlink(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    Ok(rustix::fs::symlinkat(target, dir, name)?)
}

/// Adds a name to the file behind a descriptor, also if it is a symbolic link.
///
/// # Errors
/// Those of `linkat(2)`.
pub fn link(
    proc_self_fd: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    name: &CStr,
) -> io::Result<()> {
    let own_name = DescriptorName::new(file);
    // AT_SYMLINK_FOLLOW follows the magic link to the inode, but not a symbolic link behind it.
    Ok(rustix::fs::linkat(
        proc_self_fd,
        own_name.as_c_str(),
        dir,
        name,
        AtFlags::SYMLINK_FOLLOW,
    )?)
}

/// Removes a name that is not a directory.
///
/// # Errors
/// Those of `unlinkat(2)`.
pub fn unlink(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
}

/// Removes an empty directory.
///
/// # Errors
/// Those of `unlinkat(2)`.
pub fn remove_directory(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

/// Renames, with `RENAME_*` flags.
///
/// # Errors
/// Those of `renameat2(2)`.
pub fn rename(
    dir: BorrowedFd<'_>,
    name: &CStr,
    new_dir: BorrowedFd<'_>,
    new_name: &CStr,
    flags: u32,
) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(
        dir,
        name,
        new_dir,
        new_name,
        RenameFlags::from_bits_retain(flags),
    )?)
}
