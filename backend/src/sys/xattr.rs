//! Extended attributes of the file behind a descriptor, including `O_PATH` descriptors and symbolic
//! links.
//!
//! The calls on descriptors reject `O_PATH`. So these functions name the file by its descriptor's
//! number, relative to `/proc/self/fd`, the calling thread's working directory.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;

use super::file::DescriptorName;
use super::thread::chdir_to_proc_self_fd;

/// Sets an attribute, with `XATTR_*` flags.
///
/// # Errors
/// Those of `setxattr(2)`.
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

/// Reads an attribute into `value` and returns its length. With an empty buffer returns only the
/// length.
///
/// # Errors
/// Those of `getxattr(2)`: ERANGE if the buffer is too small.
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

/// Reads the names of all attributes, each terminated by a NUL, into `names` and returns their
/// length. With an empty buffer returns only the length.
///
/// # Errors
/// Those of `listxattr(2)`: ERANGE if the buffer is too small.
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
/// Those of `removexattr(2)`.
pub fn remove(proc_self_fd: BorrowedFd<'_>, file: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    chdir_to_proc_self_fd(proc_self_fd)?;
    let file = DescriptorName::new(file);
    Ok(rustix::fs::removexattr(file.as_c_str(), name)?)
}
