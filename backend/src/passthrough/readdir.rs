//! OPENDIR, READDIR, READDIRPLUS and RELEASEDIR.
//!
//! The daemon reads many entries from the host at a time. Entries that do not fit the reply are
//! kept with the handle for the next request. A limited number of a guest's open directories may
//! keep such entries; the others are read again from the host.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;

use gangplank_fuse::dir::DirentWriter;
use gangplank_fuse::{EntryOut, FopenFlags, Handle, NodeId, OpenIn, OpenOut, ReadIn, ReleaseIn};

use super::dir_stream::Emit;
use super::errno::bad_handle;
use super::fs::{Node, PassthroughFs};
use super::options::CachePolicy;
use crate::session::file_system::{Directories, Files};
use crate::session::{Name, events};

impl Directories for PassthroughFs {
    fn releasedir(&self, id: NodeId, args: &ReleaseIn) -> io::Result<()> {
        self.release(id, args)
    }

    fn fsyncdir(&self, id: NodeId, handle: Handle, data_only: bool) -> io::Result<()> {
        self.fsync(id, handle, data_only)
    }

    /// Opens a directory.
    fn opendir(&self, id: NodeId, args: &OpenIn) -> io::Result<OpenOut> {
        self.state.guest_arch.detect(args.flags);
        let node = self.directory(id)?;
        self.check_open_needed()?;
        let file = self.open_directory(&node)?;
        let mut open_flags = FopenFlags::empty();
        if matches!(
            self.share.options.cache,
            CachePolicy::Metadata | CachePolicy::Always
        ) {
            open_flags |= FopenFlags::CACHE_DIR | FopenFlags::KEEP_CACHE;
        }
        self.insert_open_file(file, open_flags)
    }

    /// Lists names and types.
    fn readdir(&self, id: NodeId, args: &ReadIn, entries: &mut DirentWriter<'_>) -> io::Result<()> {
        let file = self.file_to_read(args.fh, id)?;
        let dir_stream = file.dir_stream.as_deref().ok_or_else(bad_handle)?;
        dir_stream.list(
            file.as_fd(),
            &self.state.pending_listings,
            args.offset,
            |entry| {
                if self.is_hidden(id, entry.name) {
                    return Emit::Done;
                }
                let number = self.guest_ino(entry.ino, dir_stream.mount);
                let name = entry.name.to_bytes();
                match entries.push(
                    number,
                    entry.cookie,
                    self.listed_kind(entry.kind).into(),
                    name,
                ) {
                    Ok(()) => Emit::Done,
                    Err(_) => Emit::Full,
                }
            },
        )
    }

    /// Lists names and looks up each.
    fn readdirplus(
        &self,
        id: NodeId,
        args: &ReadIn,
        entries: &mut DirentWriter<'_>,
    ) -> io::Result<()> {
        let file = self.file_to_read(args.fh, id)?;
        let dir_stream = file.dir_stream.as_deref().ok_or_else(bad_handle)?;
        let parent = self.directory(id)?;
        dir_stream.list(
            file.as_fd(),
            &self.state.pending_listings,
            args.offset,
            |entry| {
                if self.is_hidden(id, entry.name) {
                    return Emit::Done;
                }
                let name = entry.name.to_bytes();
                // Checked before the lookup, which would have to be undone.
                if !entries.fits_plus(name.len()) {
                    return Emit::Full;
                }
                let found = self.look_up_listed(&parent, entry.name);
                let number = match found.nodeid {
                    0 => self.guest_ino(entry.ino, dir_stream.mount),
                    _ => found.attr.ino,
                };
                match entries.push_plus(
                    &found,
                    number,
                    entry.cookie,
                    self.listed_kind(entry.kind).into(),
                    name,
                ) {
                    Ok(()) => Emit::Done,
                    Err(_) => {
                        self.state.inodes.forget(NodeId::new(found.nodeid), 1);
                        Emit::Full
                    }
                }
            },
        )
    }
}

impl PassthroughFs {
    /// The type of a name that is listed with type `kind` on the host.
    fn listed_kind(&self, kind: u8) -> u8 {
        match kind {
            libc::DT_REG if self.maps_ownership() => libc::DT_UNKNOWN,
            kind => kind,
        }
    }

    /// Whether guests have something else by this name.
    fn is_hidden(&self, directory: NodeId, name: &CStr) -> bool {
        self.share.options.events
            && directory == NodeId::ROOT
            && name.to_bytes() == events::node::DIRECTORY_NAME
    }

    /// Looks up a listed name. An entry with node id 0 (`.`, `..`, or a failed lookup) is looked up
    /// by the guest itself.
    fn look_up_listed(&self, parent: &Node, name: &CStr) -> EntryOut {
        // The guest sees the error when it looks up the name itself.
        Name::new(name)
            .ok()
            .and_then(|name| self.look_up_in(parent, name.as_c_str()).ok())
            .unwrap_or_default()
    }
}
