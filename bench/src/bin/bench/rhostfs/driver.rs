//! Access by the driver that the rhostfs server uses: virtio-fs without a guest.

use std::ffi::CStr;
use std::path::Path;

use anyhow::Result;
use gangplank_driver::{Driver, FuseSession, InitOptions, Options};
use gangplank_fuse::{Handle, NodeId, OpenIn};

use super::{FileAccess, whole};

/// A file, by its node and handle.
pub(super) struct Driven {
    session: FuseSession,
    node: NodeId,
    handle: Handle,
}

impl Driven {
    /// Opens `name` in the share of the daemon at `socket`.
    pub(super) fn open(socket: &Path, name: &CStr) -> Result<Self> {
        let session =
            Driver::connect(socket, &Options::default())?.session(&InitOptions::default())?;
        let entry = session.lookup(NodeId::ROOT, name)?;
        let node = NodeId::new(entry.nodeid);
        let args = OpenIn {
            flags: rustix::fs::OFlags::RDWR.bits(),
            ..OpenIn::default()
        };
        let handle = Handle::new(session.open(node, args)?.fh);
        Ok(Self {
            session,
            node,
            handle,
        })
    }
}

impl FileAccess for Driven {
    fn look(&mut self) -> Result<()> {
        self.session.getattr(self.node, None)?;
        Ok(())
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<()> {
        let size = u32::try_from(into.len())?;
        let data = self.session.read(self.node, self.handle, at, size)?;
        whole(data.bytes().copy_to(into), into.len())
    }

    fn write(&mut self, at: u64, from: &[u8]) -> Result<()> {
        let written = self.session.write(self.node, self.handle, at, from)?;
        whole(usize::try_from(written)?, from.len())
    }
}
