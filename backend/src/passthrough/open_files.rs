//! The files and directories that a guest has open.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gangplank_fuse::{Handle, NodeId};
use parking_lot::{RwLock, RwLockWriteGuard};

use super::budget::{Budget, Descriptor, Permit, PermitFor};
use super::dir_stream::DirStream;
use super::errno::bad_handle;
use super::mounts::{Mount, MountIndex};
use super::open_flags::OpenFlags;
use crate::state::arena::Arena;
use crate::state::descriptors::{Descriptors, Kind, Owner};
use crate::state::files::FileRecord;
use crate::state::requests;
use crate::state::slab::{Key, Slab};
use crate::state::table::{Changing, Marked};
use crate::sys::process;

/// One open file or directory.
#[derive(Debug)]
pub(super) struct OpenFile {
    /// The node that is open.
    pub(super) node: NodeId,
    descriptor: Arc<Descriptor>,
    /// Whether the descriptor is open for writing.
    pub(super) writable: bool,
    /// Whether transfers bypass the page cache; cleared when direct I/O fails.
    pub(super) direct: AtomicBool,
    /// Whether `RWF_NOWAIT` works on this file; cleared when it fails.
    pub(super) supports_nowait: AtomicBool,
    /// Whether a short read ends at the end of the file or before an error.
    pub(super) short_read_is_final: bool,
    /// Whether close can report an error that no other call reports.
    pub(super) close_reports_errors: bool,
    /// Whether the descriptor may be cached after the close.
    pub(super) cacheable: bool,
    /// For a directory: how far it is listed.
    pub(super) dir_stream: Option<Box<DirStream>>,
}

impl OpenFile {
    /// A regular file that is not in a table yet.
    pub(super) fn file(
        node: NodeId,
        descriptor: Arc<Descriptor>,
        flags: OpenFlags,
        mount: &Mount,
    ) -> Self {
        Self {
            node,
            descriptor,
            writable: flags.write,
            direct: AtomicBool::new(flags.direct),
            supports_nowait: AtomicBool::new(true),
            short_read_is_final: mount.short_read_is_final(),
            close_reports_errors: mount.close_reports_errors(),
            cacheable: flags.is_read_only()
                && mount.short_read_is_final()
                && !mount.close_reports_errors(),
            dir_stream: None,
        }
    }

    /// A directory that is not in a table yet.
    pub(super) fn directory(node: NodeId, descriptor: Descriptor, dir_stream: DirStream) -> Self {
        Self {
            node,
            descriptor: Arc::new(descriptor),
            writable: false,
            direct: AtomicBool::new(false),
            supports_nowait: AtomicBool::new(false),
            short_read_is_final: true,
            close_reports_errors: false,
            cacheable: false,
            dir_stream: Some(Box::new(dir_stream)),
        }
    }

    /// The file's descriptor.
    pub(super) fn descriptor(&self) -> &Arc<Descriptor> {
        &self.descriptor
    }

    /// Whether transfers bypass the page cache.
    pub(super) fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The properties of an open file as one number.
mod packed {
    pub(super) const WRITABLE: u32 = 1;
    pub(super) const DIRECT: u32 = 1 << 1;
    pub(super) const SHORT_READ_IS_FINAL: u32 = 1 << 2;
    pub(super) const CLOSE_REPORTS_ERRORS: u32 = 1 << 3;
    pub(super) const CACHEABLE: u32 = 1 << 4;
    pub(super) const DIRECTORY: u32 = 1 << 5;
}

impl OpenFile {
    fn pack(&self) -> u32 {
        [
            (self.writable, packed::WRITABLE),
            (self.is_direct(), packed::DIRECT),
            (self.short_read_is_final, packed::SHORT_READ_IS_FINAL),
            (self.close_reports_errors, packed::CLOSE_REPORTS_ERRORS),
            (self.cacheable, packed::CACHEABLE),
            (self.dir_stream.is_some(), packed::DIRECTORY),
        ]
        .into_iter()
        .fold(
            0,
            |flags, (has, flag)| if has { flags | flag } else { flags },
        )
    }

    /// The file of a record that an earlier worker made.
    fn from_record(record: &FileRecord, descriptor: Descriptor) -> Self {
        let flags = record.flags.load(Ordering::Relaxed);
        let mount = MountIndex(record.mount.load(Ordering::Relaxed));
        let has = |flag| flags & flag != 0;
        Self {
            node: NodeId::new(record.node.load(Ordering::Relaxed)),
            descriptor: Arc::new(descriptor),
            writable: has(packed::WRITABLE),
            direct: AtomicBool::new(has(packed::DIRECT)),
            supports_nowait: AtomicBool::new(!has(packed::DIRECTORY)),
            short_read_is_final: has(packed::SHORT_READ_IS_FINAL),
            close_reports_errors: has(packed::CLOSE_REPORTS_ERRORS),
            cacheable: has(packed::CACHEABLE),
            dir_stream: has(packed::DIRECTORY).then(|| Box::new(DirStream::resumed(mount))),
        }
    }
}

/// All open files of one guest.
#[derive(Debug)]
pub(super) struct OpenFiles {
    table: RwLock<Table>,
    descriptors: Descriptors,
    budget: Arc<Budget>,
}

type Table = Slab<FileRecord, Arc<OpenFile>>;

impl OpenFiles {
    /// The table that is in an arena. It must be whole: see [`OpenFiles::correct`].
    pub(super) fn new(arena: &Arc<Arena>, budget: &Arc<Budget>) -> Self {
        let (mark, records, used) = arena.files();
        Self {
            table: RwLock::new(Slab::new(mark, records, used)),
            descriptors: Descriptors::new(arena),
            budget: Arc::clone(budget),
        }
    }

    /// Makes the table whole if a worker left it half changed when it died. The records are right.
    pub(super) fn correct(arena: &Arc<Arena>) {
        let (mark, records, used) = arena.files();
        if !mark[0].is_changing() {
            return;
        }
        let table = Table::new(mark, records, used);
        Descriptors::new(arena).correct_by(&table, 0);
        table.mark().end_change();
    }

    fn write(&self) -> Changing<RwLockWriteGuard<'_, Table>> {
        Changing::new(self.table.write())
    }

    /// Adds an open file.
    ///
    /// # Errors
    /// ENFILE if the table is full.
    pub(super) fn insert(&self, file: OpenFile) -> io::Result<Handle> {
        let (node, flags) = (file.node, file.pack());
        let descriptor = file.descriptor.as_fd().as_raw_fd();
        let mount = file.dir_stream.as_ref().map_or(0, |stream| stream.mount.0);
        let mut table = self.write();
        let key = table.insert(Arc::new(file), |record, key| {
            record.node.store(node.get(), Ordering::Relaxed);
            record.descriptor.set(Some(descriptor));
            record.flags.store(flags, Ordering::Relaxed);
            record.mount.store(mount, Ordering::Relaxed);
            // Before the file is in the table, so that whoever runs the request again finds it.
            requests::note_auxiliary(key.raw());
        })?;
        let owner = Owner::new(Kind::File, key.index());
        self.descriptors.own(descriptor, owner);
        Ok(Handle::new(key.raw()))
    }

    /// The open file of a handle on `node`.
    ///
    /// # Errors
    /// EBADF for an unknown handle or a handle of another node.
    pub(super) fn get(&self, handle: Handle, node: NodeId) -> io::Result<Arc<OpenFile>> {
        let key = Key::from_raw(handle.get()).ok_or_else(bad_handle)?;
        let table = self.table.read();
        if let Some(file) = table.held(key) {
            let file = Some(file).filter(|file| file.node == node);
            return file.cloned().ok_or_else(bad_handle);
        }
        drop(table);
        self.adopt(key, node)
    }

    /// Takes over a file that an earlier worker opened.
    fn adopt(&self, key: Key, node: NodeId) -> io::Result<Arc<OpenFile>> {
        let mut table = self.write();
        let record = table.get(key).ok_or_else(bad_handle)?;
        if record.node.load(Ordering::Relaxed) != node.get() {
            return Err(bad_handle());
        }
        if let Some(file) = table.held(key) {
            return Ok(Arc::clone(file));
        }
        // The budget counts it since this worker began.
        let permit = Permit::of_counted(&self.budget, PermitFor::File);
        let number = record.descriptor.get().ok_or_else(bad_handle)?;
        let descriptor = Descriptor::new(process::adopt(number)?, permit);
        let file = Arc::new(OpenFile::from_record(record, descriptor));
        if let Some(held) = table.held_mut(key) {
            *held = Some(Arc::clone(&file));
        }
        Ok(file)
    }

    /// Removes the open file of a handle on `node`.
    ///
    /// # Errors
    /// EBADF for an unknown handle or a handle of another node.
    pub(super) fn remove(&self, handle: Handle, node: NodeId) -> io::Result<Arc<OpenFile>> {
        let file = self.get(handle, node)?;
        let key = Key::from_raw(handle.get()).ok_or_else(bad_handle)?;
        let mut table = self.write();
        // Another thread may have removed it meanwhile.
        if table.get(key).is_none() {
            return Err(bad_handle());
        }
        self.descriptors.disown(file.as_fd().as_raw_fd());
        table.remove(key);
        table.trim();
        Ok(file)
    }

    /// The node of a handle.
    pub(super) fn node_of(&self, handle: Handle) -> Option<NodeId> {
        let table = self.table.read();
        let record = table.get(Key::from_raw(handle.get())?)?;
        Some(NodeId::new(record.node.load(Ordering::Relaxed)))
    }

    /// A descriptor of any open file on a node. Scans the whole table.
    pub(super) fn any_of(&self, node: NodeId) -> Option<Arc<Descriptor>> {
        let table = self.table.read();
        let mut files = table.iter_from(0);
        let is_on_node = |record: &FileRecord| record.node.load(Ordering::Relaxed) == node.get();
        let (key, _) = files.find(|(_, record)| is_on_node(record))?;
        drop(files);
        drop(table);
        let file = self.get(Handle::new(key.raw()), node).ok()?;
        Some(Arc::clone(&file.descriptor))
    }

    /// Closes all files.
    pub(super) fn clear(&self) {
        let table = self.table.read();
        let files = table.iter_from(0).map(|(key, record)| {
            let node = NodeId::new(record.node.load(Ordering::Relaxed));
            (Handle::new(key.raw()), node)
        });
        let files: Vec<_> = files.collect();
        drop(table);
        for (handle, node) in files {
            // Closed without the lock, because close may block.
            drop(self.remove(handle, node));
        }
    }

    /// Number of open files.
    pub(super) fn len(&self) -> usize {
        self.table.read().len()
    }
}
