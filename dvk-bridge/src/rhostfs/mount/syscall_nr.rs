//! The numbers of the client's calls: Linux's as in the original server's dispatch table, and five
//! private ones.

pub(super) const OPEN: i32 = 5;
pub(super) const CLOSE: i32 = 6;
pub(super) const LINK: i32 = 9;
pub(super) const UNLINK: i32 = 10;
pub(super) const MKNOD: i32 = 14;
pub(super) const CHMOD: i32 = 15;
pub(super) const ACCESS: i32 = 33;
pub(super) const RENAME: i32 = 38;
pub(super) const MKDIR: i32 = 39;
pub(super) const RMDIR: i32 = 40;
pub(super) const DUP2: i32 = 63;
pub(super) const S_IFLNK: i32 = 83;
pub(super) const READLINK: i32 = 85;
pub(super) const TRUNCATE: i32 = 92;
pub(super) const FTRUNCATE: i32 = 93;
pub(super) const FCHMOD: i32 = 94;
pub(super) const FCHOWN: i32 = 95;
pub(super) const FSYNC: i32 = 118;
pub(super) const FDATASYNC: i32 = 148;
pub(super) const PREAD64: i32 = 180;
pub(super) const PWRITE64: i32 = 181;
pub(super) const CHOWN: i32 = 182;
pub(super) const LSTAT64: i32 = 196;
pub(super) const FSTAT64: i32 = 197;
pub(super) const STATFS64: i32 = 268;
pub(super) const UTIMES: i32 = 271;
pub(super) const FUTIMES: i32 = 299;
/// SuperH's number. i386 has 353, which the original does not know.
pub(super) const RENAMEAT2: i32 = 371;
pub(super) const OPENDIR: i32 = 0x1000;
pub(super) const SEEKDIR: i32 = 0x1001;
pub(super) const READDIR: i32 = 0x1002;
pub(super) const CLOSEDIR: i32 = 0x1003;
pub(super) const GET_ROOTPATH: i32 = 0x1004;

/// The call's name for logs.
pub(super) fn name(syscall_nr: i32) -> &'static str {
    match syscall_nr {
        OPEN => "open",
        CLOSE => "close",
        LINK => "link",
        UNLINK => "unlink",
        MKNOD => "mknod",
        CHMOD => "chmod",
        ACCESS => "access",
        RENAME => "rename",
        MKDIR => "mkdir",
        RMDIR => "rmdir",
        DUP2 => "dup2",
        S_IFLNK => "symlink",
        READLINK => "readlink",
        TRUNCATE => "truncate",
        FTRUNCATE => "ftruncate",
        FCHMOD => "fchmod",
        FCHOWN => "fchown",
        FSYNC => "fsync",
        FDATASYNC => "fdatasync",
        PREAD64 => "pread64",
        PWRITE64 => "pwrite64",
        CHOWN => "chown",
        LSTAT64 => "lstat64",
        FSTAT64 => "fstat64",
        STATFS64 => "statfs64",
        UTIMES => "utimes",
        FUTIMES => "futimes",
        RENAMEAT2 => "renameat2",
        OPENDIR => "opendir",
        SEEKDIR => "seekdir",
        READDIR => "readdir",
        CLOSEDIR => "closedir",
        GET_ROOTPATH => "get_rootpath",
        _ => "unknown call",
    }
}
