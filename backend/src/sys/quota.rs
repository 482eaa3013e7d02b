//! quotactl(2) for the quotas of projects (`include/uapi/linux/quota.h`, `dqblk_xfs.h`). The
//! kernel's commands of ext4 serve XFS as well.
#![allow(unsafe_code, reason = "quotactl has no safe wrapper")]

use std::ffi::{CString, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use zerocopy::{FromBytes, IntoBytes};

use super::{file, mountinfo};

/// `PRJQUOTA`.
const PROJECTS: c_int = 2;

/// `Q_GETQUOTA`.
const GET_LIMITS: c_int = 0x80_0007;
/// `Q_SETQUOTA`.
const SET_LIMITS: c_int = 0x80_0008;
/// `Q_XGETQSTAT`, which every file system answers.
const GET_STATE: c_int = 0x5805;

/// `FS_QUOTA_PDQ_ACCT`.
const IS_COUNTED: u16 = 1 << 4;
/// `FS_QUOTA_PDQ_ENFD`.
const IS_ENFORCED: u16 = 1 << 5;

/// `QIF_BLIMITS`.
const BYTE_LIMITS: u32 = 1;
/// `QIF_ILIMITS`.
const INODE_LIMITS: u32 = 4;

/// The unit of limits of bytes (`QIF_DQBLKSIZE`).
const BLOCK: u64 = 1024;

/// `struct if_dqblk`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, zerocopy::Immutable)]
#[repr(C)]
struct Limits {
    /// In units of [`BLOCK`], 0 for none.
    byte_hard: u64,
    byte_soft: u64,
    bytes: u64,
    inode_hard: u64,
    inode_soft: u64,
    inodes: u64,
    byte_time: u64,
    inode_time: u64,
    valid: u32,
    unused: u32,
}

/// `struct fs_quota_stat`, and more than it has.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, zerocopy::Immutable)]
#[repr(C)]
struct State {
    version: u8,
    unused: u8,
    flags: u16,
    rest: [u32; 31],
}

/// What a file system does with the quotas of projects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projects {
    /// Nothing.
    Off,
    /// It counts what they use, and refuses nothing.
    Counted,
    /// It keeps them to their limits.
    Enforced,
}

/// What a project uses, and may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in use.
    pub bytes: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Most bytes.
    pub byte_limit: Option<u64>,
    /// Most inodes.
    pub inode_limit: Option<u64>,
}

/// Whether the file system of an open file has quotas of projects.
///
/// # Errors
/// Those of quotactl(2), except those that say that there are none.
pub fn projects(file: BorrowedFd<'_>) -> io::Result<Projects> {
    let mut state = State {
        // `FS_QSTAT_VERSION`.
        version: 1,
        ..State::default()
    };
    match call(file, GET_STATE, 0, state.as_mut_bytes()) {
        // No quotas at all, none of this kind, or no device that could have any.
        Err(error)
            if [libc::ENOSYS, libc::ESRCH, libc::EINVAL, libc::ENOTBLK]
                .map(Some)
                .contains(&error.raw_os_error()) =>
        {
            Ok(Projects::Off)
        }
        Err(error) => Err(error),
        Ok(()) if state.flags & IS_ENFORCED != 0 => Ok(Projects::Enforced),
        Ok(()) if state.flags & IS_COUNTED != 0 => Ok(Projects::Counted),
        Ok(()) => Ok(Projects::Off),
    }
}

/// What a project of the file system of an open file uses, and may use.
///
/// # Errors
/// Those of quotactl(2): EPERM without `CAP_SYS_ADMIN`.
pub fn usage(file: BorrowedFd<'_>, project: u32) -> io::Result<Usage> {
    let mut limits = Limits::default();
    match call(file, GET_LIMITS, project, limits.as_mut_bytes()) {
        // XFS knows nothing of it yet.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Usage::default()),
        result => result?,
    }
    let limit = |hard: u64| (hard > 0).then_some(hard);
    Ok(Usage {
        bytes: limits.bytes,
        inodes: limits.inodes,
        byte_limit: limit(limits.byte_hard.saturating_mul(BLOCK)),
        inode_limit: limit(limits.inode_hard),
    })
}

/// Limits a project of the file system of an open file. `None` leaves a limit as it is. Bytes are
/// rounded up to 1024.
///
/// # Errors
/// Those of quotactl(2): EPERM without `CAP_SYS_ADMIN`, ERANGE if the file system cannot store such
/// a number.
pub fn set_limits(
    file: BorrowedFd<'_>,
    project: u32,
    bytes: Option<u64>,
    inodes: Option<u64>,
) -> io::Result<()> {
    let mut limits = Limits {
        byte_hard: bytes.unwrap_or(0).div_ceil(BLOCK),
        inode_hard: inodes.unwrap_or(0),
        ..Limits::default()
    };
    if bytes.is_some() {
        limits.valid |= BYTE_LIMITS;
    }
    if inodes.is_some() {
        limits.valid |= INODE_LIMITS;
    }
    call(file, SET_LIMITS, project, limits.as_mut_bytes())
}

/// Calls quotactl for the file system of an open file: by the file, or before Linux 5.14 by its
/// device.
fn call(file: BorrowedFd<'_>, command: c_int, id: u32, argument: &mut [u8]) -> io::Result<()> {
    match by_file(file, command, id, argument) {
        // It is also the answer of a file system without quotas.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) && !is_by_file_known() => {
            match device_of(file) {
                Some(device) => by_device(&device, command, id, argument),
                None => Err(error),
            }
        }
        result => result,
    }
}

/// Whether the kernel has `quotactl_fd`.
fn is_by_file_known() -> bool {
    // SAFETY: there is no file of this number, so the kernel looks at nothing else.
    let result = unsafe { libc::syscall(libc::SYS_quotactl_fd, -1, 0, 0, 0) };
    result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

fn by_file(file: BorrowedFd<'_>, command: c_int, id: u32, argument: &mut [u8]) -> io::Result<()> {
    debug_assert!(argument.len() >= size_of::<Limits>(), "as large as any");
    // SAFETY: each command of this module reads and writes at most one of its two structures, which
    // `argument` is.
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            file.as_raw_fd(),
            with_type(command),
            id,
            argument.as_mut_ptr().cast::<c_void>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn by_device(device: &CString, command: c_int, id: u32, argument: &mut [u8]) -> io::Result<()> {
    // SAFETY: as in `by_file`; `device` ends with a zero byte.
    let result = unsafe {
        libc::quotactl(
            with_type(command),
            device.as_ptr(),
            id.cast_signed(),
            argument.as_mut_ptr().cast(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `QCMD`.
const fn with_type(command: c_int) -> c_int {
    (command << 8) | PROJECTS
}

/// The device that a file's file system was mounted from.
fn device_of(file: BorrowedFd<'_>) -> Option<CString> {
    let stat = file::stat(file).ok()?;
    let mounts = mountinfo::read();
    let source = source_of(&mounts, stat.stx_dev_major, stat.stx_dev_minor)?;
    CString::new(source).ok()
}

/// The source of a device's mount, if it is a path.
fn source_of(mounts: &[mountinfo::Entry], major: u32, minor: u32) -> Option<&str> {
    let mut sources = mounts
        .iter()
        .filter(|mount| mount.device == (major, minor))
        .map(|mount| mount.source.as_str());
    sources.find(|source| source.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn structures_are_the_kernels() {
        assert_eq!(size_of::<Limits>(), 72);
        // `struct fs_quota_stat` has 80 bytes, `flags` behind the version and a byte of padding.
        assert!(size_of::<State>() >= 80);
        assert_eq!(std::mem::offset_of!(State, flags), 2);
        assert_eq!(with_type(SET_LIMITS).cast_unsigned(), 0x8000_0802);
    }

    #[test]
    fn a_device_is_found_by_its_numbers() {
        let mounts = b"25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                      30 25 0:26 / /tmp rw shared:2 master:1 - tmpfs tmpfs rw\n\
                      31 25 254:0 /srv /srv rw - xfs /dev/vda rw,prjquota\n";
        let mounts = &mountinfo::parse(mounts);
        assert_eq!(source_of(mounts, 254, 0), Some("/dev/vda"));
        assert_eq!(source_of(mounts, 8, 1), Some("/dev/sda1"));
        assert_eq!(source_of(mounts, 0, 26), None);
        assert_eq!(source_of(mounts, 1, 1), None);
    }

    #[test]
    fn a_file_system_without_a_device_has_no_quotas() {
        let proc = std::fs::File::open("/proc").expect("it is there");
        assert_eq!(projects(proc.as_fd()).expect("answered"), Projects::Off);
    }
}
