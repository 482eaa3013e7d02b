//! Landlock: the kernel checks each access of a process to a file against the files that it may
//! reach (Linux 5.13, `Documentation/userspace-api/landlock.rst`).
//!
//! It adds to the other mechanisms and replaces none, so a kernel without it is no error.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::fs::{Mode, OFlags};

use crate::Error;

/// The newest rights that are restricted; a kernel that knows fewer restricts those.
const ABI_USED: ABI = ABI::V6;

/// Whether the kernel has Landlock, and it is not disabled.
#[must_use]
pub fn is_supported() -> bool {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .and_then(Ruleset::create)
        .is_ok()
}

/// Restricts the calling thread, and those that it starts later, to the files below `share`; to no
/// file at all without one. Descriptors that are open stay usable.
///
/// With a share, the process can signal itself alone. Without one signals are not restricted, since
/// the kernel sends the one that ends a worker with its keeper in the keeper's name.
///
/// # Errors
/// [`Error::Landlock`].
pub fn restrict(share: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    let all = AccessFs::from_all(ABI_USED);
    let scope = match share {
        Some(_) => Scope::from_all(ABI_USED),
        None => Scope::AbstractUnixSocket.into(),
    };
    let ruleset = Ruleset::default()
        .handle_access(all)
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(ABI_USED)))
        .and_then(|ruleset| ruleset.scope(scope));
    apply(ruleset, share.map(|share| (share, all)))
}

/// The files that a process reaches by name. Sockets with a path are not restricted.
#[derive(Debug, Default)]
pub struct Files {
    /// Whether it may read and execute all files.
    reads: bool,
    /// Directories, or files, and the rights to them.
    rules: Vec<(OwnedFd, BitFlags<AccessFs>)>,
}

impl Files {
    /// No file can be changed, and all can be read and executed. [`Files::default`] are none.
    #[must_use]
    pub fn readable() -> Self {
        Self {
            reads: true,
            rules: Vec::new(),
        }
    }

    /// Adds the right to remove files from the directory that holds `path`'s last component, such
    /// as the process's own socket.
    ///
    /// # Errors
    /// [`Error::Keep`].
    pub fn remove_beside(&mut self, path: &Path) -> Result<(), Error> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let directory = open_path(directory)?;
        self.rules.push((directory, AccessFs::RemoveFile.into()));
        Ok(())
    }

    /// Adds the right to read and write the file at `path`, and to make ioctls on it.
    ///
    /// # Errors
    /// [`Error::Keep`].
    pub fn write(&mut self, path: &Path) -> Result<(), Error> {
        let rights = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
        self.rules.push((open_path(path)?, rights));
        Ok(())
    }
}

fn open_path(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| Error::Keep {
        path: path.to_owned(),
        source: error.into(),
    })
}

/// Restricts the calling thread, and those that it starts later, to `files`. Descriptors that are
/// open stay usable. Signals reach the process itself and those that it starts.
///
/// # Errors
/// [`Error::Landlock`].
pub fn restrict_to(files: &Files) -> Result<(), Error> {
    let mut handled = AccessFs::from_all(ABI_USED);
    if files.reads {
        handled &= !(AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute);
    }
    let rules = files.rules.iter();
    let rules = rules.map(|(below, rights)| (below.as_fd(), *rights & handled));
    let ruleset = Ruleset::default().handle_access(handled);
    let ruleset = ruleset.and_then(|ruleset| ruleset.scope(Scope::Signal));
    apply(ruleset, rules)
}

fn apply<'a>(
    ruleset: Result<Ruleset, RulesetError>,
    rules: impl IntoIterator<Item = (BorrowedFd<'a>, BitFlags<AccessFs>)>,
) -> Result<(), Error> {
    let rules = rules
        .into_iter()
        .map(|(below, rights)| Ok(PathBeneath::new(below, rights)));
    let restricted = ruleset
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.add_rules(rules))
        .and_then(|ruleset: RulesetCreated| ruleset.restrict_self())
        .map_err(Error::Landlock)?;
    if restricted.ruleset == RulesetStatus::NotEnforced {
        log::debug!("the kernel enforces no Landlock rules");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::fs::{AtFlags, CWD, openat, unlinkat};
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_restricted_thread_opens_what_is_below_the_share_and_nothing_else() {
        if !is_supported() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        std::fs::create_dir(path.join("share")).unwrap();
        std::fs::write(path.join("share/f"), "x").unwrap();
        std::fs::write(path.join("secret"), "x").unwrap();
        let share = std::fs::File::open(path.join("share")).unwrap();
        let read = |path| openat(CWD, path, OFlags::RDONLY, Mode::empty()).map(drop);
        std::thread::spawn(move || {
            restrict(Some(share.as_fd())).unwrap();
            assert_eq!(read(path.join("share/f")), Ok(()));
            assert_eq!(read(path.join("secret")), Err(Errno::ACCESS));
            restrict(None).unwrap();
            assert_eq!(read(path.join("share/f")), Err(Errno::ACCESS));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn files_are_removed_written_and_read_where_the_rules_say() {
        if !is_supported() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        for name in ["own", "other"] {
            std::fs::create_dir(path.join(name)).unwrap();
            std::fs::write(path.join(name).join("f"), "x").unwrap();
        }
        std::fs::write(path.join("device"), "x").unwrap();
        let (own, other) = (path.join("own/f"), path.join("other/f"));
        let open = |path: &Path, flags| openat(CWD, path, flags, Mode::empty()).map(drop);
        std::thread::spawn(move || {
            let mut files = Files::readable();
            files.remove_beside(&own).unwrap();
            files.write(&path.join("device")).unwrap();
            restrict_to(&files).unwrap();
            assert_eq!(open(&other, OFlags::RDONLY), Ok(()));
            assert_eq!(open(&other, OFlags::WRONLY), Err(Errno::ACCESS));
            assert_eq!(open(&path.join("device"), OFlags::RDWR), Ok(()));
            assert_eq!(unlinkat(CWD, &other, AtFlags::empty()), Err(Errno::ACCESS));
            assert_eq!(unlinkat(CWD, &own, AtFlags::empty()), Ok(()));
            restrict_to(&Files::default()).unwrap();
            assert_eq!(open(&other, OFlags::RDONLY), Err(Errno::ACCESS));
        })
        .join()
        .unwrap();
    }
}
