//! What the records of one table have in common.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence};

use super::change::Place;
use crate::sys::shared_memory::shared_struct;

shared_struct! {
    /// The beginning of a table of records.
    #[derive(Debug, Default)]
    pub struct TableRecord {
        /// 1 while a thread changes the table.
        changing: AtomicU32,
        /// Number of chunks of records that were ever used.
        pub chunks: AtomicU32,
        /// Records that were ever added: the generation of the last key.
        pub made: AtomicU64,
        /// Binary logarithm of the index's capacity; 0 if there is no index.
        pub index_bits: AtomicU32,
        /// Places of the index that are not empty, removed entries included.
        pub index_used: AtomicU32,
        /// Descriptors that belong to records.
        pub descriptors: AtomicU64,
        /// Bytes that the references of the records take in addition to those of each inode.
        pub extra_bytes: AtomicU64,
        /// Number of records, for whoever looks from outside.
        pub records: AtomicU64,
        reserved: [AtomicU64; 2],
    }
}

const _: () = assert!(size_of::<TableRecord>() == 64);

impl TableRecord {
    /// Whether a worker died while it changed the table.
    pub fn is_changing(&self) -> bool {
        self.changing.load(Ordering::Acquire) != 0
    }

    /// The calling thread begins to change the table.
    pub fn begin_change(&self) {
        self.changing.set(1);
        // Before all changes. A thread is killed between two instructions, and what it stored
        // before is there, so that only the compiler must keep the order.
        compiler_fence(Ordering::SeqCst);
    }

    /// The table is whole again.
    pub fn end_change(&self) {
        self.changing.set(0);
    }
}

/// What a worker has of a table, together with the mark in the arena.
pub trait Marked {
    /// The beginning of the table.
    fn mark(&self) -> &TableRecord;
}

/// A table that is locked for changes, by the guard `G`, and marked as changing in the arena.
#[derive(Debug)]
pub struct Changing<G: Deref<Target: Marked>>(G);

impl<G: Deref<Target: Marked>> Changing<G> {
    /// Marks the table.
    pub fn new(locked: G) -> Self {
        locked.mark().begin_change();
        Self(locked)
    }
}

impl<G: Deref<Target: Marked>> Deref for Changing<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.0
    }
}

impl<G: DerefMut<Target: Marked>> DerefMut for Changing<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.0
    }
}

impl<G: Deref<Target: Marked>> Drop for Changing<G> {
    fn drop(&mut self) {
        // After a panic in the middle of a change, the next worker corrects the table.
        if !std::thread::panicking() {
            self.0.mark().end_change();
        }
    }
}

/// Logs that memory was not given back. It stays in use, and nothing else follows.
pub(super) fn log_failure(given_back: io::Result<()>) {
    if let Err(error) = given_back {
        log::debug!("cannot give memory of a guest's state back: {error}");
    }
}
