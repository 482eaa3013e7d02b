//! Changes in directories (`fanotify(7)`), told by directory and name. Needs no privileges.
#![allow(unsafe_code)] // the two system calls have no safe wrapper

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::fstatvfs;

use super::file_handle::FileHandle;

/// The changes that are told: of the directory's entries, and of their content and attributes.
const CHANGES: u64 = libc::FAN_MODIFY
    | libc::FAN_ATTRIB
    | libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_MOVED_FROM
    | libc::FAN_MOVED_TO
    | libc::FAN_ONDIR
    | libc::FAN_EVENT_ON_CHILD;

/// `FAN_REPORT_DFID_NAME`: each event has the handle of the directory, and the name in it.
const INIT_FLAGS: u32 = libc::FAN_CLASS_NOTIF
    | libc::FAN_CLOEXEC
    | libc::FAN_NONBLOCK
    | libc::FAN_REPORT_DIR_FID
    | libc::FAN_REPORT_NAME;

/// Bytes of `struct fanotify_event_metadata`.
const METADATA_LEN: usize = 24;

/// `FAN_EVENT_INFO_TYPE_DFID_NAME`.
const DFID_NAME: u8 = 2;

/// A set of directories whose changes are told.
#[derive(Debug)]
pub struct Watcher(OwnedFd);

/// A directory as events name it: its file system's id and its file handle.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DirectoryKey(Box<[u8]>);

/// One event.
#[derive(Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// `FAN_*`.
    pub mask: u64,
    /// The process that made the change; 0 if it is not the calling one and may not be known.
    pub pid: i32,
    /// The directory and the name in it, `.` for the directory itself; `None` if the kernel's queue
    /// had no room for more.
    pub place: Option<(DirectoryKey, &'a [u8])>,
}

impl DirectoryKey {
    /// The key of an open directory.
    ///
    /// # Errors
    /// EOPNOTSUPP if its file system has no file handles.
    pub fn of(directory: BorrowedFd<'_>) -> io::Result<Self> {
        let handle = FileHandle::of(directory)?;
        let file_system = fstatvfs(directory)?.f_fsid;
        Ok(Self::from_parts(file_system, handle.kind(), handle.bytes()))
    }

    fn from_parts(file_system: u64, kind: i32, handle: &[u8]) -> Self {
        let mut key = Vec::with_capacity(12 + handle.len());
        key.extend(file_system.to_ne_bytes());
        key.extend(kind.to_ne_bytes());
        key.extend(handle);
        Self(key.into())
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Watcher {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// EMFILE: the user has too many (`fs.fanotify.max_user_groups`). EINVAL: before Linux 5.13.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointers.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_fanotify_init,
                INIT_FLAGS,
                libc::O_RDONLY | libc::O_CLOEXEC,
            )
        };
        let fd = i32::try_from(fd).unwrap_or(-1);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just returned the descriptor, and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Watches the directory behind a descriptor, which may be an `O_PATH` one. `proc_self_fd` is
    /// an open `/proc/self/fd`.
    ///
    /// # Errors
    /// ENOSPC: the user watches too many directories (`fs.fanotify.max_user_marks`). EACCES: the
    /// process may not list the directory. EOPNOTSUPP, ENODEV: its file system has no file handles.
    pub fn watch(&self, proc_self_fd: BorrowedFd<'_>, directory: BorrowedFd<'_>) -> io::Result<()> {
        let mut name = [0; 16];
        let number = directory.as_raw_fd().to_string();
        let room = name.get_mut(..number.len());
        room.ok_or(io::ErrorKind::InvalidInput)?
            .copy_from_slice(number.as_bytes());
        let name = CStr::from_bytes_until_nul(&name).map_err(io::Error::other)?;
        self.mark(
            libc::FAN_MARK_ADD | libc::FAN_MARK_ONLYDIR,
            CHANGES,
            proc_self_fd.as_raw_fd(),
            Some(name),
        )
    }

    /// Watches nothing any more.
    ///
    /// # Errors
    /// None that is known.
    pub fn clear(&self) -> io::Result<()> {
        self.mark(libc::FAN_MARK_FLUSH, 0, libc::AT_FDCWD, None)
    }

    fn mark(&self, flags: u32, mask: u64, dir: i32, name: Option<&CStr>) -> io::Result<()> {
        let name = name.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: the name is null or NUL-terminated and outlives the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_fanotify_mark,
                self.0.as_raw_fd(),
                flags,
                mask,
                dir,
                name,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Reads events into `buffer` and returns their length; 0 if there are none.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match rustix::io::read(&self.0, buffer) {
            Ok(length) => Ok(length),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

/// The events that [`Watcher::read`] has read. Ends at one that is not understood.
pub fn events(mut bytes: &[u8]) -> impl Iterator<Item = Event<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let (event, rest) = bytes.split_at_checked(length)?;
        bytes = rest;
        let mask = u64::from_ne_bytes(*event.get(8..)?.first_chunk()?);
        let pid = u32_at(event, 20)?.cast_signed();
        Some(Event {
            mask,
            pid,
            place: place(event.get(METADATA_LEN..)?),
        })
    })
}

/// The place in the first information record that has one.
fn place(mut records: &[u8]) -> Option<(DirectoryKey, &[u8])> {
    loop {
        let length = u16::from_ne_bytes(*records.get(2..)?.first_chunk()?);
        let (record, rest) = records.split_at_checked(length.into())?;
        if record.first() != Some(&DFID_NAME) {
            records = rest;
            continue;
        }
        let file_system = u64::from(u32_at(record, 4)?) | u64::from(u32_at(record, 8)?) << 32;
        let handle_len = usize::try_from(u32_at(record, 12)?).ok()?;
        let kind = u32_at(record, 16)?.cast_signed();
        let (handle, name) = record.get(20..)?.split_at_checked(handle_len)?;
        let name = CStr::from_bytes_until_nul(name).ok()?.to_bytes();
        return Some((DirectoryKey::from_parts(file_system, kind, handle), name));
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn a_change_is_told_by_directory_name_and_own_process() {
        let dir = tempfile::tempdir().expect("a directory");
        let watcher = Watcher::new().expect("a watcher");
        let proc = File::open("/proc/self/fd").expect("the process's descriptors");
        let opened = File::open(dir.path()).expect("the directory");
        let watched = watcher.watch(proc.as_fd(), opened.as_fd());
        watched.expect("the directory is watched");
        fs::write(dir.path().join("a"), b"x").expect("written");

        let mut buffer = [0; 4096];
        let length = watcher.read(&mut buffer).expect("events");
        let told: Vec<_> = events(&buffer[..length]).collect();
        let key = DirectoryKey::of(opened.as_fd()).expect("a key");
        let own = std::process::id().cast_signed();
        let mask = told.iter().fold(0, |all, event| all | event.mask);
        assert_eq!(mask & libc::FAN_CREATE, libc::FAN_CREATE);
        assert_eq!(mask & libc::FAN_MODIFY, libc::FAN_MODIFY);
        for event in told {
            assert_eq!(event.pid, own);
            assert_eq!(event.place, Some((key.clone(), b"a".as_slice())));
        }
        assert_eq!(watcher.read(&mut buffer).expect("no events"), 0);
        watcher.clear().expect("cleared");
        fs::write(dir.path().join("b"), b"x").expect("written");
        assert_eq!(watcher.read(&mut buffer).expect("no events"), 0);
    }

    #[test]
    fn bytes_that_are_no_events_end_the_events() {
        assert_eq!(events(&[]).count(), 0);
        assert_eq!(events(&[1; 40]).count(), 0);
        // An overflow has no place.
        let mut overflow = [0; METADATA_LEN];
        overflow[0] = 24;
        let told: Vec<_> = events(&overflow).map(|event| event.place).collect();
        assert_eq!(told, [None]);
    }
}
