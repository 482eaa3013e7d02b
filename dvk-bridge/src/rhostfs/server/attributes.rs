//! stat, access, chmod, chown, truncate, utimes, statfs.

use std::sync::Arc;

use gangplank_driver::call;
use gangplank_fuse::{Attr, Handle, NodeId, SetattrIn, SetattrValid};
use rustix::fs::FileType;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::backend_file::BackendFile;
use super::call::{File, Name, Sizes};
use super::credentials::Access;
use super::failure::Result;
use super::file_identity::BirthTime;
use super::request_context::{Answer, CallTarget, RequestContext};
use super::resolver::{Found, Last};
use super::wire;
use crate::abi::rhostfs::Utimes;

/// A node whose attributes a call changes or shows.
struct AttrTarget {
    node: NodeId,
    fh: Option<Handle>,
    attr: Attr,
    /// Whether it is open for writing. The permission was checked when it was opened.
    writable: bool,
    /// Keeps the node known to the daemon.
    _node_ref: NodeRef,
}

/// A reference that keeps a node known to the daemon.
enum NodeRef {
    Found(#[allow(dead_code, reason = "held, not used")] Found),
    Open(#[allow(dead_code, reason = "held, not used")] Arc<BackendFile>),
}

impl RequestContext<'_> {
    pub(super) fn stat(&self, file: File, buffer: u32, sizes: Sizes) -> Result<Answer> {
        let (attr, mark) = match file {
            File::Name(name) => (self.look(name)?.attr, 0),
            File::Handle(handle) => {
                let file = self.client.handles().get(handle)?;
                let backend_file = file.backend_file(self.backend)?;
                let attr = self
                    .session
                    .getattr(backend_file.id(), backend_file.fh())?
                    .attr;
                (attr, file.birth_time().map_or(0, BirthTime::mark))
            }
        };
        let stat = wire::stat(&attr, mark, sizes)?;
        self.copy_to("attributes", buffer, stat.as_bytes())?;
        Ok(Answer::DONE)
    }

    /// The file that a client sees under a name: the target of a link where links are followed, and
    /// the link itself if it has no target.
    fn look(&self, name: Name) -> Result<Found> {
        let path = self.path(name)?;
        let missing = match self.resolver().find(&path, Last::Follow) {
            Err(failure) if self.resolver().follows() && !failure.is_daemon_lost() => failure,
            found => return found,
        };
        match self.resolver().find(&path, Last::Keep) {
            // The client must be able to remove a dangling link.
            Ok(link) if link.kind() == FileType::Symlink => Ok(link),
            _ => Err(missing),
        }
    }

    pub(super) fn access(&self, name: Name, mask: u32) -> Result<Answer> {
        let wanted = Access::from_bits(mask)?;
        let found = self.look(name)?;
        if self.settings.read_only && wanted.writes() {
            return Err(Errno::ROFS.into());
        }
        self.settings.credentials.check(&found.attr, wanted)?;
        Ok(Answer::DONE)
    }

    pub(super) fn chmod(&self, file: File, mode: u32) -> Result<Answer> {
        let target = self.subject(file, Last::Follow)?;
        let credentials = self.settings.credentials;
        credentials.check_owner(&target.attr)?;
        let mode = credentials.mode(&target.attr, mode);
        self.set(&target, SetattrValid::MODE, |args| {
            args.mode = mode;
        })
    }

    /// An id of -1 leaves the owner or group unchanged.
    pub(super) fn chown(&self, file: File, uid: i32, gid: i32) -> Result<Answer> {
        let given = |id: i32| (id != -1).then_some(id.cast_unsigned());
        let (uid, gid) = (given(uid), given(gid));
        // Where links are shown as links, the call changes the link's owner.
        let target = self.subject(file, Last::Follow)?;
        self.settings
            .credentials
            .check_give(&target.attr, uid, gid)?;
        let mut valid = SetattrValid::empty();
        valid.set(SetattrValid::UID, uid.is_some());
        valid.set(SetattrValid::GID, gid.is_some());
        self.set(&target, valid, |args| {
            args.uid = uid.unwrap_or_default();
            args.gid = gid.unwrap_or_default();
        })
    }

    /// The original client has cut the length to 32 bits without a sign.
    pub(super) fn truncate(&self, file: File, length: u64) -> Result<Answer> {
        let target = self.subject(file, Last::Follow)?;
        match FileType::from_raw_mode(target.attr.mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR.into()),
            _ => return Err(Errno::INVAL.into()),
        }
        if i64::try_from(length).is_err() {
            return Err(Errno::INVAL.into());
        }
        if !target.writable {
            self.settings
                .credentials
                .check(&target.attr, Access::WRITE)?;
        }
        if let File::Handle(handle) = file {
            // The kernel also writes the rest of the last page.
            self.client.handles().get(handle)?.wrote();
        }
        self.set(&target, SetattrValid::SIZE, |args| {
            args.size = length;
        })
    }

    pub(super) fn utimes(&self, file: File, times: u32) -> Result<Answer> {
        let times: Utimes = self.value("times", times)?;
        let [accessed, modified] = wire::times(&times)?;
        // Where links are shown as links, the call changes the link's times.
        let target = self.subject(file, Last::Follow)?;
        self.settings.credentials.check_owner(&target.attr)?;
        self.set(&target, SetattrValid::ATIME | SetattrValid::MTIME, |args| {
            (args.atime, args.atimensec) = (accessed.0.cast_unsigned(), accessed.1);
            (args.mtime, args.mtimensec) = (modified.0.cast_unsigned(), modified.1);
        })
    }

    pub(super) fn statfs(&self, name: Name, buffer: u32) -> Result<Answer> {
        let path = self.path(name)?;
        let found = self.resolver().find(&path, Last::Follow)?;
        let st = self.session.statfs(found.id())?;
        self.copy_to(
            "the file system's statistics",
            buffer,
            wire::statfs(&st).as_bytes(),
        )?;
        Ok(Answer::DONE)
    }

    fn set(
        &self,
        target: &AttrTarget,
        valid: SetattrValid,
        fill: impl FnOnce(&mut SetattrIn),
    ) -> Result<Answer> {
        let mut args = SetattrIn::default();
        fill(&mut args);
        let mut valid = valid;
        if let Some(fh) = target.fh {
            valid |= SetattrValid::FH;
            args.fh = fh.get();
        }
        args.valid = valid.bits();
        self.session.call(call::setattr(target.node, args))?;
        Ok(Answer::DONE)
    }

    /// The target of a call, with its current attributes.
    fn subject(&self, file: File, last: Last) -> Result<AttrTarget> {
        match self.file(file, last)? {
            CallTarget::Found(found) => Ok(AttrTarget {
                node: found.id(),
                fh: None,
                attr: found.attr,
                writable: false,
                _node_ref: NodeRef::Found(found),
            }),
            CallTarget::Open(file) => {
                let backend_file = file.backend_file(self.backend)?;
                let fh = backend_file.fh();
                let attr = self.session.getattr(backend_file.id(), fh)?.attr;
                Ok(AttrTarget {
                    node: backend_file.id(),
                    // The client sets sizes through read-only handles as well.
                    fh: fh.filter(|_| file.writes()),
                    attr,
                    writable: file.writes(),
                    _node_ref: NodeRef::Open(backend_file),
                })
            }
        }
    }
}
