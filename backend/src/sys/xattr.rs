//! Extended attributes of what a descriptor stands for, `O_PATH` ones and symbolic links included.
//!
//! The calls that take a descriptor refuse `O_PATH` ones, so the file is named by its descriptor's number,
//! relative to a working directory that the calling thread has for that alone.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;

use super::file::DescriptorName;
use super::thread::chdir_to_proc_self_fd;

/// Sets an attribute, with `XATTR_*` flags.
///
/// # Errors
/// `setxattr(2)`'s.
pub fn set(
    proc_self_fd: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    name: &CStr,
    value: &[u8],
    flags: u32,
) -> io::Result<()> {
    chdir_to_proc_self_fd(proc_self_fd)?;
    let file = DescriptorName::new(file);
    Ok(rustix::fs::setxattr(
        file.as_c_str(),
        name,
        value,
        XattrFlags::from_bits_retain(flags),
    )?)
}

/// Puts an attribute's value into `value` and returns its length; with an empty buffer only the length.
///
/// # Errors
/// `getxattr(2)`'s: ERANGE where the buffer is too small.
pub fn get(
    proc_self_fd: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    name: &CStr,
    value: &mut [u8],
) -> io::Result<usize> {
    chdir_to_proc_self_fd(proc_self_fd)?;
    let file = DescriptorName::new(file);
    if value.is_empty() {
        return Ok(rustix::fs::getxattr_query(file.as_c_str(), name)?);
    }
    Ok(rustix::fs::getxattr(file.as_c_str(), name, value)?)
}

/// Puts the names of all attributes, each ended by a NUL, into `names` and returns their length; with an empty
/// buffer only the length.
///
/// # Errors
/// `listxattr(2)`'s: ERANGE where the buffer is too small.
pub fn list(
    proc_self_fd: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    names: &mut [u8],
) -> io::Result<usize> {
    chdir_to_proc_self_fd(proc_self_fd)?;
    let file = DescriptorName::new(file);
    if names.is_empty() {
        return Ok(rustix::fs::listxattr_query(file.as_c_str())?);
    }
    Ok(rustix::fs::listxattr(file.as_c_str(), names)?)
}

/// Removes an attribute.
///
/// # Errors
/// `removexattr(2)`'s.
pub fn remove(proc_self_fd: BorrowedFd<'_>, file: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    chdir_to_proc_self_fd(proc_self_fd)?;
    let file = DescriptorName::new(file);
    Ok(rustix::fs::removexattr(file.as_c_str(), name)?)
}
