//! Which record each open descriptor belongs to.
//!
//! The keeper and all workers of a guest share one descriptor table, so a descriptor outlives the
//! worker that opened it. The next worker finds the descriptors that belong to the guest's state in
//! the records, and closes all others: what the dead worker had open for a moment.
//!
//! A descriptor's owner is stored after the record that has its number, and cleared before that
//! record forgets the number, both while the record's table is marked as changing. After a death,
//! the owners of marked tables are corrected by their records.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::arena::{Arena, Header, Part};
use super::change::Place;
use super::slab::{CAPACITY, Record, Slab};
use crate::holder::client::Holder;
use crate::sys::process;
use crate::sys::shared_memory::shared_struct;

/// Number of bits of an owner that are for its kind.
const KIND_SHIFT: u32 = 28;

/// The record to which a descriptor belongs: its kind, and its number among those of the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner(u32);

shared_struct! {
    /// The number of a record's descriptor, or none.
    #[derive(Debug, Default)]
    pub struct DescriptorNumber {
        /// The number plus one; 0 if there is none.
        plus_one: AtomicU32,
    }
}

impl DescriptorNumber {
    /// The number.
    pub fn get(&self) -> Option<RawFd> {
        let number = self.plus_one.load(Ordering::Acquire).checked_sub(1)?;
        RawFd::try_from(number).ok()
    }

    /// Stores another number, or that there is none.
    pub fn set(&self, descriptor: Option<RawFd>) {
        let number = descriptor.and_then(|descriptor| u32::try_from(descriptor).ok());
        self.plus_one.set(number.map_or(0, |number| number + 1));
    }
}

/// A record of a table that has a descriptor.
pub trait HasDescriptor: Record {
    /// The kind of owner that the record is.
    const KIND: Kind;

    /// The descriptor's number.
    fn descriptor(&self) -> &DescriptorNumber;
}

/// The kinds of owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// An inode: shard and index.
    Inode = 1,
    /// An open file or directory.
    File = 2,
    /// A lock.
    Lock = 3,
    /// A mount that is open for SYNCFS: its index.
    Syncfs = 4,
    /// A mount whose file handles are in use.
    Mount = 5,
    /// What stays open as long as the guest has its processes, or until somebody disowns it.
    Process = 15,
}

impl Owner {
    /// What stays open as long as the guest has its processes.
    pub const PROCESS: Self = Self((Kind::Process as u32) << KIND_SHIFT);

    /// The record with a number of less than 28 bits.
    pub fn new(kind: Kind, number: u32) -> Self {
        Self((kind as u32) << KIND_SHIFT | number & ((1 << KIND_SHIFT) - 1))
    }

    /// The record's number, if it is of this kind.
    pub fn number(self, kind: Kind) -> Option<u32> {
        (self.0 >> KIND_SHIFT == kind as u32).then_some(self.0 & ((1 << KIND_SHIFT) - 1))
    }
}

/// The owners of a guest's descriptors.
#[derive(Debug, Clone)]
pub struct Descriptors {
    header: Part<Header>,
    owners: Part<AtomicU32>,
    holder: Option<Arc<Holder>>,
}

impl Descriptors {
    /// Those in an arena.
    pub fn new(arena: &Arena) -> Self {
        Self {
            owners: arena.descriptor_owners(),
            header: arena.header_part(),
            holder: arena.holder().cloned(),
        }
    }

    /// What holds descriptors outside of the daemon.
    pub fn holder(&self) -> Option<&Holder> {
        self.holder.as_deref()
    }

    /// Notes the owner of a descriptor that is held as long as it has one, if there is a holder.
    pub fn own_held(&self, descriptor: RawFd, owner: Owner) {
        if let Some(holder) = &self.holder {
            holder.hold(&[descriptor]);
        }
        self.own(descriptor, owner);
    }

    /// The descriptor of [`Descriptors::own_held`] will be closed.
    pub fn disown_held(&self, descriptor: RawFd) {
        self.disown(descriptor);
        if let Some(holder) = &self.holder {
            holder.release(&[descriptor]);
        }
    }

    /// Notes the owner of a descriptor.
    pub fn own(&self, descriptor: RawFd, owner: Owner) {
        let Ok(number) = u32::try_from(descriptor) else {
            return;
        };
        if let Some(place) = self.owners.get(number as usize) {
            let end = &self.header[0].descriptors_end;
            if end.load(Ordering::Relaxed) <= number {
                end.fetch_max(number + 1, Ordering::Relaxed);
            }
            place.set(owner.0);
        }
    }

    /// The descriptor belongs to nobody: it will be closed.
    pub fn disown(&self, descriptor: RawFd) {
        let place = usize::try_from(descriptor);
        if let Some(place) = place.ok().and_then(|number| self.owners.get(number)) {
            place.set(0);
        }
    }

    /// Disowns each descriptor whose owner is of this kind and whose record, by its number, does
    /// not have the descriptor.
    pub fn correct(&self, kind: Kind, has: impl Fn(u32, RawFd) -> bool) {
        for (number, place) in self.known().iter().enumerate() {
            let owner = Owner(place.load(Ordering::Relaxed)).number(kind);
            let descriptor = RawFd::try_from(number).unwrap_or(RawFd::MAX);
            if owner.is_some_and(|owner| !has(owner, descriptor)) {
                place.set(0);
            }
        }
    }

    /// Makes the owners of a table's descriptors right by its records. `first` is the number among
    /// the owners of their kind that the table's index 0 has. Returns the number of descriptors.
    pub fn correct_by<R: HasDescriptor, H>(&self, records: &Slab<R, H>, first: u32) -> u64 {
        let mut count = 0;
        for (key, record) in records.iter_from(0) {
            if let Some(descriptor) = record.descriptor().get() {
                self.own(descriptor, Owner::new(R::KIND, first + key.index()));
                count += 1;
            }
        }
        self.correct(R::KIND, |number, descriptor| {
            let Some(index) = number.checked_sub(first) else {
                return true;
            };
            let record = records.at(index).map(|(_, record)| record);
            index as usize >= CAPACITY
                || record.is_some_and(|record| record.descriptor().get() == Some(descriptor))
        });
        count
    }

    /// Closes all open descriptors without an owner. No other thread may run.
    ///
    /// One system call for each gap between numbers with owners: the kernel hands out the lowest
    /// free number, so there are few.
    ///
    /// # Errors
    /// Those of close_range(2).
    pub fn close_unowned(&self) -> io::Result<()> {
        let known = self.known();
        let mut first = 0;
        for (number, place) in known.iter().enumerate() {
            if place.load(Ordering::Relaxed) != 0 {
                close(first, number)?;
                first = number + 1;
            }
        }
        close(first, usize::MAX)
    }

    /// The owner of a descriptor, if it has one.
    #[cfg(test)]
    pub(crate) fn owner(&self, descriptor: RawFd) -> Option<Owner> {
        let number = usize::try_from(descriptor).ok()?;
        let owner = self.owners.get(number)?.load(Ordering::Relaxed);
        (owner != 0).then_some(Owner(owner))
    }

    /// The descriptors that ever had an owner, by number.
    fn known(&self) -> &[AtomicU32] {
        let end = self.header[0].descriptors_end.load(Ordering::Relaxed) as usize;
        &self.owners[..end.min(self.owners.len())]
    }
}

/// Closes the descriptors `first..end`.
fn close(first: usize, end: usize) -> io::Result<()> {
    if first >= end {
        return Ok(());
    }
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    process::close_range(number(first), number(end - 1))
}
