//! Finding an inode by name, and making it known.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use gangplank_fuse::{EntryOut, NodeId};

use super::budget::{Descriptor, Permit};
use super::fs::{Node, PassthroughFs};
use super::inodes::{Came, Found, Kind};
use super::places::{Identity, PlaceIndex};
use crate::session::Name;
use crate::sys::file::{self, Statx};

impl PassthroughFs {
    /// Looks a name up; one system call for an inode that the guest has already, and for a name that does not exist, and
    /// one more for an inode whose handle has to be compared. Two for an inode that the guest does not have, where that was
    /// to be expected.
    pub(super) fn do_lookup(&self, parent: NodeId, name: Name<'_>) -> io::Result<EntryOut> {
        let parent = self.directory(parent)?;
        match self.look_up_in(&parent, name.as_c_str()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => self.no_entry(),
            result => result,
        }
    }

    /// Looks a name up in a directory at hand.
    pub(super) fn look_up_in(&self, parent: &Node, name: &CStr) -> io::Result<EntryOut> {
        // With no descriptor left for another inode, one that is known has to be found all the same.
        if self.expectation.is_new()
            && self.may_hold_inode()
            && let Ok(permit) = self.permit_inode()
        {
            let found = self.look_up_with(permit, parent, name);
            if found.is_err() {
                self.expectation.failed();
            }
            return found;
        }
        let stat = file::stat_at(parent.as_fd(), name)?;
        if let Some(place) = self.share.places.find(&stat, parent.identity.place) {
            let identity = Identity {
                place,
                ino: stat.stx_ino,
            };
            let found = match self.inodes.look_up(identity, stat.stx_size) {
                Found::Same(id) => Some(id),
                Found::Perhaps => {
                    let dir = parent.as_fd();
                    let evidence = self.share.evidence_at(place, dir, name, &stat);
                    self.inodes.confirm(identity, stat.stx_size, &evidence)
                }
                Found::New => None,
            };
            if let Some(id) = found {
                self.expectation.was(Came::Known);
                return Ok(self.entry(id, parent.identity.place, place, &stat));
            }
        }
        self.look_up_with(self.permit_inode()?, parent, name)
    }

    /// Looks up a name whose inode the guest does not have, with the right to hold it.
    pub(super) fn look_up_with(
        &self,
        permit: Permit,
        parent: &Node,
        name: &CStr,
    ) -> io::Result<EntryOut> {
        let file = self.share.open(|| file::open_path(parent.as_fd(), name))?;
        // The name may have come to mean something else meanwhile: what was opened decides.
        let stat = file::stat(file.as_fd())?;
        self.insert(parent.identity.place, file, permit, &stat)
    }

    /// Makes an inode known by an `O_PATH` descriptor, or counts one look-up more where it is.
    pub(super) fn insert(
        &self,
        parent: PlaceIndex,
        file: OwnedFd,
        permit: Permit,
        stat: &Statx,
    ) -> io::Result<EntryOut> {
        let place = self.share.place_of_new(stat, file.as_fd())?;
        let kind = Kind::from_mode(u32::from(stat.stx_mode));
        let identity = Identity {
            place,
            ino: stat.stx_ino,
        };
        let descriptor = Arc::new(Descriptor::new(file, permit));
        let evidence = || self.share.evidence(place, descriptor.as_fd(), stat);
        let (id, came) =
            self.inodes
                .insert(identity, kind, stat.stx_size, &descriptor, evidence)?;
        self.expectation.was(came);
        if place != parent && came == Came::New && kind == Kind::Directory {
            // A guest that is not told of mounts syncs this one with the share's root.
            if let Ok(mount) = self.node(id) {
                self.prepare_syncfs_of(&mount);
            }
        }
        Ok(self.entry(id, parent, place, stat))
    }
}

/// Whether the next look-up is expected to come upon an inode that the guest does not have.
///
/// An inode that the guest has is found by one look at the name, which is in vain for one that it does not have: that has to
/// be opened, and opening it first tells all that the look would. Guests look up what they have (to see whether it is still
/// there) or what they do not have (walking through a tree) many times in a row.
#[derive(Debug, Default)]
pub(super) struct Expectation {
    /// New ones in a row.
    new: AtomicU8,
}

impl Expectation {
    /// So many have to be new before the next is expected to be.
    const ENOUGH: u8 = 2;

    fn is_new(&self) -> bool {
        self.new.load(Ordering::Relaxed) >= Self::ENOUGH
    }

    /// There was no inode. Opening what is not there costs most of all.
    fn failed(&self) {
        self.was(Came::Known);
    }

    fn was(&self, came: Came) {
        let new = match came {
            Came::New => (self.new.load(Ordering::Relaxed) + 1).min(Self::ENOUGH),
            Came::Known => 0,
        };
        // Several threads at once may get it wrong, at the price of a system call.
        self.new.store(new, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_row_of_new_inodes_lets_expect_another() {
        let expectation = Expectation::default();
        for came in [Came::New, Came::Known, Came::New] {
            expectation.was(came);
            assert!(!expectation.is_new());
        }
        for _ in 0..1000 {
            expectation.was(Came::New);
            assert!(expectation.is_new());
        }
        expectation.was(Came::Known);
        assert!(!expectation.is_new());
    }
}
