//! The file handles of one mount: whether they work, and the descriptor needed to open them.
//!
//! `open_by_handle_at(2)` needs a descriptor on the handle's mount. The descriptor stays open while
//! any handle is kept, and keeps the host from unmounting the file system meanwhile.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::sys::file;
use crate::sys::file_handle::FileHandle;

const UNKNOWN: u8 = 0;
const WORKING: u8 = 1;
const FAILED: u8 = 2;

/// The state of a mount's file handles.
#[derive(Debug, Default)]
pub(super) struct MountHandles {
    state: AtomicU8,
    mount: Mutex<Weak<OwnedFd>>,
}

/// A file handle with the mount's descriptor.
#[derive(Debug, Clone)]
pub(super) struct OpenableHandle {
    handle: FileHandle,
    mount: Arc<OwnedFd>,
}

impl OpenableHandle {
    /// Opens the inode (`O_PATH`).
    ///
    /// # Errors
    /// ESTALE if the inode no longer exists; ENFILE and others.
    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        self.handle.open(self.mount.as_fd(), flags)
    }

    /// The file handle itself.
    pub(super) fn handle(&self) -> &FileHandle {
        &self.handle
    }
}

impl MountHandles {
    /// The handle of `file`, if handles are known to work on its mount.
    ///
    /// # Errors
    /// Those of `name_to_handle_at(2)` that do not mean that the inode has no handle.
    pub(super) fn handle_of(&self, file: BorrowedFd<'_>) -> io::Result<Option<FileHandle>> {
        self.handle(|| FileHandle::of(file))
    }

    /// The handle of `name` in `dir`, if handles are known to work on this mount.
    ///
    /// # Errors
    /// As for [`MountHandles::handle_of`]; ENOENT if there is no such name.
    pub(super) fn handle_at(
        &self,
        dir: BorrowedFd<'_>,
        name: &CStr,
    ) -> io::Result<Option<FileHandle>> {
        self.handle(|| FileHandle::at(dir, name))
    }

    fn handle(
        &self,
        make: impl FnOnce() -> io::Result<FileHandle>,
    ) -> io::Result<Option<FileHandle>> {
        if self.state.load(Ordering::Acquire) != WORKING {
            return Ok(None);
        }
        match make().map(Some) {
            // Some inodes of a file system may have none.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EOPNOTSUPP | libc::EOVERFLOW)
                ) =>
            {
                Ok(None)
            }
            result => result,
        }
    }

    /// A handle of `file` that can be opened; `None` if handles do not work or the mount has no
    /// descriptor yet and no `source`, a file or directory on the mount from which the descriptor
    /// can be opened for reading.
    ///
    /// # Errors
    /// A failure that says nothing about handles, such as EMFILE: a later attempt may succeed.
    pub(super) fn openable_handle(
        &self,
        proc_self_fd: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        source: Option<BorrowedFd<'_>>,
    ) -> io::Result<Option<OpenableHandle>> {
        if self.state.load(Ordering::Acquire) == FAILED {
            return Ok(None);
        }
        let Some(mount) = self.mount(proc_self_fd, source)? else {
            return Ok(None);
        };
        let handle = match FileHandle::of(file) {
            Ok(handle) => OpenableHandle { handle, mount },
            Err(error) => return self.note_failure(error).map(|()| None),
        };
        if self.state.load(Ordering::Acquire) == UNKNOWN {
            match verify_round_trip(&handle, file) {
                Ok(()) => self.state.store(WORKING, Ordering::Release),
                Err(error) => return self.note_failure(error).map(|()| None),
            }
        }
        Ok(Some(handle))
    }

    /// The mount's descriptor; opens one if there is none. `None` without a source.
    ///
    /// # Errors
    /// The source cannot be opened.
    fn mount(
        &self,
        proc_self_fd: BorrowedFd<'_>,
        source: Option<BorrowedFd<'_>>,
    ) -> io::Result<Option<Arc<OwnedFd>>> {
        let lock = || self.mount.lock();
        let found = lock().upgrade();
        let (None, Some(source)) = (&found, source) else {
            return Ok(found);
        };
        let flags = libc::O_RDONLY | libc::O_NONBLOCK;
        let opened = Arc::new(file::reopen_through_proc(proc_self_fd, source, flags)?);
        let mut mount = lock();
        // Another thread may have been faster.
        Ok(Some(mount.upgrade().unwrap_or_else(|| {
            *mount = Arc::downgrade(&opened);
            opened
        })))
    }

    /// Notes that handles do not work, or returns an error that does not mean that.
    fn note_failure(&self, error: io::Error) -> io::Result<()> {
        let transient = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EINTR];
        if error
            .raw_os_error()
            .is_some_and(|errno| transient.contains(&errno))
        {
            return Err(error);
        }
        if self.state.swap(FAILED, Ordering::AcqRel) != FAILED {
            log::info!("file handles do not work on a file system in the share: {error}");
        }
        Ok(())
    }
}

/// Verifies that a handle opens the inode it was made from.
fn verify_round_trip(handle: &OpenableHandle, file: BorrowedFd<'_>) -> io::Result<()> {
    let found = file::identity(handle.open()?.as_fd())?;
    let meant = file::identity(file)?;
    let device = |stat: &file::Statx| (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_mnt_id);
    if device(&found) == device(&meant) && found.stx_ino == meant.stx_ino {
        return Ok(());
    }
    Err(io::Error::other("a handle leads to another inode"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn the_mounts_descriptor_lives_as_long_as_a_handle() {
        let proc_self_fd = File::open("/proc/self/fd").expect("opened");
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file::open_path(
            File::open(file.path().parent().expect("a parent"))
                .expect("opened")
                .as_fd(),
            &std::ffi::CString::new(file.path().file_name().expect("a name").as_encoded_bytes())
                .expect("no NUL"),
        )
        .expect("opened");
        let handles = MountHandles::default();
        assert!(
            handles
                .openable_handle(proc_self_fd.as_fd(), path.as_fd(), None)
                .expect("no error")
                .is_none()
        );
        let Some(handle) = handles
            .openable_handle(proc_self_fd.as_fd(), path.as_fd(), Some(path.as_fd()))
            .expect("no error")
        else {
            eprintln!("SKIPPED: handles do not work here");
            return;
        };
        let found = handles.handle_of(path.as_fd()).expect("no error");
        assert_eq!(found.as_ref(), Some(handle.handle()));
        let missing = handles.handle_at(proc_self_fd.as_fd(), c"missing");
        assert!(missing.is_err(), "an error is no inode without a handle");
        let mount = Arc::downgrade(&handle.mount);
        let second = handles
            .openable_handle(proc_self_fd.as_fd(), path.as_fd(), None)
            .expect("no error")
            .expect("a handle");
        drop(handle);
        second.open().expect("opened");
        drop(second);
        assert!(mount.upgrade().is_none());
    }

    #[test]
    fn a_mount_that_cannot_be_opened_now_is_an_error_and_not_a_mount_without_handles() {
        let file = tempfile::tempfile().expect("a file");
        let handles = MountHandles::default();
        // A `/proc/self/fd` without the source stands for an open(2) that fails.
        let empty = tempfile::tempdir().expect("a directory");
        let empty = File::open(empty.path()).expect("opened");
        let failed = handles.openable_handle(empty.as_fd(), file.as_fd(), Some(file.as_fd()));
        assert!(failed.is_err());
        let proc_self_fd = File::open("/proc/self/fd").expect("opened");
        handles
            .openable_handle(proc_self_fd.as_fd(), file.as_fd(), Some(file.as_fd()))
            .expect("no error");
    }

    #[test]
    fn file_systems_without_handles_are_found_out() {
        let proc_self_fd = File::open("/proc/self/fd").expect("opened");
        let file = File::open("/proc/self/status").expect("opened");
        let handles = MountHandles::default();
        assert!(
            handles
                .openable_handle(proc_self_fd.as_fd(), file.as_fd(), Some(file.as_fd()))
                .expect("no error")
                .is_none()
        );
        let handle = handles.handle_of(file.as_fd()).expect("no error");
        assert!(handle.is_none());
    }
}
