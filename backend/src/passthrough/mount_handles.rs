//! The file handles of one mount: whether they work, and the descriptor needed to open them.
//!
//! `open_by_handle_at(2)` needs a descriptor on the handle's mount. The descriptor stays open while
//! any handle is kept, and keeps the host from unmounting the file system meanwhile. While the
//! guest's state has handles, the mount's record has the descriptor's number, and the next worker
//! goes on with it ([`crate::state::mounts`]).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::holder::client::Holder;
use crate::state::arena::Part;
use crate::state::change::Place;
use crate::state::mounts::MountRecord;
use crate::sys::file_handle::FileHandle;
use crate::sys::{file, process};

/// Values of [`MountRecord::handles`]. File handles of FUSE do not outlive the host's cached inode,
/// so they count as failed from the start.
pub(super) const UNKNOWN: u32 = 0;
const WORKING: u32 = 1;
pub(super) const FAILED: u32 = 2;

/// The state of a mount's file handles.
#[derive(Debug)]
pub(super) struct MountHandles {
    records: Part<MountRecord>,
    /// Index of the mount's record.
    index: u32,
    mount: Mutex<MountDescriptor>,
    holder: Option<Arc<Holder>>,
}

/// The descriptor of a mount.
#[derive(Debug, Default)]
struct MountDescriptor {
    /// The descriptor, as long as anybody needs it.
    open: Weak<OwnedFd>,
    /// Keeps it open while the guest's state has handles. Then its number is recorded.
    recorded: Option<Arc<OwnedFd>>,
}

/// A file handle with the mount's descriptor.
#[derive(Debug, Clone)]
pub(super) struct OpenableHandle {
    handle: FileHandle,
    /// Index of the mount.
    index: u32,
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

    /// The index of the handle's mount.
    pub(super) fn mount_index(&self) -> u32 {
        self.index
    }
}

impl MountHandles {
    /// Those of the mount whose record is number `index`, as an earlier worker left them.
    /// `holder` holds the descriptor as long as the record has its number.
    pub(super) fn restore(
        records: Part<MountRecord>,
        index: u32,
        holder: Option<&Arc<Holder>>,
    ) -> Self {
        let handles = Self {
            records,
            index,
            mount: Mutex::default(),
            holder: holder.cloned(),
        };
        handles.adopt();
        handles
    }

    /// Takes over the recorded descriptor, or closes it if the guest's state has no handles.
    fn adopt(&self) {
        let Some(number) = self.record().and_then(|record| record.descriptor.get()) else {
            return;
        };
        let opened = process::adopt(number).map(Arc::new);
        if let Err(error) = &opened {
            log::error!("the descriptor of a mount in the share is not open any more: {error}");
        }
        let is_needed = |record: &MountRecord| record.references.load(Ordering::Acquire) > 0;
        match (opened, self.record()) {
            (Ok(opened), Some(record)) if is_needed(record) => {
                let mut mount = self.mount.lock();
                mount.open = Arc::downgrade(&opened);
                mount.recorded = Some(opened);
            }
            (opened, Some(record)) => {
                self.unrecord(record);
                drop(opened);
            }
            (_, None) => {}
        }
    }

    /// The guest's state has one more handle. Called before the handle is stored, with a handle of
    /// this mount.
    pub(super) fn retain(&self, handle: &OpenableHandle) {
        let Some(record) = self.record() else {
            return;
        };
        let mut mount = self.mount.lock();
        if mount.recorded.is_none() {
            let number = handle.mount.as_raw_fd();
            if let Some(holder) = &self.holder {
                holder.hold(&[number]);
            }
            record.descriptor.set(Some(number));
            mount.recorded = Some(Arc::clone(&handle.mount));
        }
        record.references.add(1);
    }

    /// The guest's state has one handle fewer. May close the mount's descriptor.
    pub(super) fn release(&self) {
        let Some(record) = self.record() else {
            return;
        };
        let mut mount = self.mount.lock();
        if !record
            .references
            .change_if_some(|count: u32| count.checked_sub(1))
        {
            return;
        }
        if record.references.load(Ordering::Acquire) == 0 {
            self.unrecord(record);
            let closed = mount.recorded.take();
            drop(mount);
            drop(closed);
        }
    }

    /// The guest's state has no handle any more, whatever was counted.
    pub(super) fn release_all(&self) {
        let Some(record) = self.record() else {
            return;
        };
        let mut mount = self.mount.lock();
        record.references.set(0);
        self.unrecord(record);
        let closed = mount.recorded.take();
        drop(mount);
        drop(closed);
    }

    /// The record has the descriptor no more, which will be closed.
    fn unrecord(&self, record: &MountRecord) {
        let number = record.descriptor.get();
        record.descriptor.set(None);
        if let (Some(holder), Some(number)) = (&self.holder, number) {
            holder.release(&[number]);
        }
    }

    /// A handle of the guest's state with the mount's descriptor; `None` if that is lost.
    pub(super) fn openable(&self, handle: FileHandle) -> Option<OpenableHandle> {
        let mount = self.mount.lock().recorded.clone()?;
        Some(OpenableHandle {
            handle,
            index: self.index,
            mount,
        })
    }

    fn record(&self) -> Option<&MountRecord> {
        self.records.get(self.index as usize)
    }

    /// Whether handles work: `UNKNOWN`, `WORKING` or `FAILED`.
    fn state(&self) -> u32 {
        let record = self.record();
        record.map_or(FAILED, |record| record.handles.load(Ordering::Acquire))
    }

    fn set_state(&self, state: u32) {
        if let Some(record) = self.record() {
            record.handles.set(state);
        }
    }

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
        if self.state() != WORKING {
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
        if self.state() == FAILED {
            return Ok(None);
        }
        let Some(mount) = self.mount(proc_self_fd, source)? else {
            return Ok(None);
        };
        let handle = match FileHandle::of(file) {
            Ok(handle) => OpenableHandle {
                handle,
                index: self.index,
                mount,
            },
            Err(error) => return self.note_failure(error).map(|()| None),
        };
        if self.state() == UNKNOWN {
            match verify_round_trip(&handle, file) {
                Ok(()) => self.set_state(WORKING),
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
        let found = lock().open.upgrade();
        let (None, Some(source)) = (&found, source) else {
            return Ok(found);
        };
        let flags = libc::O_RDONLY | libc::O_NONBLOCK;
        let opened = Arc::new(file::reopen_through_proc(proc_self_fd, source, flags)?);
        let mut mount = lock();
        // Another thread may have been faster.
        Ok(Some(mount.open.upgrade().unwrap_or_else(|| {
            mount.open = Arc::downgrade(&opened);
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
        if self.state() != FAILED {
            self.set_state(FAILED);
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
    use crate::state::arena::Arena;
    use crate::state::change::killing;
    use crate::state::mounts;

    fn arena() -> Arc<Arena> {
        let arena = Arena::small();
        arena.header().mounts.store(1, Ordering::Relaxed);
        arena
    }

    fn handles() -> MountHandles {
        MountHandles::restore(arena().mounts(), 0, None)
    }

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
        let handles = handles();
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
        let handles = handles();
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
        let handles = handles();
        assert!(
            handles
                .openable_handle(proc_self_fd.as_fd(), file.as_fd(), Some(file.as_fd()))
                .expect("no error")
                .is_none()
        );
        let handle = handles.handle_of(file.as_fd()).expect("no error");
        assert!(handle.is_none());
    }

    /// A handle of a file that `handles` can open; `None` if handles do not work here.
    fn handle_of_file(handles: &MountHandles) -> Option<OpenableHandle> {
        let proc_self_fd = File::open("/proc/self/fd").expect("opened");
        let file = tempfile::NamedTempFile::new().expect("a file");
        let file = file.as_file().as_fd();
        let found = handles.openable_handle(proc_self_fd.as_fd(), file, Some(file));
        let found = found.expect("no error");
        if found.is_none() {
            eprintln!("SKIPPED: handles do not work here");
        }
        found
    }

    /// Kills the worker before each change of storing and removing two handles. Whenever the state
    /// may have a handle, the next worker has the mount's descriptor.
    #[test]
    fn the_mounts_descriptor_outlives_the_worker_while_the_state_has_handles() {
        let mut finished = false;
        for kill_at in 0.. {
            let arena = arena();
            let first = MountHandles::restore(arena.mounts(), 0, None);
            let Some(handle) = handle_of_file(&first) else {
                return;
            };
            let stored = std::cell::Cell::new(0_u32);
            finished = killing::until(kill_at, || {
                for _ in 0..2 {
                    first.retain(&handle);
                    stored.set(stored.get() + 1);
                }
                for _ in 0..2 {
                    stored.set(stored.get() - 1);
                    first.release();
                }
            })
            .is_some();
            // The dead worker's descriptors stay open in the table that the next one shares.
            let (number, content) = (handle.mount.as_raw_fd(), handle.handle().clone());
            std::mem::forget((handle, first));
            let recorded = mounts::descriptors(&arena);
            assert!(stored.get() == 0 || recorded == [number], "{kill_at}");
            let next = MountHandles::restore(arena.mounts(), 0, None);
            let references = arena.mounts()[0].references.load(Ordering::Relaxed);
            assert!((stored.get()..=stored.get() + 1).contains(&references));
            let openable = next.openable(content);
            assert!(openable.is_some() || stored.get() == 0, "{kill_at}");
            drop(openable);
            (0..references).for_each(|_| next.release());
            assert!(mounts::descriptors(&arena).is_empty());
            if finished {
                break;
            }
        }
        assert!(finished);
    }

    #[test]
    fn a_descriptor_that_is_not_open_any_more_is_no_mounts() {
        let arena = arena();
        let record = &arena.mounts()[0];
        record.references.store(1, Ordering::Relaxed);
        record.descriptor.set(Some(1_000_000_000));
        let handles = MountHandles::restore(arena.mounts(), 0, None);
        let Some(handle) = handle_of_file(&handles) else {
            return;
        };
        assert!(handles.openable(handle.handle().clone()).is_none());
        // The next handle brings another descriptor.
        handles.retain(&handle);
        let openable = handles.openable(handle.handle().clone());
        assert_eq!(mounts::descriptors(&arena), [handle.mount.as_raw_fd()]);
        drop((handle, openable));
        (0..2).for_each(|_| handles.release());
        assert!(mounts::descriptors(&arena).is_empty());
    }
}
