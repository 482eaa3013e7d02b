//! The errno values of common failures.

use std::io;

use super::file_type::FileType;

/// ESTALE: the guest does not hold the inode, or it no longer exists.
pub(super) fn stale() -> io::Error {
    io::Error::from_raw_os_error(libc::ESTALE)
}

/// EBADF: the guest does not hold the handle.
pub(super) fn bad_handle() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADF)
}

/// ENFILE: no descriptor is available.
pub(super) fn descriptors_exhausted() -> io::Error {
    io::Error::from_raw_os_error(libc::ENFILE)
}

/// The error for opening anything but a regular file. The guest's kernel handles devices, FIFOs and
/// sockets itself.
pub(super) fn not_openable(file_type: FileType, write: bool) -> io::Error {
    io::Error::from_raw_os_error(match file_type {
        FileType::Directory if write => libc::EISDIR,
        FileType::Symlink => libc::ELOOP,
        _ => libc::ENXIO,
    })
}
