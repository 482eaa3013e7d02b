//! Finding an inode by name, and making it known.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use gangplank_fuse::{EntryOut, NodeId};

use super::budget::{Descriptor, Permit};
use super::fs::{Node, PassthroughFs};
use super::inodes::{Found, Kind};
use super::places::{Identity, PlaceIndex};
use crate::session::Name;
use crate::sys::file::{self, Statx};

impl PassthroughFs {
    /// Looks a name up; one system call for an inode that the guest has already, and for a name that does not exist, and
    /// one more for an inode whose handle has to be compared.
    pub(super) fn do_lookup(&self, parent: NodeId, name: Name<'_>) -> io::Result<EntryOut> {
        let parent = self.directory(parent)?;
        match self.look_up_in(&parent, name.as_c_str()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => self.no_entry(),
            result => result,
        }
    }

    /// Looks a name up in a directory at hand.
    pub(super) fn look_up_in(&self, parent: &Node, name: &CStr) -> io::Result<EntryOut> {
        let stat = file::stat_at(parent.as_fd(), name)?;
        if let Some(place) = self.share.places.find(&stat, parent.identity.place) {
            let identity = Identity {
                place,
                ino: stat.stx_ino,
            };
            let found = match self.inodes.look_up(identity) {
                Found::Same(id) => Some(id),
                Found::Perhaps => {
                    let dir = parent.as_fd();
                    let evidence = self.share.evidence_at(place, dir, name, &stat);
                    self.inodes.confirm(identity, &evidence)
                }
                Found::New => None,
            };
            if let Some(id) = found {
                return Ok(self.entry(id, parent.identity.place, place, &stat));
            }
        }
        self.look_up_new(parent, name)
    }

    /// Looks up a name whose inode the guest does not have, as far as can be known.
    pub(super) fn look_up_new(&self, parent: &Node, name: &CStr) -> io::Result<EntryOut> {
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
        let id = self.inodes.insert(identity, kind, &descriptor, evidence)?;
        Ok(self.entry(id, parent, place, stat))
    }
}
