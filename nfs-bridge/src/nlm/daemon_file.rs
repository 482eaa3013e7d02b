//! A file with locks, at the daemon.

use std::sync::Arc;

use gangplank_driver::{FuseSession, Pending, call};
use gangplank_fuse::{FileLock, FlushIn, InitFlags, LkIn};
use rustix::io::Errno;

use super::range::{Held, LAST_BYTE, Range};
use crate::share::connection::{Connection, Node};
use crate::share::error::Result;
use crate::share::files::{Access, OpenFile};

/// A file that stays open as long as it has locks: the daemon releases them with the last handle.
#[derive(Debug, Clone)]
pub struct DaemonFile {
    session: FuseSession,
    node: Arc<Node>,
    file: Arc<OpenFile>,
    /// Whether the daemon has locks. Otherwise those of this program exclude NFS clients alone.
    has_locks: bool,
}

/// What the daemon says to a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The owner has it.
    Done,
    /// Somebody else has one in the way.
    InUse,
}

impl DaemonFile {
    /// Opens a file.
    ///
    /// # Errors
    /// The daemon's.
    pub fn open(connection: &Connection, node: &Arc<Node>) -> Result<Self> {
        let files = &connection.files;
        // The daemon locks by a descriptor of its own. The handle only has to be open.
        let file = files
            .open(node, Access::Read)
            .or_else(|_| files.open(node, Access::Write))?;
        // All waits are in the first queue, so that they take no room from the others.
        let session = connection.session.clone();
        Ok(Self {
            node: Arc::clone(node),
            file,
            has_locks: session.init().features().contains(InitFlags::POSIX_LOCKS),
            session,
        })
    }

    /// Locks a range for an owner, exclusively or not, or unlocks it. Does not wait.
    ///
    /// # Errors
    /// The daemon's.
    pub fn set(&self, owner: u64, range: Range, lock: Option<bool>) -> Result<Answer> {
        if !self.has_locks {
            return Ok(Answer::Done);
        }
        match self
            .session
            .setlk(self.node.id, self.args(owner, range, lock))
        {
            Ok(()) => Ok(Answer::Done),
            Err(error) if matches!(error.errno(), Some(Errno::AGAIN | Errno::ACCESS)) => {
                Ok(Answer::InUse)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Begins to wait for a lock. The reply comes when the owner has it.
    ///
    /// # Errors
    /// The request could not be sent.
    pub fn begin_wait(&self, owner: u64, wanted: Held) -> Result<Pending<()>> {
        let args = self.args(owner, wanted.range, Some(wanted.exclusive));
        Ok(self.session.submit(call::setlkw(self.node.id, args))?)
    }

    /// A lock of somebody else that is in the way of `wanted`.
    ///
    /// # Errors
    /// The daemon's.
    pub fn test(&self, owner: u64, wanted: Held) -> Result<Option<Held>> {
        if !self.has_locks {
            return Ok(None);
        }
        let args = self.args(owner, wanted.range, Some(wanted.exclusive));
        let found = self.session.getlk(self.node.id, args)?;
        if found.r#type == libc::F_UNLCK.cast_unsigned() {
            return Ok(None);
        }
        let length = match found.end {
            end if end >= LAST_BYTE => 0,
            end => end.saturating_sub(found.start).saturating_add(1),
        };
        Ok(Some(Held {
            range: Range::new(found.start, length).unwrap_or(wanted.range),
            exclusive: found.r#type == libc::F_WRLCK.cast_unsigned(),
        }))
    }

    /// Tells the daemon that an owner has no locks any more, so that it keeps no descriptor for it.
    pub fn forget_owner(&self, owner: u64) {
        if self.has_locks {
            let args = FlushIn {
                fh: self.file.handle.get(),
                lock_owner: owner,
                ..FlushIn::default()
            };
            // The locks were released before; a lost daemon is reported by the next request.
            let _ = self.session.flush(self.node.id, args);
        }
    }

    fn args(&self, owner: u64, range: Range, lock: Option<bool>) -> LkIn {
        let kind = match lock {
            None => libc::F_UNLCK,
            Some(false) => libc::F_RDLCK,
            Some(true) => libc::F_WRLCK,
        };
        LkIn {
            fh: self.file.handle.get(),
            owner,
            lk: FileLock {
                start: range.first(),
                end: range.last(),
                r#type: kind.cast_unsigned(),
                pid: 0,
            },
            ..LkIn::default()
        }
    }
}
