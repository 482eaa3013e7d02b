//! Files and directories that the guest uses without opening them.
//!
//! Where nothing can be changed and the guest believes what it has cached (`--readonly`, `--cache=always`), OPEN and OPENDIR have
//! nothing to say that it does not know. They are answered with ENOSYS, which its kernel takes for all of the mount: it asks for
//! content right away, by handle 0, and sends no RELEASE and, told so once, no FLUSH. What it asks about is opened here then.

use std::io;
use std::sync::Arc;

use gangplank_fuse::{Handle, InitFlags, NodeId};

use super::fs::PassthroughFs;
use super::inode_table::FileType;
use super::open_files::{OpenFile, bad_handle};
use super::open_flags::OpenFlags;
use super::options::{CachePolicy, Locks, Options};

/// The handle of what was not opened. No open file has it.
const NO_OPEN_HANDLE: u64 = 0;

/// What a guest's kernel says that can do without OPEN and OPENDIR.
pub(super) const NO_OPEN_FLAGS: InitFlags =
    InitFlags::NO_OPEN_SUPPORT.union(InitFlags::NO_OPENDIR_SUPPORT);

/// Whether a guest may use files without opening them. Locks of the host are of what is open.
pub(super) fn allows_no_open(options: &Options) -> bool {
    options.readonly && options.cache == CachePolicy::Always && options.locks != Locks::Host
}

impl PassthroughFs {
    /// ENOSYS where the guest need not open anything.
    pub(super) fn check_open_needed(&self) -> io::Result<()> {
        match self.negotiated.has(NO_OPEN_FLAGS) {
            true => Err(io::Error::from_raw_os_error(libc::ENOSYS)),
            false => Ok(()),
        }
    }

    /// What the guest reads from: the open file of `handle`, or what it has not opened.
    ///
    /// # Errors
    /// EBADF for a handle that the guest does not have, or has of another node; those of opening.
    pub(super) fn file_to_read(&self, handle: u64, id: NodeId) -> io::Result<Arc<OpenFile>> {
        if handle == NO_OPEN_HANDLE && self.negotiated.has(NO_OPEN_FLAGS) {
            return self.open_for_request(id).map(Arc::new);
        }
        self.files.get(Handle::new(handle), id)
    }

    /// Keeps what [`PassthroughFs::file_to_read`] has opened for the next read.
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
