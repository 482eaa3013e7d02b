//! The ioctl(2) commands for attributes of files that chattr(1), quotas, fscrypt and fs-verity use
//! (`include/uapi/linux/fs.h`, `fscrypt.h`, `fsverity.h`). They need a file that is open for more
//! than its path.
#![allow(unsafe_code, reason = "ioctl with these commands has no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::file;

/// Reads the flags of a file (`FS_*_FL`).
pub const GET_FLAGS: u32 = 0x8008_6601;
/// Sets the flags of a file.
pub const SET_FLAGS: u32 = 0x4008_6602;
/// Reads the extended flags and the project of a file.
pub const GET_ATTRIBUTES: u32 = 0x801c_581f;
/// Sets them.
pub const SET_ATTRIBUTES: u32 = 0x401c_5820;
/// Reads the encryption policy of a file.
pub const GET_ENCRYPTION_POLICY: u32 = 0xc009_6616;
/// Reads the digest of a file that fs-verity protects.
pub const MEASURE_VERITY: u32 = 0xc004_6686;

/// All commands of this module.
pub const ALL: [u32; 6] = [
    GET_FLAGS,
    SET_FLAGS,
    GET_ATTRIBUTES,
    SET_ATTRIBUTES,
    GET_ENCRYPTION_POLICY,
    MEASURE_VERITY,
];

/// `struct fsxattr`: flags, extent size, number of extents, project, extent size for copying, and 8
/// unused bytes.
pub type Attributes = [u8; 28];

/// What of [`Attributes`] says that a directory passes its project on to what is made in it
/// (`FS_XFLAG_PROJINHERIT`).
const PASSES_PROJECT_ON: u32 = 0x200;

/// The same of a file's flags (`FS_PROJINHERIT_FL`).
pub const PASSES_PROJECT_ON_FLAG: u32 = 0x2000_0000;

/// Where [`Attributes`] has the flags, and the project.
const XFLAGS: std::ops::Range<usize> = 0..4;
const PROJECT: std::ops::Range<usize> = 12..16;

/// The project of a file, by which the file system counts what it takes; 0 is the one of all files
/// that have no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Project {
    /// Its number.
    pub id: u32,
    /// Whether files and directories that are made in this directory get it.
    pub is_passed_on: bool,
}

impl Project {
    /// What `attributes` say.
    #[must_use]
    pub fn of(attributes: &Attributes) -> Self {
        Self {
            id: number(attributes, PROJECT),
            is_passed_on: number(attributes, XFLAGS) & PASSES_PROJECT_ON != 0,
        }
    }
}

fn number(attributes: &Attributes, at: std::ops::Range<usize>) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&attributes[at]);
    u32::from_ne_bytes(bytes)
}

/// The extended flags in `attributes` (`FS_XFLAG_*`).
#[must_use]
pub fn xflags(attributes: &Attributes) -> u32 {
    number(attributes, XFLAGS)
}

/// Bytes of the argument of any command, and more than the kernel ever writes: a policy has at most
/// 24 bytes, a digest 64.
const ROOM: usize = 128;

/// Bytes of a policy's length.
const POLICY_HEADER: usize = 8;

/// Bytes of a digest's algorithm and length.
const DIGEST_HEADER: usize = 4;

/// The flags of an open file.
///
/// # Errors
/// Those of ioctl(2): ENOTTY or EOPNOTSUPP if the file system has none.
pub fn flags(file: BorrowedFd<'_>) -> io::Result<u32> {
    let mut argument = [0; ROOM];
    call(file, GET_FLAGS, &mut argument)?;
    let [a, b, c, d, ..] = argument;
    Ok(u32::from_ne_bytes([a, b, c, d]))
}

/// Sets the flags of an open file.
///
/// # Errors
/// Those of ioctl(2): EPERM for a flag that takes `CAP_LINUX_IMMUTABLE`.
pub fn set_flags(file: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    let mut argument = [0; ROOM];
    // The kernel reads an `int`, whatever the command's number says.
    for (target, byte) in argument.iter_mut().zip(flags.to_ne_bytes()) {
        *target = byte;
    }
    call(file, SET_FLAGS, &mut argument)
}

/// The extended attributes of an open file.
///
/// # Errors
/// Those of ioctl(2).
pub fn attributes(file: BorrowedFd<'_>) -> io::Result<Attributes> {
    let mut argument = [0; ROOM];
    call(file, GET_ATTRIBUTES, &mut argument)?;
    let mut attributes = [0; 28];
    attributes.copy_from_slice(&argument[..28]);
    Ok(attributes)
}

/// Sets the extended attributes of an open file.
///
/// # Errors
/// Those of ioctl(2).
pub fn set_attributes(file: BorrowedFd<'_>, attributes: &Attributes) -> io::Result<()> {
    let mut argument = [0; ROOM];
    argument[..28].copy_from_slice(attributes);
    call(file, SET_ATTRIBUTES, &mut argument)
}

/// The project of an open file.
///
/// # Errors
/// Those of ioctl(2): ENOTTY or EOPNOTSUPP if the file system has none.
pub fn project(file: BorrowedFd<'_>) -> io::Result<Project> {
    Ok(Project::of(&attributes(file)?))
}

/// Gives an open file a project, and leaves its other attributes alone.
///
/// # Errors
/// Those of ioctl(2): EINVAL outside of the host's own user namespace, EDQUOT if the file does not
/// fit the project's limits.
pub fn set_project(file: BorrowedFd<'_>, project: Project) -> io::Result<()> {
    let mut attributes = attributes(file)?;
    let others = xflags(&attributes) & !PASSES_PROJECT_ON;
    let flags = match project.is_passed_on {
        true => others | PASSES_PROJECT_ON,
        false => others,
    };
    attributes[XFLAGS].copy_from_slice(&flags.to_ne_bytes());
    attributes[PROJECT].copy_from_slice(&project.id.to_ne_bytes());
    set_attributes(file, &attributes)
}

/// Puts the encryption policy of an open file into `policy`, its length of 64 bits before it, and
/// returns the number of bytes.
///
/// # Errors
/// Those of ioctl(2): ENODATA if the file is not encrypted, EOVERFLOW if there is too little room.
pub fn encryption_policy(file: BorrowedFd<'_>, policy: &mut [u8]) -> io::Result<usize> {
    let room = policy.len().min(ROOM).saturating_sub(POLICY_HEADER);
    let mut argument = [0; ROOM];
    argument[..POLICY_HEADER].copy_from_slice(&(room as u64).to_ne_bytes());
    call(file, GET_ENCRYPTION_POLICY, &mut argument)?;
    copy(policy, &argument)
}

/// Puts the fs-verity digest of an open file into `digest`, the numbers of its algorithm and of its
/// bytes before it, and returns the number of bytes.
///
/// # Errors
/// Those of ioctl(2): ENODATA if the file has none, EOVERFLOW if there is too little room.
pub fn verity_digest(file: BorrowedFd<'_>, digest: &mut [u8]) -> io::Result<usize> {
    let room = digest.len().min(ROOM).saturating_sub(DIGEST_HEADER);
    let room = u16::try_from(room).unwrap_or(0);
    let mut argument = [0; ROOM];
    argument[2..DIGEST_HEADER].copy_from_slice(&room.to_ne_bytes());
    call(file, MEASURE_VERITY, &mut argument)?;
    copy(digest, &argument)
}

/// Copies as much of the argument as there is room for, which is all that the kernel has written.
fn copy(target: &mut [u8], argument: &[u8; ROOM]) -> io::Result<usize> {
    let len = target.len().min(ROOM);
    target[..len].copy_from_slice(&argument[..len]);
    Ok(len)
}

fn call(file: BorrowedFd<'_>, command: u32, argument: &mut [u8; ROOM]) -> io::Result<()> {
    file::retry(|| {
        #[cfg(target_env = "musl")]
        let command = command.cast_signed();
        #[cfg(not(target_env = "musl"))]
        let command = libc::c_ulong::from(command);
        // SAFETY: each command of this module reads and writes at most as many bytes as the
        // argument has: 28, or what its length field permits, which is set from this room.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), command, argument.as_mut_ptr()) };
        match result {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    })
}
