//! One request in progress: its client, its connection to the daemon, and access to the client's
//! memory.

use gangplank_driver::FuseSession;
use log::debug;
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::backend::Backend;
use super::call::{Call, File, Name};
use super::client::{Client, Clients};
use super::failure::{Failure, Result};
use super::handle::OpenFile;
use super::path::{PATH_MAX, Path};
use super::resolver::{Found, Last, Resolver};
use super::settings::Settings;
use crate::abi::{M1, Message};
use crate::endpoint::{BoundEndpoint, RequestId};

/// A request in progress.
pub(super) struct RequestContext<'a> {
    pub(super) settings: &'a Settings,
    pub(super) endpoint: &'a dyn BoundEndpoint,
    pub(super) clients: &'a Clients,
    pub(super) client: &'a Client,
    /// The id of the request.
    pub(super) request: RequestId,
    pub(super) backend: &'a Backend,
    /// The session on the queue for this client's requests.
    pub(super) session: FuseSession,
}

/// The answer to a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// A result.
    Result(i32),
    /// Success, and the number of an open directory.
    DirHandle(u32),
    /// Success, and whether there was an entry.
    Entry(bool),
}

impl Answer {
    /// Success without further data.
    pub(super) const DONE: Self = Self::Result(0);

    /// The message of the answer: `request` with the result, and with the data of some calls.
    pub(super) fn to(self, request: &Message) -> Message {
        let mut m1: M1 = request.arm();
        match self {
            Self::Result(result) => return request.answer(result),
            Self::DirHandle(number) => m1.p2 = number,
            Self::Entry(there) => m1.p3 = there.into(),
        }
        let mut answer = request.answer(0);
        answer.set_arm(&m1);
        answer
    }
}

impl RequestContext<'_> {
    /// Runs `call`.
    pub(super) fn run(&self, call: &Call) -> Result<Answer> {
        if self.settings.read_only && call.changes() {
            return Err(Errno::ROFS.into());
        }
        match *call {
            Call::Open { name, flags, mode } => self.open(name, flags, mode),
            Call::Close { handle } => self.close(handle),
            Call::Dup2 { old, new } => self.dup2(old, new),
            Call::Sync { handle, data_only } => self.sync(handle, data_only),
            Call::Stat {
                file,
                buffer,
                sizes,
            } => self.stat(file, buffer, sizes),
            Call::Access { name, mask } => self.access(name, mask),
            Call::Chmod { file, mode } => self.chmod(file, mode),
            Call::Chown { file, uid, gid } => self.chown(file, uid, gid),
            Call::Truncate { file, length } => self.truncate(file, length),
            Call::Utimes { file, times } => self.utimes(file, times),
            Call::Statfs { name, buffer } => self.statfs(name, buffer),
            Call::Pread {
                handle,
                count,
                position,
                buffer,
            } => self.pread(handle, count, position, buffer),
            Call::Pwrite {
                handle,
                count,
                position,
                buffer,
            } => self.pwrite(handle, count, position, buffer),
            Call::Link { old, new } => self.link(old, new),
            Call::Unlink { name } => self.unlink(name),
            Call::Mknod { name, mode, device } => self.mknod(name, mode, device),
            Call::Mkdir { name, mode } => self.mkdir(name, mode),
            Call::Rmdir { name } => self.rmdir(name),
            Call::Symlink { target, link } => self.symlink(target, link),
            Call::Readlink { name, size, buffer } => self.readlink(name, size, buffer),
            Call::Rename { old, new, flags } => self.rename(old, new, flags),
            Call::Opendir { name } => self.opendir(name),
            Call::Seekdir { dir_handle, cookie } => self.seekdir(dir_handle, cookie),
            Call::Readdir { dir_handle, buffer } => self.readdir(dir_handle, buffer),
            Call::Closedir { dir_handle } => self.closedir(dir_handle),
            Call::RootPath { buffer } => self.root_path(buffer),
        }
    }

    pub(super) const fn resolver(&self) -> &Resolver {
        &self.backend.resolver
    }

    /// Reads a path name from the client's memory.
    pub(super) fn path(&self, name: Name) -> Result<Path> {
        let bytes = self.text(name, "a name")?;
        let path = Path::parse(&bytes)?;
        debug!("client {}: {path:?}", self.client.endpoint);
        Ok(path)
    }

    /// Reads a text with its NUL from the client's memory.
    ///
    /// # Errors
    ///
    /// ENAMETOOLONG or EINVAL for a length that no path name has.
    pub(super) fn text(&self, name: Name, what: &'static str) -> Result<Vec<u8>> {
        let len = match usize::try_from(name.len) {
            Ok(len @ 1..=PATH_MAX) => len,
            Ok(0) | Err(_) => return Err(Errno::INVAL.into()),
            Ok(_) => return Err(Errno::NAMETOOLONG.into()),
        };
        let mut bytes = vec![0; len];
        self.copy_from(what, name.address, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a structure from the client's memory.
    pub(super) fn value<T: FromBytes + IntoBytes>(
        &self,
        what: &'static str,
        address: u32,
    ) -> Result<T> {
        let mut value = T::new_zeroed();
        self.copy_from(what, address, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Copies from the client's memory.
    pub(super) fn copy_from(
        &self,
        what: &'static str,
        address: u32,
        into: &mut [u8],
    ) -> Result<()> {
        self.check_wanted()?;
        let copied = self.endpoint.copy_from(self.request, address, into);
        copied.map_err(|source| Failure::Copy {
            what,
            direction: "from",
            source,
        })
    }

    /// Copies to the client's memory.
    pub(super) fn copy_to(&self, what: &'static str, address: u32, from: &[u8]) -> Result<()> {
        self.check_wanted()?;
        let copied = self.endpoint.copy_to(self.request, address, from);
        copied.map_err(|source| Failure::Copy {
            what,
            direction: "to",
            source,
        })
    }

    /// The memory of a client that has gone may belong to another process by now.
    fn check_wanted(&self) -> Result<()> {
        if self.client.is_gone() {
            Err(Failure::ClientGone)
        } else {
            Ok(())
        }
    }

    /// The file of a name, or the open file of a handle.
    pub(super) fn file(&self, file: File, last: Last) -> Result<CallTarget> {
        match file {
            File::Name(name) => {
                let path = self.path(name)?;
                Ok(CallTarget::Found(self.resolver().find(&path, last)?))
            }
            File::Handle(handle) => {
                let file = self.client.handles().get(handle)?;
                Ok(CallTarget::Open(file))
            }
        }
    }
}

/// The file of a call.
pub(super) enum CallTarget {
    Found(Found),
    Open(std::sync::Arc<OpenFile>),
}
