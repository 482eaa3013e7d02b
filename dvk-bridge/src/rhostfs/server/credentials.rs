//! The user and group that the server acts for, and the permission checks for them.
//!
//! The daemon serves a guest's kernel, which has checked permissions already. So the server checks
//! owner, group and mode itself, for any user but root. The user has no supplementary groups.

use gangplank_driver::Caller;
use gangplank_fuse::Attr;
use rustix::fs::FileType;
use rustix::io::Errno;

/// A user by its ids in the share.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// The access that a call needs, in the bits of access(2).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Access(u32);

impl Access {
    pub(super) const SEARCH: Self = Self(1);
    pub(super) const WRITE: Self = Self(2);
    pub(super) const READ: Self = Self(4);
    /// To create, remove or rename entries of a directory.
    pub(super) const CHANGE: Self = Self(3);

    /// The bits of access(2). Zero tests existence alone.
    ///
    /// # Errors
    ///
    /// EINVAL for other bits.
    pub(super) const fn from_bits(bits: u32) -> Result<Self, Errno> {
        if bits & !7 == 0 {
            Ok(Self(bits))
        } else {
            Err(Errno::INVAL)
        }
    }

    pub(super) const fn writes(self) -> bool {
        self.0 & Self::WRITE.0 != 0
    }

    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Sticky bit of a directory (`S_ISVTX`).
const STICKY: u32 = 0o1000;

/// Permission bits, including set-group-ID (`S_ISGID`).
const MODE_BITS: u32 = 0o7777;
const SET_GROUP_ID: u32 = 0o2000;

impl Credentials {
    /// The user of this process.
    #[must_use]
    pub fn own() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    }

    pub(super) const fn caller(self) -> Caller {
        Caller {
            uid: self.uid,
            gid: self.gid,
            pid: 0,
        }
    }

    const fn is_root(self) -> bool {
        self.uid == 0
    }

    /// Checks that the user has `access` to a file.
    ///
    /// # Errors
    ///
    /// EACCES.
    pub(super) fn check(self, attr: &Attr, access: Access) -> Result<(), Errno> {
        let bits = if self.is_root() {
            // Root may read and write any file, and execute a file that anybody may execute.
            let directory = FileType::from_raw_mode(attr.mode) == FileType::Directory;
            if directory || attr.mode & 0o111 != 0 {
                7
            } else {
                6
            }
        } else if self.uid == attr.uid {
            attr.mode >> 6 & 7
        } else if self.gid == attr.gid {
            attr.mode >> 3 & 7
        } else {
            attr.mode & 7
        };
        if access.0 & !bits == 0 {
            Ok(())
        } else {
            Err(Errno::ACCESS)
        }
    }

    /// Checks that the user may change mode and times.
    ///
    /// # Errors
    ///
    /// EPERM.
    pub(super) const fn check_owner(self, attr: &Attr) -> Result<(), Errno> {
        if self.is_root() || self.uid == attr.uid {
            Ok(())
        } else {
            Err(Errno::PERM)
        }
    }

    /// The mode that is set when the user sets `mode`. Set-group-ID is dropped if the file's group
    /// is not the user's.
    pub(super) const fn mode(self, attr: &Attr, mode: u32) -> u32 {
        let mode = mode & MODE_BITS;
        if self.is_root() || self.gid == attr.gid {
            mode
        } else {
            mode & !SET_GROUP_ID
        }
    }

    /// Checks that the user may change owner and group: root to any, the owner to its own group.
    ///
    /// # Errors
    ///
    /// EPERM.
    pub(super) fn check_give(
        self,
        attr: &Attr,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<(), Errno> {
        if self.is_root() {
            return Ok(());
        }
        let same_user = uid.is_none_or(|uid| uid == attr.uid);
        let own_group = gid.is_none_or(|gid| gid == attr.gid || gid == self.gid);
        if self.uid == attr.uid && same_user && own_group {
            Ok(())
        } else {
            Err(Errno::PERM)
        }
    }

    /// Checks that the user may remove an entry of a directory that it may change.
    ///
    /// # Errors
    ///
    /// EPERM in a directory with the sticky bit, for another user's file.
    pub(super) const fn check_sticky(self, directory: &Attr, attr: &Attr) -> Result<(), Errno> {
        if directory.mode & STICKY == 0
            || self.is_root()
            || self.uid == attr.uid
            || self.uid == directory.uid
        {
            Ok(())
        } else {
            Err(Errno::PERM)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Credentials = Credentials { uid: 0, gid: 0 };
    const USER: Credentials = Credentials { uid: 7, gid: 70 };

    fn attr(mode: u32, uid: u32, gid: u32) -> Attr {
        Attr {
            mode,
            uid,
            gid,
            ..Attr::default()
        }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let all = Access::READ.and(Access::CHANGE);
        for (mode, uid, gid, may) in [
            (0o100_700, 7, 1, true),
            (0o100_077, 7, 70, false),
            (0o100_070, 1, 70, true),
            (0o100_707, 1, 70, false),
            (0o100_007, 1, 1, true),
            (0o100_770, 1, 1, false),
        ] {
            let checked = USER.check(&attr(mode, uid, gid), all);
            assert_eq!(checked.is_ok(), may, "{mode:o} {uid}:{gid}");
        }
    }

    #[test]
    fn root_executes_only_files_with_an_execute_bit() {
        assert!(
            ROOT.check(&attr(0o100_000, 7, 7), Access::READ.and(Access::WRITE))
                .is_ok()
        );
        assert_eq!(
            ROOT.check(&attr(0o100_666, 0, 0), Access::SEARCH),
            Err(Errno::ACCESS)
        );
        assert!(ROOT.check(&attr(0o100_001, 7, 7), Access::SEARCH).is_ok());
        assert!(ROOT.check(&attr(0o040_000, 7, 7), Access::SEARCH).is_ok());
    }

    #[test]
    fn owners_change_their_files() {
        assert!(USER.check_owner(&attr(0, 7, 0)).is_ok());
        assert_eq!(USER.check_owner(&attr(0o777, 1, 70)), Err(Errno::PERM));
        assert!(USER.check_give(&attr(0, 7, 1), Some(7), Some(70)).is_ok());
        assert_eq!(
            USER.check_give(&attr(0, 7, 1), None, Some(2)),
            Err(Errno::PERM)
        );
        assert_eq!(
            USER.check_give(&attr(0, 7, 1), Some(8), None),
            Err(Errno::PERM)
        );
        assert!(ROOT.check_give(&attr(0, 7, 1), Some(8), Some(9)).is_ok());
    }

    #[test]
    fn set_group_id_requires_membership() {
        assert_eq!(USER.mode(&attr(0, 7, 70), 0o102_755), 0o2755);
        assert_eq!(USER.mode(&attr(0, 7, 1), 0o2755), 0o755);
        assert_eq!(ROOT.mode(&attr(0, 7, 1), 0o2755), 0o2755);
    }

    #[test]
    fn names_of_others_cannot_be_removed_from_a_sticky_directory() {
        let directory = attr(0o041_777, 1, 1);
        assert_eq!(
            USER.check_sticky(&directory, &attr(0, 1, 1)),
            Err(Errno::PERM)
        );
        assert!(USER.check_sticky(&directory, &attr(0, 7, 1)).is_ok());
        assert!(
            USER.check_sticky(&attr(0o041_777, 7, 1), &attr(0, 1, 1))
                .is_ok()
        );
        assert!(
            USER.check_sticky(&attr(0o040_777, 1, 1), &attr(0, 1, 1))
                .is_ok()
        );
    }
}
