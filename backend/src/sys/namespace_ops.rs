//! System calls that change a directory's names.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, RenameFlags};

use super::file::{DescriptorName, mode_bits};

/// Makes a directory.
///
/// # Errors
/// `mkdirat(2)`'s.
pub fn make_directory(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(dir, name, mode_bits(mode))?)
}

/// Makes a file, FIFO, socket or device node; the type is in `mode`, the device in the two numbers.
///
/// # Errors
/// `mknodat(2)`'s.
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

/// Makes a symbolic link.
///
/// # Errors
/// `symlinkat(2)`'s.
pub fn make_symlink(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    Ok(rustix::fs::symlinkat(target, dir, name)?)
}

/// Gives what `file` stands for, a symbolic link included, another name.
///
/// # Errors
/// `linkat(2)`'s.
pub fn link(
    proc_self_fd: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    name: &CStr,
) -> io::Result<()> {
    let own_name = DescriptorName::new(file);
    // Following leads through the magic link to the very inode, and not on through what that may be.
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
/// `unlinkat(2)`'s.
pub fn unlink(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
}

/// Removes an empty directory.
///
/// # Errors
/// `unlinkat(2)`'s.
pub fn remove_directory(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

/// Renames, with `RENAME_*` flags.
///
/// # Errors
/// `renameat2(2)`'s.
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
