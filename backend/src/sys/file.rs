//! System calls on one file: opening, attributes, listing.
//!
//! Each name is a single component or a descriptor's own number. No call here follows a symbolic
//! link except the magic links in `/proc/self/fd`.
#![allow(unsafe_code)] // getdents64 and a close that reports errors have no safe wrapper

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, SeekFrom, StatxFlags};

pub use rustix::fs::{StatFs, StatVfs, Statx, StatxTimestamp};

/// The attributes that each lookup requests from `statx(2)`: those of a reply and of an identity.
const LOOKUP_MASK: StatxFlags = StatxFlags::BASIC_STATS
    .union(StatxFlags::BTIME)
    .union(StatxFlags::from_bits_retain(MOUNT));

/// The attributes that tell an inode from all others, and its number of names.
const IDENTITY_MASK: StatxFlags = StatxFlags::TYPE
    .union(StatxFlags::INO)
    .union(StatxFlags::NLINK)
    .union(StatxFlags::BTIME)
    .union(StatxFlags::from_bits_retain(MOUNT));

/// Requests the mount id from `statx(2)`: the unique one (`STATX_MNT_ID_UNIQUE`, `linux/stat.h`) on
/// Linux 6.8 and later, else the id that the kernel reuses after an unmount.
pub const MOUNT: u32 = libc::STATX_MNT_ID | 0x4000;

/// The name of a descriptor in `/proc/self/fd`, formatted without an allocation.
pub struct DescriptorName {
    /// Ten digits and a NUL.
    bytes: [u8; 11],
    start: usize,
}

impl DescriptorName {
    /// The name of `fd`.
    pub fn new(fd: BorrowedFd<'_>) -> Self {
        let mut name = Self {
            bytes: [0; 11],
            start: 10,
        };
        let mut rest = fd.as_raw_fd().unsigned_abs();
        loop {
            name.start -= 1;
            // A remainder of a division by ten fits a byte, and any 32-bit number has at most ten
            // digits.
            name.bytes[name.start] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
            if rest == 0 {
                return name;
            }
        }
    }

    /// The name as a system call argument.
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes[self.start..]).unwrap_or(c"")
    }
}

/// Attributes of `name` in `dir`. Does not follow a symbolic link and does not trigger an
/// automount.
///
/// # Errors
/// Those of `statx(2)`.
pub fn stat_at(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_SYNC_AS_STAT;
    Ok(rustix::fs::statx(dir, name, flags, LOOKUP_MASK)?)
}

/// Attributes of an open file, including `O_PATH` descriptors.
///
/// # Errors
/// Those of `statx(2)`.
pub fn stat(file: BorrowedFd<'_>) -> io::Result<Statx> {
    stat_with(file, LOOKUP_MASK.bits(), 0)
}

/// Type, numbers, birth time and number of names of an open file, as the kernel knows them: a
/// network file system does not ask its server, so the call does not wait for one.
///
/// # Errors
/// Those of `statx(2)`.
pub fn identity(file: BorrowedFd<'_>) -> io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    Ok(rustix::fs::statx(file, c"", flags, IDENTITY_MASK)?)
}

/// [`identity`] of `name` in `dir`. Does not follow a symbolic link and does not trigger an
/// automount.
///
/// # Errors
/// Those of `statx(2)`.
pub fn identity_at(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    Ok(rustix::fs::statx(dir, name, flags, IDENTITY_MASK)?)
}

/// The attributes of an open file that `mask` (`STATX_*`) selects, with `AT_STATX_*` flags.
///
/// # Errors
/// Those of `statx(2)`.
pub fn stat_with(file: BorrowedFd<'_>, mask: u32, flags: u32) -> io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::from_bits_retain(flags);
    Ok(rustix::fs::statx(
        file,
        c"",
        flags,
        StatxFlags::from_bits_retain(mask),
    )?)
}

/// Opens `name` in `dir` as an `O_PATH` descriptor, also if it is a symbolic link.
///
/// # Errors
/// Those of `openat(2)`.
pub fn open_path(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    open_at(dir, name, libc::O_PATH, 0)
}

/// Opens the directory at `path` below `dir` as an `O_PATH` descriptor. Follows no link and leaves
/// `dir` at no point.
///
/// # Errors
/// Those of `openat2(2)`: ENOSYS before Linux 5.6.
pub fn open_dir_beneath(dir: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    retry(|| rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve))
}

/// Opens `name` in `dir` with `O_*` flags, `O_CLOEXEC` and `O_NOFOLLOW`.
///
/// # Errors
/// Those of `openat(2)`.
pub fn open_at(dir: BorrowedFd<'_>, name: &CStr, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    retry(|| {
        rustix::fs::openat(
            dir,
            name,
            open_flags(flags | libc::O_NOFOLLOW),
            mode_bits(mode),
        )
    })
}

/// Opens the file of a descriptor again with other flags, through `/proc/self/fd`.
///
/// # Errors
/// Those of `openat(2)`.
pub fn reopen_through_proc(
    proc_self_fd: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    flags: i32,
) -> io::Result<OwnedFd> {
    let name = DescriptorName::new(file);
    retry(|| {
        rustix::fs::openat(
            proc_self_fd,
            name.as_c_str(),
            open_flags(flags),
            Mode::empty(),
        )
    })
}

/// Sets a directory's position to a cookie from [`read_directory`].
///
/// # Errors
/// Those of `lseek(2)`.
pub fn seek_directory(directory: BorrowedFd<'_>, cookie: u64) -> io::Result<()> {
    rustix::fs::seek(directory, SeekFrom::Start(cookie))?;
    Ok(())
}

/// Fills `buffer` with `linux_dirent64` records and returns their length in bytes; 0 at the end.
///
/// # Errors
/// Those of `getdents64(2)`.
pub fn read_directory(directory: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of one mutable slice, which outlives the call.
    let length = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            directory.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

/// Statistics of the file system that holds `file`.
///
/// # Errors
/// Those of `fstatfs(2)`.
pub fn file_system_stats(file: BorrowedFd<'_>) -> io::Result<StatVfs> {
    Ok(rustix::fs::fstatvfs(file)?)
}

/// The magic number of the file system that holds `file` (`linux/magic.h`).
///
/// # Errors
/// Those of `fstatfs(2)`.
pub fn file_system_magic(file: BorrowedFd<'_>) -> io::Result<u64> {
    // The field's type differs between architectures; magic numbers have 32 bits.
    #[allow(
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        clippy::unnecessary_cast
    )]
    Ok(u64::from(rustix::fs::fstatfs(file)?.f_type as u32))
}

/// The flags with which `file` was opened, as far as the kernel keeps them (`O_*`).
///
/// # Errors
/// Those of `fcntl(2)`.
pub fn flags_of(file: BorrowedFd<'_>) -> io::Result<i32> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(flags.bits().cast_signed())
}

/// Makes transfers of `file` bypass the page cache (`O_DIRECT`), or not.
///
/// # Errors
/// Those of `fcntl(2)`: EINVAL if the file system has no direct I/O.
pub fn set_direct(file: BorrowedFd<'_>, direct: bool) -> io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    Ok(rustix::fs::fcntl_setfl(file, flags)?)
}

/// Closes a duplicate of `file`, so that a network file system reports delayed write errors.
///
/// # Errors
/// Those of `close(2)`.
pub fn close_duplicate(file: BorrowedFd<'_>) -> io::Result<()> {
    let duplicate = std::os::fd::IntoRawFd::into_raw_fd(file.as_fd().try_clone_to_owned()?);
    // SAFETY: the duplicate has given up this number, which is not used afterwards.
    if unsafe { libc::close(duplicate) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// Reads the target of the symbolic link behind `link` (`O_PATH`) and returns its length. A target
/// that does not fit is truncated.
///
/// # Errors
/// Those of `readlinkat(2)`.
pub fn read_link(link: BorrowedFd<'_>, target: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::fs::readlinkat_raw(link, c"", target)?)
}

/// Reads the path of an open file from `/proc/self/fd` and returns its length. A path that does not
/// fit is truncated; the kernel adds remarks such as " (deleted)".
///
/// # Errors
/// Those of `readlinkat(2)`.
pub fn proc_path(
    proc_self_fd: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    path: &mut [u8],
) -> io::Result<usize> {
    let name = DescriptorName::new(file);
    Ok(rustix::fs::readlinkat_raw(
        proc_self_fd,
        name.as_c_str(),
        path,
    )?)
}

/// Limit of repetitions of an interrupted call. A file system can answer EINTR for ever.
const MAX_INTERRUPTIONS: usize = 64;

/// Repeats an interrupted call up to 64 times.
///
/// # Errors
/// Those of the call; EINTR if each attempt was interrupted.
pub fn retry<T, E: Into<io::Error>>(mut call: impl FnMut() -> Result<T, E>) -> io::Result<T> {
    for _ in 0..MAX_INTERRUPTIONS {
        match call().map_err(Into::into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
    call().map_err(Into::into)
}

fn open_flags(flags: i32) -> OFlags {
    OFlags::from_bits_retain(flags.cast_unsigned()) | OFlags::CLOEXEC
}

/// The twelve permission bits of a mode.
pub(super) fn mode_bits(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_descriptor_is_named_by_its_number() {
        for number in [0, 7, 10, 99, 123_456, i32::MAX] {
            // SAFETY: the number is only formatted, never used as a descriptor, and not closed.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            assert_eq!(
                DescriptorName::new(fd).as_c_str().to_str(),
                Ok(number.to_string().as_str())
            );
        }
    }

    #[test]
    fn an_identity_is_the_same_with_and_without_asking_a_server() {
        let file = tempfile::tempfile().expect("a temporary file");
        let (asked, known) = (stat(file.as_fd()), identity(file.as_fd()));
        let of = |stat: io::Result<Statx>| {
            let stat = stat.expect("attributes");
            let born = (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec);
            let numbers = (stat.stx_mnt_id, stat.stx_ino, stat.stx_nlink, born);
            (u32::from(stat.stx_mode) & libc::S_IFMT, numbers)
        };
        assert_eq!(of(asked), of(known));
    }

    #[test]
    fn a_link_is_read_and_not_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("link")).expect("a link");
        let dir = File::open(directory.path()).expect("opened");
        let link = open_path(dir.as_fd(), c"link").expect("opened");
        assert_eq!(
            u32::from(stat(link.as_fd()).expect("attributes").stx_mode) & libc::S_IFMT,
            libc::S_IFLNK
        );
        let mut target = [0; 64];
        let length = read_link(link.as_fd(), &mut target).expect("read");
        assert_eq!(&target[..length], b"/etc/passwd");
        let error = open_at(dir.as_fd(), c"link", libc::O_RDONLY, 0).expect_err("not followed");
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn a_path_is_opened_below_its_directory_and_over_no_link() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(directory.path().join("a/b")).expect("made");
        std::os::unix::fs::symlink("a", directory.path().join("link")).expect("a link");
        std::fs::write(directory.path().join("file"), b"").expect("written");
        let dir = File::open(directory.path()).expect("opened");
        if let Err(error) = open_dir_beneath(dir.as_fd(), b"a/b") {
            assert_eq!(error.raw_os_error(), Some(libc::ENOSYS));
            eprintln!("SKIPPED: this kernel has no openat2");
            return;
        }
        for path in [
            &b"link/b"[..],
            b"link",
            b"../x",
            b"a/../..",
            b"/",
            b"file",
            b"a/x",
        ] {
            assert!(open_dir_beneath(dir.as_fd(), path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_deleted_file_is_reopened_with_other_flags() {
        let proc_self_fd = File::open("/proc/self/fd").expect("opened");
        let file = tempfile::tempfile().expect("a temporary file");
        let path = reopen_through_proc(proc_self_fd.as_fd(), file.as_fd(), libc::O_PATH)
            .expect("reopened");
        let again = reopen_through_proc(proc_self_fd.as_fd(), path.as_fd(), libc::O_RDWR)
            .expect("reopened");
        crate::sys::file_content::truncate(again.as_fd(), 9).expect("truncated");
        assert_eq!(stat(path.as_fd()).expect("attributes").stx_size, 9);
        close_duplicate(again.as_fd()).expect("closed");
    }
}
