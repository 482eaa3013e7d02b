//! Files and directories that the guest uses without opening them.
//!
//! Where nothing can be changed and the guest believes what it has cached (`--readonly`, `--cache=always`), OPEN and OPENDIR have
//! nothing to say that it does not know. They are answered with ENOSYS, which its kernel takes for all of the mount: it asks for
//! content right away, by handle 0, and sends no RELEASE and, told so once, no FLUSH. What it asks about is opened here then.

use std::io;
use std::sync::Arc;

use gangplank_fuse::{Handle, InitFlags, NodeId};

use super::fs::PassthroughFs;
use super::inodes::Kind;
use super::open_files::{OpenFile, bad_handle};
use super::open_flags::OpenRequest;
use super::options::{CachePolicy, Locks, Options};

/// The handle of what was not opened. No open file has it.
const UNOPENED: u64 = 0;

/// What a guest's kernel says that can do without OPEN and OPENDIR.
pub(super) const UNOPENED_FLAGS: InitFlags =
    InitFlags::NO_OPEN_SUPPORT.union(InitFlags::NO_OPENDIR_SUPPORT);

/// Whether a guest may use files without opening them. Locks of the host are of what is open.
pub(super) fn need_no_opening(options: &Options) -> bool {
    options.readonly && options.cache == CachePolicy::Always && options.locks != Locks::Host
}

impl PassthroughFs {
    /// ENOSYS where the guest need not open anything.
    pub(super) fn refuse_needless_opening(&self) -> io::Result<()> {
        match self.session.has(UNOPENED_FLAGS) {
            true => Err(io::Error::from_raw_os_error(libc::ENOSYS)),
            false => Ok(()),
        }
    }

    /// What the guest reads from: the open file of `handle`, or what it has not opened.
    ///
    /// # Errors
    /// EBADF for a handle that the guest does not have, or has of another node; those of opening.
    pub(super) fn readable(&self, handle: u64, id: NodeId) -> io::Result<Arc<OpenFile>> {
        if handle == UNOPENED && self.session.has(UNOPENED_FLAGS) {
            return self.open_unasked(id).map(Arc::new);
        }
        self.files.get(Handle::new(handle), id)
    }

    /// Keeps what [`PassthroughFs::readable`] has opened for the next read.
    pub(super) fn done_reading(&self, handle: u64, file: &OpenFile) {
        if handle == UNOPENED {
            self.keep_closed(file);
        }
    }

    fn open_unasked(&self, id: NodeId) -> io::Result<OpenFile> {
        let node = self.node(id)?;
        match node.kind {
            Kind::Regular => {
                let request = OpenRequest::READING;
                let place = self.share.place(node.identity.place)?;
                let descriptor = self.descriptor_of(&node, request, false)?;
                Ok(OpenFile::file(id, descriptor, request, &place))
            }
            Kind::Directory => self.directory_of(&node),
            _ => Err(bad_handle()),
        }
    }
}
