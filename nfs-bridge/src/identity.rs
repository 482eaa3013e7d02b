//! Who a caller is in the share, and what it may do.
//!
//! The daemon serves a guest's kernel, which has checked permissions already. Here nobody has, so
//! this program checks owner, group and mode itself. POSIX ACLs are not considered, except as far
//! as the mode's group bits show their mask.

use gangplank_driver::Caller;
use gangplank_fuse::Attr;
use nfs3_types::nfs3::nfsstat3;
use rustix::fs::FileType;

/// The user and group that anonymous callers are, unless a rule says otherwise (`nobody`).
pub const NOBODY: u32 = 65534;

/// Permission to execute a file, or to search a directory.
pub const EXECUTE: u32 = 1;
/// Permission to write.
pub const WRITE: u32 = 2;
/// Permission to read.
pub const READ: u32 = 4;

/// Sticky bit of a directory (`S_ISVTX`).
const STICKY: u32 = 0o1000;

/// Set-group-ID (`S_ISGID`).
const SET_GROUP_ID: u32 = 0o2000;

/// A caller by its ids in the share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl Identity {
    /// The caller in requests to the daemon.
    #[must_use]
    pub const fn caller(&self) -> Caller {
        Caller {
            uid: self.uid,
            gid: self.gid,
            pid: 0,
        }
    }

    const fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Whether it owns the file, or is root.
    #[must_use]
    pub const fn owns(&self, attr: &Attr) -> bool {
        self.is_root() || self.uid == attr.uid
    }

    /// Whether it is in a group.
    #[must_use]
    pub fn is_in(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }

    /// The permissions that it has, as bits of access(2).
    #[must_use]
    pub fn permissions(&self, attr: &Attr) -> u32 {
        if self.is_root() {
            // Root executes only what somebody may execute.
            let is_directory = FileType::from_raw_mode(attr.mode) == FileType::Directory;
            let executes = is_directory || attr.mode & 0o111 != 0;
            return READ | WRITE | if executes { EXECUTE } else { 0 };
        }
        let class = if self.uid == attr.uid {
            attr.mode >> 6
        } else if self.is_in(attr.gid) {
            attr.mode >> 3
        } else {
            attr.mode
        };
        class & 7
    }

    /// Checks that it has all of `wanted`.
    ///
    /// # Errors
    /// `NFS3ERR_ACCES`.
    pub fn check(&self, attr: &Attr, wanted: u32) -> Result<(), nfsstat3> {
        if wanted & !self.permissions(attr) == 0 {
            Ok(())
        } else {
            Err(nfsstat3::NFS3ERR_ACCES)
        }
    }

    /// Checks that it may read a file's data.
    ///
    /// The client has opened the file before, and a program may go on reading what it has opened,
    /// whatever the mode is by now. So the owner may always read, and everybody who may execute.
    ///
    /// # Errors
    /// `NFS3ERR_ACCES`.
    pub fn check_read(&self, attr: &Attr) -> Result<(), nfsstat3> {
        match self.owns(attr) || self.permissions(attr) & (READ | EXECUTE) != 0 {
            true => Ok(()),
            false => Err(nfsstat3::NFS3ERR_ACCES),
        }
    }

    /// Checks that it may write a file's data. The owner may always, as for reading: programs
    /// create files with mode 0444 and write them.
    ///
    /// # Errors
    /// `NFS3ERR_ACCES`.
    pub fn check_write(&self, attr: &Attr) -> Result<(), nfsstat3> {
        match self.owns(attr) {
            true => Ok(()),
            false => self.check(attr, WRITE),
        }
    }

    /// Checks that it may remove or replace the entry `attr` of `directory`.
    ///
    /// # Errors
    /// `NFS3ERR_ACCES`; `NFS3ERR_PERM` for another user's file in a directory with the sticky bit.
    pub fn check_remove(&self, directory: &Attr, attr: &Attr) -> Result<(), nfsstat3> {
        self.check(directory, WRITE | EXECUTE)?;
        match directory.mode & STICKY == 0 || self.owns(attr) || self.uid == directory.uid {
            true => Ok(()),
            false => Err(nfsstat3::NFS3ERR_PERM),
        }
    }

    /// Checks that it may change owner and group: root to any, the owner to a group it is in.
    ///
    /// # Errors
    /// `NFS3ERR_PERM`.
    pub fn check_give(
        &self,
        attr: &Attr,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<(), nfsstat3> {
        if self.is_root() || (uid.is_none() && gid.is_none()) {
            return Ok(());
        }
        let same_owner = uid.is_none_or(|uid| uid == attr.uid);
        let own_group = gid.is_none_or(|gid| gid == attr.gid || self.is_in(gid));
        match self.uid == attr.uid && same_owner && own_group {
            true => Ok(()),
            false => Err(nfsstat3::NFS3ERR_PERM),
        }
    }

    /// The mode that a file of group `gid` gets when this caller sets `mode`: without set-group-ID
    /// if the caller is not in the group (chmod(2)).
    #[must_use]
    pub fn mode(&self, gid: u32, mode: u32) -> u32 {
        match self.is_root() || self.is_in(gid) {
            true => mode & 0o7777,
            false => mode & 0o7777 & !SET_GROUP_ID,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(mode: u32, uid: u32, gid: u32) -> Attr {
        Attr {
            mode,
            uid,
            gid,
            ..Attr::default()
        }
    }

    fn user() -> Identity {
        Identity {
            uid: 7,
            gid: 70,
            groups: vec![71, 72],
        }
    }

    fn root() -> Identity {
        Identity {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
        }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        for (mode, uid, gid, permissions) in [
            (0o100_640, 7, 1, 6),
            (0o100_047, 7, 70, 0),
            (0o100_741, 1, 72, 4),
            (0o100_741, 1, 1, 1),
        ] {
            let found = user().permissions(&attr(mode, uid, gid));
            assert_eq!(found, permissions, "{mode:o} {uid}:{gid}");
        }
        assert_eq!(root().permissions(&attr(0o100_600, 7, 7)), READ | WRITE);
        assert_eq!(root().permissions(&attr(0o040_000, 7, 7)), 7);
    }

    #[test]
    fn an_owner_writes_and_reads_its_file_whatever_its_mode() {
        assert_eq!(user().check_write(&attr(0o100_444, 7, 1)), Ok(()));
        assert_eq!(user().check_read(&attr(0o100_000, 7, 1)), Ok(()));
        assert!(user().check_write(&attr(0o100_444, 1, 70)).is_err());
        assert!(user().check_read(&attr(0o100_600, 1, 1)).is_err());
        assert_eq!(user().check_read(&attr(0o100_711, 1, 1)), Ok(()));
    }

    #[test]
    fn files_of_others_cannot_be_removed_from_a_sticky_directory() {
        let sticky = attr(0o041_777, 1, 1);
        let check = |directory: &Attr, uid| user().check_remove(directory, &attr(0, uid, 1));
        assert_eq!(check(&sticky, 1), Err(nfsstat3::NFS3ERR_PERM));
        assert_eq!(check(&sticky, 7), Ok(()));
        assert_eq!(check(&attr(0o041_777, 7, 1), 1), Ok(()));
        assert_eq!(check(&attr(0o040_777, 1, 1), 1), Ok(()));
        let closed = attr(0o040_755, 1, 1);
        assert_eq!(check(&closed, 7), Err(nfsstat3::NFS3ERR_ACCES));
    }

    #[test]
    fn an_owner_gives_its_file_to_its_groups_alone() {
        let give = |uid, gid| user().check_give(&attr(0, 7, 1), uid, gid).is_ok();
        assert!(give(Some(7), Some(72)));
        assert!(!give(None, Some(2)));
        assert!(!give(Some(8), None));
        assert!(root().check_give(&attr(0, 7, 1), Some(8), Some(9)).is_ok());
        assert_eq!(user().mode(72, 0o102_755), 0o2755);
        assert_eq!(user().mode(1, 0o2755), 0o755);
    }
}
