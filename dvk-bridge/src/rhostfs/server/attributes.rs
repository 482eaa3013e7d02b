//! stat, access, chmod, chown, truncate, utimes, statfs.

use std::sync::Arc;

use gangplank_driver::call;
use gangplank_fuse::{Attr, Handle, NodeId, SetattrIn, SetattrValid};
use rustix::fs::FileType;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::birth::Birth;
use super::call::{File, Name, Sizes};
use super::failure::Result;
use super::identity::Access;
use super::opened::Opened;
use super::tree::{Found, Last};
use super::wire;
use super::work::{Answer, Subject, Work};
use crate::abi::rhostfs::Utimes;

/// What changes a node's attributes.
struct Changing {
    node: NodeId,
    fh: Option<Handle>,
    attr: Attr,
    /// Whether it is open for writing: then that was allowed when it was opened.
    writable: bool,
    /// Keeps the node.
    _held: Held,
}

/// What keeps a node known to the daemon.
enum Held {
    Found(#[allow(dead_code, reason = "held, not used")] Found),
    Open(#[allow(dead_code, reason = "held, not used")] Arc<Opened>),
}

impl Work<'_> {
    pub(super) fn stat(&self, file: File, buffer: u32, sizes: Sizes) -> Result<Answer> {
        let (attr, mark) = match file {
            File::Name(name) => (self.look(name)?.attr, 0),
            File::Handle(handle) => {
                let file = self.client.handles().get(handle)?;
                let opened = file.opened(self.link)?;
                let attr = self.session.getattr(opened.id(), opened.fh())?.attr;
                (attr, file.birth().map_or(0, Birth::mark))
            }
        };
        let stat = wire::stat(&attr, mark, sizes)?;
        self.copy_to("attributes", buffer, stat.as_bytes())?;
        Ok(Answer::DONE)
    }

    /// What a client is shown under a name: what a link leads to where links are followed, and the link if that is nothing.
    fn look(&self, name: Name) -> Result<Found> {
        let path = self.path(name)?;
        let missing = match self.tree().find(&path, Last::Follow) {
            Err(failure) if self.tree().follows() && !failure.is_daemon_lost() => failure,
            found => return found,
        };
        match self.tree().find(&path, Last::Keep) {
            // So that it can be removed.
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
        self.settings.identity.check(&found.attr, wanted)?;
        Ok(Answer::DONE)
    }

    pub(super) fn chmod(&self, file: File, mode: u32) -> Result<Answer> {
        let changing = self.subject(file, Last::Follow)?;
        let identity = self.settings.identity;
        identity.check_owner(&changing.attr)?;
        let mode = identity.mode(&changing.attr, mode);
        self.set(&changing, SetattrValid::MODE, |args| {
            args.mode = mode;
        })
    }

    /// An id of -1 stays as it is.
    pub(super) fn chown(&self, file: File, uid: i32, gid: i32) -> Result<Answer> {
        let given = |id: i32| (id != -1).then_some(id.cast_unsigned());
        let (uid, gid) = (given(uid), given(gid));
        // Where links are shown as such, their owner is what is meant.
        let changing = self.subject(file, Last::Follow)?;
        self.settings
            .identity
            .check_give(&changing.attr, uid, gid)?;
        let mut valid = SetattrValid::empty();
        valid.set(SetattrValid::UID, uid.is_some());
        valid.set(SetattrValid::GID, gid.is_some());
        self.set(&changing, valid, |args| {
            args.uid = uid.unwrap_or_default();
            args.gid = gid.unwrap_or_default();
        })
    }

    /// The original client has cut the length to 32 bits, of which none is a sign.
    pub(super) fn truncate(&self, file: File, length: u64) -> Result<Answer> {
        let changing = self.subject(file, Last::Follow)?;
        match FileType::from_raw_mode(changing.attr.mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR.into()),
            _ => return Err(Errno::INVAL.into()),
        }
        if i64::try_from(length).is_err() {
            return Err(Errno::INVAL.into());
        }
        if !changing.writable {
            self.settings
                .identity
                .check(&changing.attr, Access::WRITE)?;
        }
        if let File::Handle(handle) = file {
            // What is left of the last page is written as well.
            self.client.handles().get(handle)?.wrote();
        }
        self.set(&changing, SetattrValid::SIZE, |args| {
            args.size = length;
        })
    }

    pub(super) fn utimes(&self, file: File, times: u32) -> Result<Answer> {
        let times: Utimes = self.value("times", times)?;
        let [accessed, modified] = wire::times(&times)?;
        // "No link following": the name of a link means the link, unless the client is not to see any.
        let changing = self.subject(file, Last::Follow)?;
        self.settings.identity.check_owner(&changing.attr)?;
        self.set(
            &changing,
            SetattrValid::ATIME | SetattrValid::MTIME,
            |args| {
                (args.atime, args.atimensec) = (accessed.0.cast_unsigned(), accessed.1);
                (args.mtime, args.mtimensec) = (modified.0.cast_unsigned(), modified.1);
            },
        )
    }

    pub(super) fn statfs(&self, name: Name, buffer: u32) -> Result<Answer> {
        let path = self.path(name)?;
        let found = self.tree().find(&path, Last::Follow)?;
        let st = self.session.statfs(found.id())?;
        self.copy_to(
            "a file system's figures",
            buffer,
            wire::statfs(&st).as_bytes(),
        )?;
        Ok(Answer::DONE)
    }

    fn set(
        &self,
        changing: &Changing,
        valid: SetattrValid,
        fill: impl FnOnce(&mut SetattrIn),
    ) -> Result<Answer> {
        let mut args = SetattrIn::default();
        fill(&mut args);
        let mut valid = valid;
        if let Some(fh) = changing.fh {
            valid |= SetattrValid::FH;
            args.fh = fh.get();
        }
        args.valid = valid.bits();
        self.session.call(call::setattr(changing.node, args))?;
        Ok(Answer::DONE)
    }

    /// What is to be changed or shown, with its attributes as they are now.
    fn subject(&self, file: File, last: Last) -> Result<Changing> {
        match self.file(file, last)? {
            Subject::Found(found) => Ok(Changing {
                node: found.id(),
                fh: None,
                attr: found.attr,
                writable: false,
                _held: Held::Found(found),
            }),
            Subject::Open(file) => {
                let opened = file.opened(self.link)?;
                let fh = opened.fh();
                let attr = self.session.getattr(opened.id(), fh)?.attr;
                Ok(Changing {
                    node: opened.id(),
                    // The client sets sizes by handles that only read, too.
                    fh: fh.filter(|_| file.writes()),
                    attr,
                    writable: file.writes(),
                    _held: Held::Open(opened),
                })
            }
        }
    }
}
