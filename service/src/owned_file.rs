//! A file that a program made for others to find, and that it removes when it ends.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use log::{debug, warn};
use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;

/// The file that a name stands for. Two files of one host differ in it while both exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl From<&Stat> for FileId {
    fn from(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }
}

impl FileId {
    /// Device and inode number.
    #[must_use]
    pub const fn numbers(self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// The file with this device and inode number.
    #[must_use]
    pub const fn from_numbers(device: u64, inode: u64) -> Self {
        Self { device, inode }
    }
}

/// A file and its name. The directory is held, so that the name means the same whatever the working
/// directory and the links on the way are later.
#[derive(Debug)]
pub struct OwnedFile {
    directory: OwnedFd,
    name: OsString,
    id: FileId,
}

impl OwnedFile {
    /// The file `id`, which has `name` in `directory`.
    ///
    /// # Errors
    /// `fcntl(2)`'s: no descriptor is left.
    pub fn new(directory: BorrowedFd<'_>, name: &OsStr, id: FileId) -> io::Result<Self> {
        Ok(Self {
            directory: directory.try_clone_to_owned()?,
            name: name.to_owned(),
            id,
        })
    }

    /// The file.
    #[must_use]
    pub const fn id(&self) -> FileId {
        self.id
    }

    /// Where its name is.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Removes the file, unless another file has taken its name since. A failure is logged.
    pub fn remove(self) {
        let name = &self.name;
        let result = match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileId::from(&found) == self.id => {
                rustix::fs::unlinkat(&self.directory, name, AtFlags::empty())
            }
            Ok(_) => {
                debug!("{name:?} is left alone: it is another file by now");
                Ok(())
            }
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            warn!("cannot remove {name:?}: {error}");
        }
    }
}

/// Opens the directory that holds `path`'s last component, as a place to find names in (`O_PATH`).
///
/// # Errors
/// `open(2)`'s.
pub fn open_directory_of(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(directory_of(path), flags, Mode::empty())?)
}

/// The directory part of `path`; `.` if there is none.
#[must_use]
pub fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_file_is_removed_and_one_that_took_its_name_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let owned = || {
            let stat = rustix::fs::stat(&path).unwrap();
            let directory = open_directory_of(&path).unwrap();
            OwnedFile::new(directory.as_fd(), OsStr::new("f"), (&stat).into()).unwrap()
        };
        std::fs::write(&path, "").unwrap();
        owned().remove();
        assert!(!path.exists());

        std::fs::write(&path, "").unwrap();
        let renamed = owned();
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        std::fs::write(&path, "another's").unwrap();
        renamed.remove();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "another's");
    }
}
