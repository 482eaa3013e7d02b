//! Decides whether Landlock restricts the daemon to the shared directory.
//!
//! A file that was opened by handle may have no known path ("disconnected"). The kernel then looks
//! no further than the root of its mount, and before a correction refuses the file altogether. So
//! Landlock and file handles exclude each other, unless the share is the root of a mount and the
//! kernel has the correction.

use gangplank_sandbox::landlock::is_supported;
use landlock::Erratum;

use super::options::Mode;
use crate::passthrough::options::InodeFileHandles;

/// How the daemon uses Landlock and file handles together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Use {
    /// Whether workers restrict themselves.
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

#[cfg(test)]
mod tests {
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
}
