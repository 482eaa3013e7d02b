//! Landlock: the kernel checks each access of a worker to a file against the shared directory
//! (Linux 5.13, `Documentation/userspace-api/landlock.rst`).
//!
//! It adds to the other mechanisms and replaces none, so a kernel without it is no error.
//!
//! A file that was opened by handle may have no known path ("disconnected"). The kernel then looks
//! no further than the root of its mount, and before a correction refuses the file altogether. So
//! Landlock and file handles exclude each other, unless the share is the root of a mount and the
//! kernel has the correction.

use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Erratum, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};

use super::error::Error;
use super::options::Mode;
use crate::passthrough::options::InodeFileHandles;

/// The newest rights that are restricted; a kernel that knows fewer restricts those.
const ABI_USED: ABI = ABI::V6;

/// How the daemon uses Landlock and file handles together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Use {
    /// Whether workers and keepers restrict themselves.
    pub(super) landlock: bool,
    /// Whether files may be opened by handle.
    pub(super) handles: bool,
}

/// Decides for a sandbox and `--inode-file-handles`. `can_open_by_handle` says whether the process
/// has the permission to open files by handle.
pub(super) fn choose(mode: Mode, handles: InodeFileHandles, can_open_by_handle: bool) -> Use {
    // An empty set on a kernel that does not tell its corrections.
    let corrected = Erratum::current().contains(Erratum::DisconnectedDirectoryHandling);
    choose_with(mode, handles, can_open_by_handle, is_supported(), corrected)
}

fn choose_with(
    mode: Mode,
    handles: InodeFileHandles,
    can_open_by_handle: bool,
    supported: bool,
    corrected: bool,
) -> Use {
    let wants_handles = can_open_by_handle && handles != InodeFileHandles::Never;
    if !supported || !wants_handles {
        return Use {
            landlock: supported,
            handles: wants_handles,
        };
    }
    match (mode, handles) {
        // The mount namespace holds nothing but the share anyway.
        (Mode::Namespace, _) => Use {
            landlock: corrected,
            handles: true,
        },
        (Mode::Chroot | Mode::None, InodeFileHandles::Mandatory) => Use {
            landlock: false,
            handles: true,
        },
        (Mode::Chroot | Mode::None, _) => Use {
            landlock: true,
            handles: false,
        },
    }
}

/// Whether the kernel has Landlock, and it is not disabled.
fn is_supported() -> bool {
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
pub(super) fn restrict(share: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    let all = AccessFs::from_all(ABI_USED);
    let scope = match share {
        Some(_) => Scope::from_all(ABI_USED),
        None => Scope::AbstractUnixSocket.into(),
    };
    let restricted = Ruleset::default()
        .handle_access(all)
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(ABI_USED)))
        .and_then(|ruleset| ruleset.scope(scope))
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.add_rules(share.map(|share| Ok(PathBeneath::new(share, all)))))
        .and_then(|ruleset: landlock::RulesetCreated| ruleset.restrict_self())
        .map_err(Error::Landlock)?;
    if restricted.ruleset == RulesetStatus::NotEnforced {
        log::debug!("the kernel enforces no Landlock rules");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{CWD, Mode as FileMode, OFlags, openat};
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn landlock_gives_way_to_handles_where_they_exclude_each_other() {
        use InodeFileHandles::{Mandatory, Never, Prefer};
        // mode, handles, permission, corrected kernel -> landlock, handles
        let table = [
            (Mode::Namespace, Prefer, true, true, (true, true)),
            (Mode::Namespace, Prefer, true, false, (false, true)),
            (Mode::Namespace, Never, true, false, (true, false)),
            (Mode::Namespace, Prefer, false, false, (true, false)),
            (Mode::None, Prefer, true, true, (true, false)),
            (Mode::None, Mandatory, true, true, (false, true)),
            (Mode::Chroot, Prefer, false, false, (true, false)),
        ];
        for (mode, handles, permitted, corrected, (landlock, with_handles)) in table {
            let chosen = choose_with(mode, handles, permitted, true, corrected);
            let expected = Use {
                landlock,
                handles: with_handles,
            };
            assert_eq!(chosen, expected, "{mode:?} {handles:?}");
        }
        let without = choose_with(Mode::None, Prefer, true, false, false);
        assert!(!without.landlock && without.handles);
    }

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
        let read = |path| openat(CWD, path, OFlags::RDONLY, FileMode::empty()).map(drop);
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
}
