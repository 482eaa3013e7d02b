//! The quota of the shared directory (`--quota-bytes`, `--quota-inodes`): the limits of a project
//! of the host's file system, to which everything below the directory belongs.
//!
//! The file system enforces it, so no request costs more. Without privileges in the confined
//! processes, and with [`crate::passthrough`] refusing guests' changes of projects, a guest cannot
//! leave the project. What comes first is written down in the directory, so that a daemon which
//! ends in between leaves work for the next one, and no hole:
//!
//! 1. The directory gets the project, and does not pass it on.
//! 2. Everything below it gets the project, and passes it on (`tree`).
//! 3. The directory passes it on as well. A directory that does is finished, or the
//!    administrator's.

mod tree;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use thiserror::Error;

use crate::sys::file;
use crate::sys::file_ioctl::{self, Project};
use crate::sys::quota::{self, Projects, Usage};

/// The limits. Without one, nothing is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Most bytes.
    pub bytes: Option<u64>,
    /// Most inodes.
    pub inodes: Option<u64>,
}

/// Why the share has no quota.
#[derive(Debug, Error)]
pub enum Error {
    /// The directory cannot be opened.
    #[error("cannot open the shared directory {0:?} for its quota")]
    Open(PathBuf, #[source] io::Error),
    /// Its file system has no quotas of projects.
    #[error(
        "--quota-bytes and --quota-inodes: the file system of {0:?} has no quotas of projects. \
         Mount ext4, XFS or f2fs with the option prjquota; ext4 also needs `tune2fs -O \
         quota,project` while it is not mounted"
    )]
    NoQuotas(PathBuf),
    /// It counts, and enforces nothing.
    #[error(
        "--quota-bytes and --quota-inodes: the file system of {0:?} does not enforce the quotas of \
         projects; mount it with the option prjquota"
    )]
    NotEnforced(PathBuf),
    /// The daemon may not set quotas.
    #[error("--quota-bytes and --quota-inodes: not permitted; it takes root (CAP_SYS_ADMIN)")]
    NotPermitted,
    /// The quota is one of a larger directory.
    #[error(
        "{0:?} belongs to the project {1} of the directory above it, and the quota would be of \
         that one; give the directory a project of its own, as by `chattr -R +P -p NUMBER`"
    )]
    ProjectOfParent(PathBuf, u32),
    /// A file below the directory has another project.
    #[error(
        "{path:?} belongs to the project {other}, but {directory:?} to {own}; give it that one, as \
         by `chattr -p {own}`, or share a directory without it"
    )]
    OtherProject {
        /// The file.
        path: PathBuf,
        /// Its project.
        other: u32,
        /// The shared directory.
        directory: PathBuf,
        /// The project of the share.
        own: u32,
    },
    /// Every project's number that was tried is in use.
    #[error(
        "no project of the file system of {0:?} is free; give the directory one by `chattr -p`"
    )]
    NoneFree(PathBuf),
    /// A file's project cannot be read or set.
    #[error("cannot give {0:?} a project")]
    Assign(PathBuf, #[source] io::Error),
    /// The limits cannot be read or set.
    #[error("cannot set the quota of project {project}, that of {directory:?}")]
    Limit {
        /// The project.
        project: u32,
        /// The shared directory.
        directory: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The first number that is given to a directory without a project, so far from those that people
/// choose that they do not meet.
const FIRST_PROJECT: u32 = 1 << 30;

/// Numbers that are tried for a directory.
const ATTEMPTS: u32 = 1000;

/// Sets the limits of the share, and gives it a project if it has none. No guest may be served yet.
///
/// # Errors
/// [`enum@Error`], worded for the operator.
pub fn apply(options: Options, shared_dir: &Path) -> Result<(), Error> {
    if options == Options::default() {
        return Ok(());
    }
    let path = || shared_dir.to_owned();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(shared_dir, flags, Mode::empty())
        .map_err(|error| Error::Open(path(), error.into()))?;
    let directory = directory.as_fd();
    match quota::projects(directory).map_err(|error| Error::Open(path(), error))? {
        Projects::Off => return Err(Error::NoQuotas(path())),
        Projects::Counted => return Err(Error::NotEnforced(path())),
        Projects::Enforced => {}
    }
    let project = project_of(directory, shared_dir)?;
    quota::set_limits(directory, project, options.bytes, options.inodes)
        .and_then(|()| quota::usage(directory, project))
        .map(|usage| log(shared_dir, project, usage))
        .map_err(|error| refused(error, no_limit(project, shared_dir)))
}

/// The project of the shared directory, to which everything below it belongs.
fn project_of(directory: BorrowedFd<'_>, path: &Path) -> Result<u32, Error> {
    let failed = |error| Error::Assign(path.to_owned(), error);
    let found = file_ioctl::project(directory).map_err(failed)?;
    if found.id != 0 && parents_project(directory) == Some(found.id) {
        return Err(Error::ProjectOfParent(path.to_owned(), found.id));
    }
    if found.id != 0 && found.is_passed_on {
        return Ok(found.id);
    }
    let id = match found.id {
        0 => free_project(directory, path)?,
        id => id,
    };
    let set = |is_passed_on| {
        file_ioctl::set_project(directory, Project { id, is_passed_on })
            .map_err(|error| refused(error, failed))
    };
    set(false)?;
    let files = tree::assign(directory, path, id)?;
    set(true)?;
    log::info!("{path:?} and the {files} files below it belong to project {id} now");
    Ok(id)
}

/// The project of the directory above, if that is of the same file system.
fn parents_project(directory: BorrowedFd<'_>) -> Option<u32> {
    let parent = file::open_at(directory, c"..", libc::O_RDONLY | libc::O_DIRECTORY, 0).ok()?;
    let (own, above) = (
        file::stat(directory).ok()?,
        file::stat(parent.as_fd()).ok()?,
    );
    let device = |stat: &file::Statx| (stat.stx_dev_major, stat.stx_dev_minor);
    if device(&own) != device(&above) || own.stx_ino == above.stx_ino {
        return None;
    }
    Some(file_ioctl::project(parent.as_fd()).ok()?.id)
}

/// A project that nobody uses, by the directory's inode, so that two daemons that start at the same
/// time do not choose the same.
fn free_project(directory: BorrowedFd<'_>, path: &Path) -> Result<u32, Error> {
    let failed = |error| Error::Assign(path.to_owned(), error);
    let inode = file::stat(directory).map_err(failed)?.stx_ino;
    let offset = u32::try_from(inode % u64::from(FIRST_PROJECT)).unwrap_or(0);
    for attempt in 0..ATTEMPTS {
        let project = FIRST_PROJECT + offset.wrapping_add(attempt) % FIRST_PROJECT;
        let usage = quota::usage(directory, project)
            .map_err(|error| refused(error, no_limit(project, path)))?;
        if usage == Usage::default() {
            return Ok(project);
        }
    }
    Err(Error::NoneFree(path.to_owned()))
}

fn refused(error: io::Error, otherwise: impl FnOnce(io::Error) -> Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Error::NotPermitted,
        _ => otherwise(error),
    }
}

/// The error of limits that cannot be read or set.
fn no_limit(project: u32, directory: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Limit {
        project,
        directory: directory.to_owned(),
        source,
    }
}

fn log(path: &Path, project: u32, usage: Usage) {
    let of = |limit: Option<u64>| limit.map_or(String::new(), |limit| format!(" of {limit}"));
    log::info!(
        "the quota of {path:?}, project {project}: it has {}{} bytes and {}{} inodes",
        usage.bytes,
        of(usage.byte_limit),
        usage.inodes,
        of(usage.inode_limit)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: Options = Options {
        bytes: Some(1 << 20),
        inodes: None,
    };

    #[test]
    fn without_limits_nothing_is_needed() {
        apply(Options::default(), Path::new("/nowhere")).expect("nothing is done");
    }

    #[test]
    fn a_file_system_without_quotas_is_named_with_what_to_do() {
        let message = apply(SOME, Path::new("/proc")).unwrap_err().to_string();
        assert!(
            message.contains("\"/proc\"") && message.contains("prjquota"),
            "{message}"
        );
        let message = apply(SOME, Path::new("/nowhere")).unwrap_err().to_string();
        assert!(message.contains("cannot open"), "{message}");
    }
}
