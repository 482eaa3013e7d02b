//! Makes the guest's kernel tell watchers of a change that it has not seen.
//!
//! The kernel tells of system calls, not of what they achieve, so these are system calls that look
//! like the change. The daemon knows this process by the file of changes, and does nothing on its
//! behalf: it answers with what the host has. What each raises (`include/linux/fsnotify.h`):
//!
//! - new times tell `IN_MODIFY` (the modification time alone) or `IN_ATTRIB` (both);
//! - to open for writing, and to close, tell `IN_OPEN` and `IN_CLOSE_WRITE`;
//! - to create a name that the kernel believes to be free tells `IN_CREATE`;
//! - to remove a name that the kernel believes to exist tells `IN_DELETE`;
//! - an inode without names that loses its last entry in the kernel's cache tells `IN_DELETE_SELF`.
//!
//! If the process were not known to the daemon, the times would be set to what they are, and a name
//! would be created or removed only if the host had just undone what it did.

use std::os::fd::{AsFd, OwnedFd};

use gangplank_events::Kind;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, Timespec, Timestamps,
    UTIME_OMIT, fadvise, mkdirat, mknodat, openat2, statx, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::rescan::Time;

/// What paths may lead to: nothing that the guest has put in their way, and no other file system,
/// where system calls would be real.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV);

/// What the daemon lets names lead to for this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    Current,
    Earlier,
    Nothing,
    Removed,
    RemovedDirectory,
}

impl View {
    const fn word(self) -> &'static [u8] {
        match self {
            Self::Current => b"current",
            Self::Earlier => b"earlier",
            Self::Nothing => b"nothing",
            Self::Removed => b"removed",
            Self::RemovedDirectory => b"removed/",
        }
    }
}

/// Wakes the watchers of a mount.
pub struct Waker<'a> {
    root: &'a OwnedFd,
    events: &'a OwnedFd,
    view: View,
}

/// What a path leads to.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// Its type.
    pub file_type: FileType,
    /// The host's time of its last change.
    pub changed: Time,
}

impl<'a> Waker<'a> {
    /// For the mount at `root`, with its file of changes.
    #[must_use]
    pub const fn new(root: &'a OwnedFd, events: &'a OwnedFd) -> Self {
        Self {
            root,
            events,
            view: View::Current,
        }
    }

    /// Tells watchers of a change.
    ///
    /// # Errors
    /// Of the system calls. Usually the path has changed again meanwhile, which is told too.
    pub fn wake(&mut self, kind: Kind, path: &[u8], is_directory: bool) -> rustix::io::Result<()> {
        let told = match kind {
            Kind::Created => self.created(path, is_directory),
            Kind::Deleted => self.deleted(path, is_directory),
            Kind::Modified => self.changed(path, true),
            Kind::Attributes => self.changed(path, false),
        };
        self.see(View::Current)?;
        told
    }

    /// Opens a directory to list it.
    ///
    /// # Errors
    /// Those of openat2(2).
    pub fn open_directory(&mut self, root: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        self.see(View::Current)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(root, path, flags, Mode::empty(), RESOLVE)
    }

    /// What is at a path, as the host has it now.
    pub fn look(&mut self, path: &[u8]) -> Option<Found> {
        self.see(View::Current).ok()?;
        let stat = self
            .open_path(path)
            .and_then(|file| attributes(&file))
            .ok()?;
        Some(Found {
            file_type: FileType::from_raw_mode(stat.stx_mode.into()),
            changed: Time::of(&stat.stx_ctime),
        })
    }

    /// Content or attributes have changed.
    fn changed(&mut self, path: &[u8], is_content: bool) -> rustix::io::Result<()> {
        self.see(View::Current)?;
        let file = self.open_path(path)?;
        let stat = attributes(&file)?;
        let modified = Timespec {
            tv_sec: stat.stx_mtime.tv_sec,
            tv_nsec: stat.stx_mtime.tv_nsec.into(),
        };
        let accessed = match is_content {
            true => Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
            false => Timespec {
                tv_sec: stat.stx_atime.tv_sec,
                tv_nsec: stat.stx_atime.tv_nsec.into(),
            },
        };
        let times = Timestamps {
            last_access: accessed,
            last_modification: modified,
        };
        let told = utimensat(&file, "", &times, AtFlags::EMPTY_PATH);
        if is_content && is_regular(&stat) {
            self.open_and_close(path)?;
        }
        told
    }

    fn created(&mut self, path: &[u8], is_directory: bool) -> rustix::io::Result<()> {
        let (directory, name) = split(path);
        let directory = self.open_parent(directory)?;
        self.forget_earlier(path);
        self.see(View::Nothing)?;
        let made = match is_directory {
            true => mkdirat(&directory, name, Mode::empty()),
            false => make(&directory, name, FileType::RegularFile),
        };
        self.see(View::Current)?;
        if made == Err(Errno::INVAL) {
            let stat = self.open_path(path).and_then(|file| attributes(&file))?;
            self.see(View::Nothing)?;
            let file_type = FileType::from_raw_mode(stat.stx_mode.into());
            make(&directory, name, file_type)?;
            return self.see(View::Current);
        }
        made?;
        if !is_directory {
            self.open_and_close(path)?;
        }
        Ok(())
    }

    fn deleted(&mut self, path: &[u8], is_directory: bool) -> rustix::io::Result<()> {
        let (directory, name) = split(path);
        let directory = self.open_parent(directory)?;
        self.forget_earlier(path);
        let (view, flags) = match is_directory {
            true => (View::RemovedDirectory, AtFlags::REMOVEDIR),
            false => (View::Removed, AtFlags::empty()),
        };
        self.see(view)?;
        unlinkat(&directory, name, flags)
    }

    /// The kernel learns that the inode that a name led to has fewer names now, so that it tells
    /// the inode's watchers when it forgets the name.
    fn forget_earlier(&mut self, path: &[u8]) {
        let _ = self
            .see(View::Earlier)
            .and_then(|()| self.open_path(path))
            .and_then(|file| attributes(&file));
    }

    /// Opens a file for writing and closes it. Its pages in the guest's cache are dropped, which
    /// may be those of the old content.
    fn open_and_close(&self, path: &[u8]) -> rustix::io::Result<()> {
        let open = |access: OFlags| {
            let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
            let flags = flags | OFlags::CLOEXEC;
            openat2(self.root, path, flags, Mode::empty(), RESOLVE)
        };
        // A program that runs cannot be opened for writing.
        let file = open(OFlags::WRONLY).or_else(|_| open(OFlags::RDONLY))?;
        fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
    }

    fn open_path(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat2(self.root, path, flags, Mode::empty(), RESOLVE)
    }

    fn open_parent(&mut self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        self.see(View::Current)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(self.root, path, flags, Mode::empty(), RESOLVE)
    }

    /// Has the daemon choose what names lead to.
    fn see(&mut self, view: View) -> rustix::io::Result<()> {
        if self.view != view {
            rustix::io::write(self.events, view.word())?;
            self.view = view;
        }
        Ok(())
    }
}

/// A path's directory and name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b".", path),
    }
}

/// Attributes, as the daemon has them now.
fn attributes(file: &OwnedFd) -> rustix::io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    statx(file.as_fd(), "", flags, StatxFlags::BASIC_STATS)
}

fn is_regular(stat: &Statx) -> bool {
    FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile
}

fn make(directory: &OwnedFd, name: &[u8], file_type: FileType) -> rustix::io::Result<()> {
    match file_type {
        FileType::Directory => mkdirat(directory, name, Mode::empty()),
        FileType::Symlink => symlinkat(".", directory, name),
        file_type => mknodat(directory, name, file_type, Mode::empty(), 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_split_into_directory_and_name() {
        assert_eq!(split(b"a"), (b".".as_slice(), b"a".as_slice()));
        assert_eq!(split(b"a/b/c"), (b"a/b".as_slice(), b"c".as_slice()));
    }
}
