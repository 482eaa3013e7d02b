//! Gives everything below a directory its project, as `xfs_quota -c 'project -s'` does.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType};

use super::{Error, refused};
use crate::sys::file::{self, Statx};
use crate::sys::file_ioctl::{self, Project};

/// A directory that is being read, and its name.
struct Level {
    entries: Dir,
    path: PathBuf,
}

/// Gives the project `id` to all files and directories below `root`, on its file system. Returns
/// how many there are.
///
/// Other kinds of files cannot be opened, so they keep what they have. Links are not followed.
///
/// # Errors
/// [`Error::OtherProject`] at the first that has another project, and [`Error::Assign`].
pub(super) fn assign(root: BorrowedFd<'_>, path: &Path, id: u32) -> Result<u64, Error> {
    let failed = |error| Error::Assign(path.to_owned(), error);
    let device = device(&file::stat(root).map_err(failed)?);
    let mut levels = vec![level(root, path)?];
    let mut count = 0;
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.entries.read() else {
            levels.pop();
            continue;
        };
        let entry = entry.map_err(|error| Error::Assign(level.path.clone(), error.into()))?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let path = level
            .path
            .join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        let failed = |error| Error::Assign(path.clone(), error);
        let parent = level.entries.fd().map_err(|error| failed(error.into()))?;
        let Some((file, is_directory)) = open(parent, name, device).map_err(failed)? else {
            continue;
        };
        let found = file_ioctl::project(file.as_fd()).map_err(failed)?;
        let wanted = Project {
            id,
            is_passed_on: is_directory,
        };
        if found.id != 0 && found.id != id {
            return Err(Error::OtherProject {
                path,
                other: found.id,
                directory: levels.swap_remove(0).path,
                own: id,
            });
        }
        if found != wanted {
            file_ioctl::set_project(file.as_fd(), wanted)
                .map_err(|error| refused(error, failed))?;
        }
        count += 1;
        if is_directory {
            levels.push(self::level(file.as_fd(), &path)?);
        }
    }
    Ok(count)
}

fn level(directory: BorrowedFd<'_>, path: &Path) -> Result<Level, Error> {
    let entries =
        Dir::read_from(directory).map_err(|error| Error::Assign(path.to_owned(), error.into()))?;
    Ok(Level {
        entries,
        path: path.to_owned(),
    })
}

/// Opens a file or a directory, and says whether it is a directory. `None` if it is of another
/// kind, of another file system, or has gone.
fn open(
    parent: BorrowedFd<'_>,
    name: &CStr,
    wanted: (u32, u32),
) -> io::Result<Option<(OwnedFd, bool)>> {
    let stat = match file::stat_at(parent, name) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        result => result?,
    };
    let flags = match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Directory => libc::O_DIRECTORY,
        FileType::RegularFile => libc::O_NONBLOCK,
        _ => return Ok(None),
    };
    if device(&stat) != wanted {
        return Ok(None);
    }
    let opened = file::open_at(parent, name, flags | libc::O_RDONLY | libc::O_NOATIME, 0);
    Ok(Some((opened?, flags == libc::O_DIRECTORY)))
}

const fn device(stat: &Statx) -> (u32, u32) {
    (stat.stx_dev_major, stat.stx_dev_minor)
}
