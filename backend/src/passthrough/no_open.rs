//! Files and directories that the guest uses without OPEN (`FUSE_NO_OPEN_SUPPORT`).
//!
//! With `--readonly` and `--cache=always` a reply to OPEN or OPENDIR has no information for the
//! guest. They are answered with ENOSYS, which the guest's kernel applies to the whole mount: it
//! reads with handle 0 and sends no RELEASE, and no FLUSH after the first ENOSYS. The daemon opens
//! the file when it serves the read.

use std::io;
use std::sync::Arc;

use gangplank_fuse::{Handle, InitFlags, NodeId};

use super::errno::bad_handle;
use super::file_type::FileType;
use super::fs::PassthroughFs;
use super::open_file::OpenFile;
use super::open_flags::OpenFlags;
use super::options::{CachePolicy, Locks, Options};
use crate::session::not_offered;

/// The handle that the guest sends for a file it has not opened. No open file has it.
const NO_OPEN_HANDLE: u64 = 0;

/// The flags of a kernel that works without OPEN and OPENDIR.
pub(super) const NO_OPEN_FLAGS: InitFlags =
    InitFlags::NO_OPEN_SUPPORT.union(InitFlags::NO_OPENDIR_SUPPORT);

/// Whether the options allow a guest to work without OPEN. Host locks need open files.
pub(super) fn allows_no_open(options: &Options) -> bool {
    options.readonly && options.cache == CachePolicy::Always && options.locks != Locks::Host
}

impl PassthroughFs {
    /// Returns [`not_offered`] if the guest works without OPEN.
    ///
    /// # Errors
    /// [`not_offered`].
    pub(super) fn check_open_needed(&self) -> io::Result<()> {
        match self.state.negotiated.has(NO_OPEN_FLAGS) {
            true => Err(not_offered()),
            false => Ok(()),
        }
    }

    /// The file to read from: the open file of `handle`, or a newly opened one in no-open mode.
    ///
    /// # Errors
    /// EBADF for an unknown handle or a handle of another node; those of opening.
    pub(super) fn file_to_read(&self, handle: u64, id: NodeId) -> io::Result<Arc<OpenFile>> {
        if handle == NO_OPEN_HANDLE && self.state.negotiated.has(NO_OPEN_FLAGS) {
            return self.open_for_request(id).map(Arc::new);
        }
        self.state.files.get(Handle::new(handle), id)
    }

    /// Caches the descriptor that [`PassthroughFs::file_to_read`] opened, for the next read.
    pub(super) fn end_read(&self, handle: u64, file: &OpenFile) {
        if handle == NO_OPEN_HANDLE {
            self.cache_fd(file);
        }
    }

    fn open_for_request(&self, id: NodeId) -> io::Result<OpenFile> {
        let node = self.node(id)?;
        match node.file_type {
            FileType::Regular => {
                let flags = OpenFlags::READ_ONLY;
                let mount = self.share.mount(node.identity.mount)?;
                let descriptor = self.open_descriptor(&node, flags, false)?;
                Ok(OpenFile::file(id, descriptor, flags, &mount))
            }
            FileType::Directory => self.open_directory(&node),
            _ => Err(bad_handle()),
        }
    }
}
