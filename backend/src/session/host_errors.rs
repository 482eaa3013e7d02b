//! The errno that a guest gets for an error of the host.
//!
//! Some mean more to the guest's kernel than the host says by them:
//!
//! - ENOSYS switches the operation off for the guest's whole mount (`fs/fuse/`: `no_fsync`,
//!   `no_open` and others), after which fsync(2), say, succeeds without doing anything. A network
//!   file system may say it of one file, or for once. So only the daemon itself answers ENOSYS, by
//!   [`not_offered`].
//! - ENOENT of an inode that the guest holds is a missing name to the guest. The inode is stale.

use std::fmt;
use std::io;

use gangplank_fuse::Opcode;

/// The daemon does not offer an operation.
#[derive(Debug)]
struct NotOffered;

impl fmt::Display for NotOffered {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("not offered")
    }
}

impl std::error::Error for NotOffered {}

/// The guest gets ENOSYS, and its kernel does not send this request again.
pub fn not_offered() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, NotOffered)
}

/// Whether the guest gets ENOSYS.
#[must_use]
pub fn is_not_offered(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<NotOffered>())
}

/// The errno that the guest gets as the reply to an operation.
pub(super) fn errno(opcode: Opcode, error: &io::Error) -> i32 {
    match error.raw_os_error() {
        None if is_not_offered(error) => libc::ENOSYS,
        None => libc::EIO,
        Some(libc::ENOSYS) if may_be_unsupported(opcode) => libc::EOPNOTSUPP,
        Some(libc::ENOSYS) => libc::EIO,
        Some(libc::ENOENT) if names_no_file(opcode) => libc::ESTALE,
        Some(errno) => errno,
    }
}

/// Whether programs expect that some files do not have the operation.
fn may_be_unsupported(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::Setxattr
            | Opcode::Getxattr
            | Opcode::Listxattr
            | Opcode::Removexattr
            | Opcode::Fallocate
            | Opcode::CopyFileRange
            | Opcode::CopyFileRange64
            | Opcode::Lseek
            | Opcode::Tmpfile
            | Opcode::Mknod
            | Opcode::Symlink
            | Opcode::Link
            | Opcode::Rename2
            | Opcode::Ioctl
            | Opcode::Getlk
            | Opcode::Setlk
            | Opcode::Setlkw
    )
}

/// Whether the operation is about an inode alone. READDIR is not among these: a removed directory
/// has no entries any more, which Linux tells as ENOENT.
fn names_no_file(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::Getattr
            | Opcode::Statx
            | Opcode::Setattr
            | Opcode::Readlink
            | Opcode::Open
            | Opcode::Read
            | Opcode::Write
            | Opcode::Flush
            | Opcode::Fsync
            | Opcode::Fallocate
            | Opcode::Lseek
            | Opcode::Setxattr
            | Opcode::Getxattr
            | Opcode::Listxattr
            | Opcode::Removexattr
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_gets_enosys_of_the_daemon_alone() {
        for (opcode, expected) in [
            (Opcode::Fsync, libc::EIO),
            (Opcode::Open, libc::EIO),
            (Opcode::Flush, libc::EIO),
            (Opcode::Create, libc::EIO),
            (Opcode::Fallocate, libc::EOPNOTSUPP),
            (Opcode::Getxattr, libc::EOPNOTSUPP),
            (Opcode::Tmpfile, libc::EOPNOTSUPP),
        ] {
            let host = io::Error::from_raw_os_error(libc::ENOSYS);
            assert_eq!(errno(opcode, &host), expected, "{}", opcode.name());
            assert_eq!(errno(opcode, &not_offered()), libc::ENOSYS);
        }
        for opcode in Opcode::ALL {
            let host = io::Error::from_raw_os_error(libc::ENOSYS);
            assert_ne!(errno(*opcode, &host), libc::ENOSYS, "{}", opcode.name());
        }
    }

    #[test]
    fn an_inode_without_a_name_is_stale_and_a_name_is_missing() {
        let missing = io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(errno(Opcode::Getattr, &missing), libc::ESTALE);
        assert_eq!(errno(Opcode::Unlink, &missing), libc::ENOENT);
        assert_eq!(errno(Opcode::Readdir, &missing), libc::ENOENT);
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        assert_eq!(errno(Opcode::Write, &full), libc::ENOSPC);
    }
}
