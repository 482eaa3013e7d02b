//! The files and directories that a guest has open.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gangplank_fuse::{Handle, NodeId};
use parking_lot::{RwLock, RwLockWriteGuard};

use super::budget::{Budget, Descriptor, Permit, PermitFor};
use super::errno::bad_handle;
use super::open_file::{OpenFile, flags_of, packed};
use crate::state::arena::Arena;
use crate::state::descriptors::{Descriptors, Kind, Owner};
use crate::state::files::FileRecord;
use crate::state::foreign_ids::ForeignIds;
use crate::state::migration;
use crate::state::requests;
use crate::state::slab::{Full, Key, Slab};
use crate::state::table::{Changing, Marked};
use crate::sys::{file, process};

/// An open file whose descriptor is lost.
#[derive(Debug)]
pub(super) struct LostFile {
    key: Key,
    /// The node.
    pub(super) node: u64,
    /// The flags of open(2) to open it with.
    pub(super) flags: i32,
}

/// All open files of one guest.
#[derive(Debug)]
pub(super) struct OpenFiles {
    table: RwLock<Table>,
    descriptors: Descriptors,
    budget: Arc<Budget>,
    /// The handles that another daemon has chosen.
    foreign_ids: ForeignIds,
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
            foreign_ids: ForeignIds::new(arena.foreign_handles()),
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

    /// Forgets the descriptors that are lost. The table must be whole.
    pub(super) fn forget_lost(arena: &Arc<Arena>, is_lost: impl Fn(RawFd) -> bool) {
        let (mark, records, used) = arena.files();
        let table = Table::new(mark, records, used);
        let descriptors = Descriptors::new(arena);
        for (_, record) in table.iter_from(0) {
            if let Some(number) = record.descriptor.get().filter(|number| is_lost(*number)) {
                record.flags.fetch_and(!packed::HELD, Ordering::Relaxed);
                record.flags.fetch_or(packed::TO_REOPEN, Ordering::Release);
                descriptors.disown(number);
                record.descriptor.set(None);
            }
        }
    }

    /// The descriptors that are held outside of the daemon.
    pub(super) fn held(arena: &Arc<Arena>) -> Vec<RawFd> {
        let (mark, records, used) = arena.files();
        let table = Table::new(mark, records, used);
        let is_held =
            |record: &FileRecord| record.flags.load(Ordering::Relaxed) & packed::HELD != 0;
        let held = table.iter_from(0).filter(|(_, record)| is_held(record));
        held.filter_map(|(_, record)| record.descriptor.get())
            .collect()
    }

    /// The files whose descriptors are lost.
    pub(super) fn lost(&self) -> Vec<LostFile> {
        let table = self.table.read();
        let is_lost =
            |record: &FileRecord| record.flags.load(Ordering::Relaxed) & packed::TO_REOPEN != 0;
        let lost = table.iter_from(0).filter(|(_, record)| is_lost(record));
        lost.map(|(key, record)| LostFile {
            key,
            node: record.node.load(Ordering::Relaxed),
            flags: flags_of(record),
        })
        .collect()
    }

    /// The file was opened again. Without `opened`, it could not be, and each access gives EBADF.
    pub(super) fn restore(&self, lost: &LostFile, opened: Option<OwnedFd>) {
        let mut table = self.write();
        let Some(record) = table.get(lost.key) else {
            return;
        };
        let Some(opened) = opened else {
            let (flags, mount) = (packed::LOST, lost.flags.cast_unsigned());
            record.mount.store(mount, Ordering::Relaxed);
            record.flags.store(flags, Ordering::Release);
            return;
        };
        let number = opened.as_raw_fd();
        // The budget counts it since this worker began.
        let permit = Permit::of_counted(&self.budget, PermitFor::File);
        let file = OpenFile::from_record(record, Descriptor::new(opened, permit));
        let owner = Owner::new(Kind::File, lost.key.index());
        self.descriptors.own(number, owner);
        record.descriptor.set(Some(number));
        record
            .flags
            .fetch_and(!packed::TO_REOPEN, Ordering::Release);
        if let Some(held) = table.held_mut(lost.key) {
            *held = Some(Arc::new(file));
        }
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
        let descriptor = file.descriptor().as_fd().as_raw_fd();
        let mount = file.mount_or_flags();
        let mut table = self.write();
        let key = table.insert(Arc::new(file), |record, key| {
            record.node.store(node.get(), Ordering::Relaxed);
            record.descriptor.set(Some(descriptor));
            record.flags.store(flags, Ordering::Relaxed);
            record.mount.store(mount, Ordering::Relaxed);
            record.foreign_id.store(0, Ordering::Relaxed);
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
        let key = self.key_of(handle)?;
        let table = self.table.read();
        if let Some(file) = table.held(key) {
            let file = Some(file).filter(|file| file.node == node);
            return file.cloned().ok_or_else(bad_handle);
        }
        drop(table);
        self.adopt(key, node)
    }

    /// The key that a handle of the guest stands for.
    fn key_of(&self, handle: Handle) -> io::Result<Key> {
        let own = self.foreign_ids.own(handle.get());
        own.and_then(Key::from_raw).ok_or_else(bad_handle)
    }

    /// The handle by which the guest knows a file.
    fn handle_of(&self, key: Key, record: &FileRecord) -> Handle {
        let foreign = self
            .foreign_ids
            .id_at(record.foreign_id.load(Ordering::Relaxed));
        Handle::new(foreign.unwrap_or(key.raw()))
    }

    /// Whether the file could not be opened when the guest arrived.
    fn is_lost(&self, key: Key, node: NodeId) -> bool {
        let table = self.table.read();
        table.get(key).is_some_and(|record| {
            record.node.load(Ordering::Relaxed) == node.get()
                && record.flags.load(Ordering::Relaxed) & packed::LOST != 0
        })
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
        // A lost file has none.
        let number = record.descriptor.get().ok_or_else(bad_handle)?;
        let opened = process::adopt(number)?;
        // The budget counts it since this worker began.
        let permit = Permit::of_counted(&self.budget, PermitFor::File);
        let descriptor = Descriptor::new(opened, permit);
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
        let key = self.key_of(handle)?;
        let file = match self.get(handle, node) {
            Err(error) if self.is_lost(key, node) => {
                self.write().remove(key);
                return Err(error);
            }
            file => file?,
        };
        let mut table = self.write();
        // Another thread may have removed it meanwhile.
        if table.get(key).is_none() {
            return Err(bad_handle());
        }
        let number = file.as_fd().as_raw_fd();
        self.descriptors.disown(number);
        let flags = table
            .get(key)
            .map(|record| record.flags.load(Ordering::Relaxed));
        let is_held = flags.is_some_and(|flags| flags & packed::HELD != 0);
        table.remove(key);
        table.trim();
        drop(table);
        if is_held && let Some(holder) = self.descriptors.holder() {
            holder.release(&[number]);
        }
        Ok(file)
    }

    /// The node of a handle.
    pub(super) fn node_of(&self, handle: Handle) -> Option<NodeId> {
        let table = self.table.read();
        let record = table.get(self.key_of(handle).ok()?)?;
        Some(NodeId::new(record.node.load(Ordering::Relaxed)))
    }

    /// A descriptor of any open file on a node. Scans the whole table.
    pub(super) fn any_of(&self, node: NodeId) -> Option<Arc<Descriptor>> {
        let table = self.table.read();
        let mut files = table.iter_from(0);
        let is_on_node = |record: &FileRecord| record.node.load(Ordering::Relaxed) == node.get();
        let (key, record) = files.find(|(_, record)| is_on_node(record))?;
        let handle = self.handle_of(key, record);
        drop(files);
        drop(table);
        let file = self.get(handle, node).ok()?;
        Some(Arc::clone(file.descriptor()))
    }

    /// Closes all files.
    pub(super) fn clear(&self) {
        let table = self.table.read();
        let files = table.iter_from(0).map(|(key, record)| {
            let node = NodeId::new(record.node.load(Ordering::Relaxed));
            (self.handle_of(key, record), node)
        });
        let files: Vec<_> = files.collect();
        drop(table);
        for (handle, node) in files {
            // Closed without the lock, because close may block.
            drop(self.remove(handle, node));
        }
        self.foreign_ids.clear();
    }

    /// The open files as another daemon needs to know them.
    pub(super) fn known(&self) -> Vec<migration::Handle> {
        let table = self.table.read();
        let known = table.iter_from(0).map(|(key, record)| {
            let is_lost = record.flags.load(Ordering::Relaxed) & packed::LOST != 0;
            let to_try_again = record.mount.load(Ordering::Relaxed).cast_signed();
            let node = NodeId::new(record.node.load(Ordering::Relaxed));
            let handle = self.handle_of(key, record);
            (handle, node, is_lost.then_some(to_try_again))
        });
        let known: Vec<_> = known.collect();
        drop(table);
        let flags_of = |handle, node| -> io::Result<i32> {
            let file = self.get(handle, node)?;
            // Without the flag that the daemon adds.
            Ok(file::flags_of(file.as_fd())? & !libc::O_NONBLOCK)
        };
        let known = known
            .into_iter()
            .filter_map(|(handle, node, to_try_again)| {
                Some(migration::Handle {
                    id: handle.get(),
                    inode: node.get(),
                    flags: to_try_again.or_else(|| flags_of(handle, node).ok())?,
                })
            });
        known.collect()
    }

    /// Notes whether a file has a lock by flock(2). The file is held from its first lock on.
    pub(super) fn note_flock(&self, handle: Handle, is_locked: bool) {
        if is_locked && let Some(holder) = self.descriptors.holder() {
            let number = {
                let table = self.table.read();
                let record = self.key_of(handle).ok().and_then(|key| table.get(key));
                record.and_then(|record| {
                    let before = record.flags.fetch_or(packed::HELD, Ordering::Relaxed);
                    let is_new = before & packed::HELD == 0;
                    is_new.then(|| record.descriptor.get())?
                })
            };
            if let Some(number) = number {
                holder.hold(&[number]);
            }
        }
        let table = self.table.read();
        let record = self.key_of(handle).ok().and_then(|key| table.get(key));
        if let Some(record) = record {
            match is_locked {
                true => record.flags.fetch_or(packed::FLOCK, Ordering::Relaxed),
                false => record.flags.fetch_and(!packed::FLOCK, Ordering::Relaxed),
            };
        }
    }

    /// Number of files that have a lock by flock(2).
    pub(super) fn flocks(&self) -> usize {
        let table = self.table.read();
        let flags = table
            .iter_from(0)
            .map(|(_, record)| record.flags.load(Ordering::Relaxed));
        flags.filter(|flags| flags & packed::FLOCK != 0).count()
    }

    /// A number above all handles that the guest has had.
    pub(super) fn next_handle(&self) -> u64 {
        self.table.read().next_raw().max(self.foreign_ids.limit())
    }

    /// Prepares the empty table for `count` files with handles below `limit`.
    ///
    /// # Errors
    /// There is no room for as many, or no handle above `limit`.
    pub(super) fn begin_arrival(&self, limit: u64, count: usize) -> Result<(), Full> {
        if !self.foreign_ids.begin(count) {
            return Err(Full);
        }
        self.write().begin_above(limit)?;
        self.foreign_ids.set_limit(limit);
        Ok(())
    }

    /// Adds a file of an arriving guest. Without `file`, each access gives EBADF.
    ///
    /// # Errors
    /// ENFILE if the table is full.
    pub(super) fn arrive(
        &self,
        arriving: migration::Handle,
        file: Option<OpenFile>,
    ) -> io::Result<()> {
        let (flags, mount) = match &file {
            Some(file) => (file.pack(), file.mount_or_flags()),
            None => (packed::LOST, arriving.flags.cast_unsigned()),
        };
        let descriptor = file.as_ref().map(|file| file.as_fd().as_raw_fd());
        let mut table = self.write();
        let key = table.insert(file.map(Arc::new), |record, key| {
            record.node.store(arriving.inode, Ordering::Relaxed);
            record.descriptor.set(descriptor);
            record.flags.store(flags, Ordering::Relaxed);
            record.mount.store(mount, Ordering::Relaxed);
            let place = self.foreign_ids.add(arriving.id, key.raw()).unwrap_or(0);
            record.foreign_id.store(place, Ordering::Relaxed);
        })?;
        if let Some(descriptor) = descriptor {
            let owner = Owner::new(Kind::File, key.index());
            self.descriptors.own(descriptor, owner);
        }
        Ok(())
    }

    /// Number of open files.
    pub(super) fn len(&self) -> usize {
        self.table.read().len()
    }
}
