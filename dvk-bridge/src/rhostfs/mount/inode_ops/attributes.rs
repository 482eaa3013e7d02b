//! Lookup and attributes of files.

use std::ffi::OsStr;
use std::time::SystemTime;

use rustix::io::Errno;

use super::super::attributes::{timeval, timeval_of_seconds};
use super::super::call_error::CallError;
use super::super::calls::{Calls, Target};
use super::super::nodes::ROOT;
use super::arguments::Changes;
use super::{InodeOps, Result};
use crate::abi::rhostfs::{Statfs64, UsrStat};

impl InodeOps {
    /// Looks up `name` in the directory `parent`. The caller passes the returned node to the
    /// kernel.
    pub(crate) fn look_up(&mut self, parent: u64, name: &OsStr) -> Result<(u64, UsrStat)> {
        let path = self.path_of(parent, name)?;
        match self.calls.stat(Target::Path(&path)) {
            Ok(stat) => {
                let node = self.adopt(parent, name, &stat);
                self.nodes.looked_up(node);
                Ok((node, stat))
            }
            Err(error) => {
                if error.is(Errno::NOENT) {
                    self.nodes.unbind(parent, name);
                }
                Err(error.into())
            }
        }
    }

    /// Records that the kernel forgot `times` lookups of the node.
    pub(crate) fn forget(&mut self, node: u64, times: u64) {
        self.nodes.forget(node, times);
    }

    /// The node's attributes.
    pub(crate) fn stat(&mut self, node: u64, fh: Option<u64>) -> Result<UsrStat> {
        let handles = self.calls.dialect().has_fstat();
        let stat = match fh.filter(|_| handles) {
            Some(fh) => self.with_file(fh, |calls, handle| calls.stat(Target::Handle(handle)))?,
            None => self.on_node(node, |calls, target| match target {
                Target::Handle(_) if !handles => Err(CallError::Impossible {
                    what: "the original server does not report an open file without a name",
                    errno: Errno::STALE,
                }),
                _ => calls.stat(target),
            })?,
        };
        if node != ROOT && !self.is(node, &stat) {
            // The name belongs to another file now.
            self.nodes.unbind_all(node);
            return Err(Errno::STALE);
        }
        self.note(node, &stat);
        Ok(stat)
    }

    /// Changes the node's attributes and returns the new ones. The call uses the open file if the
    /// caller has one.
    pub(crate) fn change(
        &mut self,
        node: u64,
        fh: Option<u64>,
        changes: &Changes,
    ) -> Result<UsrStat> {
        if let Some(size) = changes.size {
            // The protocol would cut a larger size silently.
            if size > self.calls.dialect().largest() {
                return Err(Errno::FBIG);
            }
            self.on_file_or_node(node, fh, |calls, target| calls.truncate(target, size))?;
            if let Some(fh) = fh {
                self.files.wrote(fh, size);
            }
        }
        if changes.uid.is_some() || changes.gid.is_some() {
            self.on_file_or_node(node, fh, |calls, target| {
                calls.chown(target, changes.uid, changes.gid)
            })?;
        }
        if let Some(mode) = changes.mode {
            self.on_file_or_node(node, fh, |calls, target| calls.chmod(target, mode & 0o7777))?;
        }
        if changes.atime.is_some() || changes.mtime.is_some() {
            self.set_times(node, fh, changes)?;
        }
        self.stat(node, fh)
    }

    /// Sets both times in one call. A time that must not change is set to its value, in the whole
    /// seconds that the server reports.
    fn set_times(&mut self, node: u64, fh: Option<u64>, changes: &Changes) -> Result<()> {
        let now = SystemTime::now();
        let (atime, mtime) = match (changes.atime, changes.mtime) {
            (Some(atime), Some(mtime)) => (timeval(atime, now), timeval(mtime, now)),
            (atime, mtime) => {
                let stat = self.stat(node, fh)?;
                let old = |seconds: zerocopy::little_endian::I64| timeval_of_seconds(seconds.get());
                (
                    atime.map_or_else(|| old(stat.atime), |time| timeval(time, now)),
                    mtime.map_or_else(|| old(stat.mtime), |time| timeval(time, now)),
                )
            }
        };
        self.on_file_or_node(node, fh, |calls, target| calls.utimes(target, atime, mtime))
    }

    /// Asks whether the server may read (4), write (2) or execute (1) the node.
    pub(crate) fn access(&mut self, node: u64, mask: i32) -> Result<()> {
        let path = self.path(node)?;
        Ok(self.calls.access(&path, mask)?)
    }

    /// The text of a symbolic link.
    pub(crate) fn read_link(&mut self, node: u64) -> Result<Vec<u8>> {
        let path = self.path(node)?;
        Ok(self.calls.read_link(&path)?)
    }

    /// The state of the node's file system.
    pub(crate) fn file_system(&mut self, node: u64) -> Result<Statfs64> {
        let path = match self.path(node) {
            Err(Errno::STALE) => b"/".to_vec(),
            path => path?,
        };
        Ok(self.calls.statfs(&path)?)
    }

    fn on_file_or_node(
        &mut self,
        node: u64,
        fh: Option<u64>,
        mut call: impl FnMut(&mut Calls, Target<'_>) -> std::result::Result<(), CallError>,
    ) -> Result<()> {
        match fh {
            Some(fh) => self.with_file(fh, |calls, handle| call(calls, Target::Handle(handle))),
            None => self.on_node(node, call),
        }
    }
}
