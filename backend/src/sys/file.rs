//! System calls on one file: opening, attributes, listing.
//!
//! Every name is a single component or a descriptor's own number; nothing here follows a symbolic link
//! but the magic ones in the directory of the process's own descriptors.
#![allow(unsafe_code)] // getdents64 into a plain buffer and a close that reports have no safe wrapper

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom, StatxFlags};

pub use rustix::fs::{StatFs, StatVfs, Statx, StatxTimestamp};

/// What every look-up asks of `statx(2)`: all that a reply and an identity need.
const LOOKUP_MASK: StatxFlags = StatxFlags::BASIC_STATS
    .union(StatxFlags::BTIME)
    .union(StatxFlags::from_bits_retain(MOUNT));

/// Asks `statx(2)` for the mount: by the number that is never used again, where the kernel has it
/// (`STATX_MNT_ID_UNIQUE`, `linux/stat.h`, Linux 6.8), and by the one that is used again after an unmount elsewhere.
pub const MOUNT: u32 = libc::STATX_MNT_ID | 0x4000;

/// A descriptor's number as the name it has in `/proc/self/fd`, without an allocation.
pub struct DescriptorName {
    /// Room for ten digits and a NUL.
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
            // The remainder of a division by ten fits a byte, and ten digits hold any 32-bit number.
            name.bytes[name.start] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
            if rest == 0 {
                return name;
            }
        }
    }

    /// The name for a system call.
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes[self.start..]).unwrap_or(c"")
    }
}

/// Attributes of `name` in `dir`, not following a link and not starting an automount.
///
/// # Errors
/// `statx(2)`'s.
pub fn stat_at(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_SYNC_AS_STAT;
    Ok(rustix::fs::statx(dir, name, flags, LOOKUP_MASK)?)
}

/// Attributes of an open file, `O_PATH` or not.
///
/// # Errors
/// `statx(2)`'s.
pub fn stat(file: BorrowedFd<'_>) -> io::Result<Statx> {
    stat_with(file, LOOKUP_MASK.bits(), 0)
}

/// Attributes of an open file as far as `mask` (`STATX_*`) asks for them, with `AT_STATX_*` flags.
///
/// # Errors
/// `statx(2)`'s.
pub fn stat_with(file: BorrowedFd<'_>, mask: u32, flags: u32) -> io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::from_bits_retain(flags);
    Ok(rustix::fs::statx(
        file,
        c"",
        flags,
        StatxFlags::from_bits_retain(mask),
    )?)
}

/// A descriptor (`O_PATH`) that stands for whatever `name` in `dir` is, a symbolic link included.
///
/// # Errors
/// `openat(2)`'s.
pub fn open_path(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    open_at(dir, name, libc::O_PATH, 0)
}

/// Opens `name` in `dir` with `O_*` flags; `O_CLOEXEC` and `O_NOFOLLOW` are added.
///
/// # Errors
/// `openat(2)`'s.
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

/// Opens what `file` stands for once more, with other flags, through `/proc/self/fd`.
///
/// # Errors
/// `openat(2)`'s.
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

/// Moves a directory's position to a cookie that [`read_directory`] gave.
///
/// # Errors
/// `lseek(2)`'s.
pub fn seek_directory(directory: BorrowedFd<'_>, cookie: u64) -> io::Result<()> {
    rustix::fs::seek(directory, SeekFrom::Start(cookie))?;
    Ok(())
}

/// Fills `buffer` with `linux_dirent64` records and returns their length in bytes; 0 at the end.
///
/// # Errors
/// `getdents64(2)`'s.
pub fn read_directory(directory: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of one mutable slice, which outlives the call.
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

/// Figures of the file system that holds `file`.
///
/// # Errors
/// `fstatfs(2)`'s.
pub fn file_system_stats(file: BorrowedFd<'_>) -> io::Result<StatVfs> {
    Ok(rustix::fs::fstatvfs(file)?)
}

/// The magic number of the file system that holds `file` (`linux/magic.h`).
///
/// # Errors
/// `fstatfs(2)`'s.
pub fn file_system_magic(file: BorrowedFd<'_>) -> io::Result<u64> {
    // The field's type differs between architectures; magic numbers have 32 bits.
    #[allow(
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        clippy::unnecessary_cast
    )]
    Ok(u64::from(rustix::fs::fstatfs(file)?.f_type as u32))
}

/// Has transfers of `file` go past the page cache (`O_DIRECT`), or through it, from now on.
///
/// # Errors
/// `fcntl(2)`'s: EINVAL where the file system cannot do without the cache.
pub fn set_direct(file: BorrowedFd<'_>, direct: bool) -> io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    Ok(rustix::fs::fcntl_setfl(file, flags)?)
}

/// Closes a duplicate of `file`, which is what makes a network file system report delayed write errors.
///
/// # Errors
/// `close(2)`'s.
pub fn close_duplicate(file: BorrowedFd<'_>) -> io::Result<()> {
    let duplicate = std::os::fd::IntoRawFd::into_raw_fd(file.as_fd().try_clone_to_owned()?);
    // SAFETY: the number was owned by the duplicate, which has given it up, and is not used afterwards.
    if unsafe { libc::close(duplicate) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// The target of the symbolic link that `link` (`O_PATH`) stands for; its length, cut to the buffer's.
///
/// # Errors
/// `readlinkat(2)`'s.
pub fn read_link(link: BorrowedFd<'_>, target: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::fs::readlinkat_raw(link, c"", target)?)
}

/// What the kernel says is the path of an open file, with remarks of its own where it has none; cut to the buffer.
///
/// # Errors
/// `readlinkat(2)`'s.
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

/// How often a call is repeated that a signal has interrupted. A file system may answer EINTR by
/// itself, and for ever.
const MAX_INTERRUPTIONS: usize = 64;

/// Calls again while a signal interrupts, up to [`MAX_INTERRUPTIONS`] times.
///
/// # Errors
/// The call's; EINTR where it was interrupted each time.
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

/// The twelve permission bits.
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
            // SAFETY: the number is only printed, never used as a descriptor, and not closed.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            assert_eq!(
                DescriptorName::new(fd).as_c_str().to_str(),
                Ok(number.to_string().as_str())
            );
        }
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
