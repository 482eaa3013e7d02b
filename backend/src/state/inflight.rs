//! The requests in flight as the frontend keeps them for the daemon that comes after this one
//! (vhost-user, "Inflight I/O tracking", split virtqueues).
//!
//! A worker that dies leaves more in the arena ([`super::requests`]), which is then what counts.
//! This memory matters once the arena is gone as well. For each ring it has a head and one entry
//! for each descriptor:
//!
//! - Taking a chain sets its entry's counter, which says the order, and then the mark.
//! - Returning a chain stores its head as the last one, then writes the used ring, then clears the
//!   mark, then stores the used ring's index. So if that index differs from the used ring's, the
//!   last chain has been returned, whatever its mark says.
//!
//! The frontend may change the memory at any time. It gives the file, and must not be able to
//! shorten it: the file is sealed.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use crate::sys::shared_memory::{SharedMemory, SharedSlice, shared_struct};

/// The version of the layout.
const VERSION: u16 = 1;

shared_struct! {
    /// `struct QueueRegionSplit` without its entries.
    #[derive(Debug)]
    struct Head {
        /// None are defined.
        features: AtomicU64,
        /// 0 until a daemon has used the memory.
        version: AtomicU16,
        /// Number of entries.
        entries: AtomicU16,
        /// The head of the chain that was returned last, or is about to be.
        last: AtomicU16,
        /// The used ring's index when the last chain was returned.
        used: AtomicU16,
    }
}

shared_struct! {
    /// `struct DescStateSplit`.
    #[derive(Debug)]
    struct Entry {
        /// 1 while a chain with this head is in flight.
        mark: AtomicU8,
        padding: [AtomicU8; 5],
        /// Of chains that are returned together; each is returned alone here.
        next: AtomicU16,
        /// Chains that were taken before.
        counter: AtomicU64,
    }
}

/// The memory of one device.
#[derive(Clone, Debug)]
pub struct InflightMemory {
    memory: Arc<SharedMemory>,
    rings: u16,
    ring_size: u16,
}

/// The part of one ring.
#[derive(Debug)]
pub struct InflightRing {
    head: SharedSlice<Head>,
    entries: SharedSlice<Entry>,
    /// Chains taken so far.
    counter: AtomicU64,
}

impl InflightMemory {
    /// Bytes for this number of rings of this size.
    pub fn len(rings: u16, ring_size: u16) -> usize {
        usize::from(rings) * ring_len(ring_size)
    }

    /// A new file for this number of rings of this size.
    ///
    /// # Errors
    /// Those of memfd_create(2), ftruncate(2) and fcntl(2).
    pub fn create(rings: u16, ring_size: u16) -> io::Result<OwnedFd> {
        SharedMemory::sealed_file("gangplank-inflight", Self::len(rings, ring_size))
    }

    /// Maps a frontend's file from the byte `offset` on.
    ///
    /// # Errors
    /// The file is too short, may become so, or cannot be mapped.
    pub fn map(file: BorrowedFd<'_>, offset: u64, rings: u16, ring_size: u16) -> io::Result<Self> {
        let memory = SharedMemory::of_sealed_file(file, offset, Self::len(rings, ring_size))?;
        Ok(Self {
            memory: Arc::new(memory),
            rings,
            ring_size,
        })
    }

    /// The part of ring number `index`; `None` if there is none.
    pub fn ring(&self, index: usize) -> Option<Arc<InflightRing>> {
        if index >= usize::from(self.rings) {
            return None;
        }
        let offset = index * ring_len(self.ring_size);
        let count = usize::from(self.ring_size);
        Some(Arc::new(InflightRing {
            head: SharedSlice::new(&self.memory, offset, 1),
            entries: SharedSlice::new(&self.memory, offset + size_of::<Head>(), count),
            counter: AtomicU64::new(0),
        }))
    }

    /// How many chains are marked, one more at most for each ring than are in flight. `None` if no
    /// daemon has used the memory.
    pub fn marked(&self) -> Option<usize> {
        let rings = (0..usize::from(self.rings)).filter_map(|index| self.ring(index));
        let used: Vec<_> = rings.filter(|ring| ring.is_used()).collect();
        let marked = used.iter().map(|ring| ring.marked().len()).sum();
        (!used.is_empty()).then_some(marked)
    }
}

impl InflightRing {
    /// The chain with this head was taken.
    pub fn take(&self, head: u16) {
        if let Some(entry) = self.entries.get(usize::from(head)) {
            let counter = self.counter.fetch_add(1, Ordering::Relaxed);
            entry.counter.store(counter, Ordering::Relaxed);
            entry.mark.store(1, Ordering::Release);
        }
    }

    /// The chain with this head is about to be returned.
    pub fn begin_return(&self, head: u16) {
        self.head[0].last.store(head, Ordering::Release);
    }

    /// The chain with this head was returned, and the used ring's index is `used` since.
    pub fn end_return(&self, head: u16, used: u16) {
        if let Some(entry) = self.entries.get(usize::from(head)) {
            entry.mark.store(0, Ordering::Release);
        }
        self.head[0].used.store(used, Ordering::Release);
    }

    /// The heads of the chains that an earlier daemon has left, oldest first. `used` is the used
    /// ring's index. `None` if there was no daemon before: from now on there was.
    pub fn attach(&self, used: u16) -> Option<Vec<u16>> {
        if !self.is_used() {
            self.keep(&[], used);
            return None;
        }
        let head = &self.head[0];
        if head.used.load(Ordering::Acquire) != used {
            self.end_return(head.last.load(Ordering::Relaxed), used);
        }
        let marked = self.marked();
        let next = marked
            .last()
            .map_or(0, |(counter, _)| counter.wrapping_add(1));
        self.counter.store(next, Ordering::Relaxed);
        Some(marked.into_iter().map(|(_, head)| head).collect())
    }

    /// Whether this is the memory of a ring that is where its daemon has left it, as far as the
    /// used ring's index, `used`, tells. If not, the driver has begun anew.
    pub fn is_of(&self, used: u16) -> bool {
        let noted = self.head[0].used.load(Ordering::Acquire);
        self.is_used() && [noted, noted.wrapping_add(1)].contains(&used)
    }

    /// Makes the memory say that the chains of these heads are in flight, oldest first, and no
    /// others. `used` is the used ring's index.
    pub fn keep(&self, heads: &[u16], used: u16) {
        for entry in &*self.entries {
            entry.mark.store(0, Ordering::Relaxed);
        }
        self.counter.store(0, Ordering::Relaxed);
        for head in heads {
            self.take(*head);
        }
        let head = &self.head[0];
        let entries = u16::try_from(self.entries.len()).unwrap_or(u16::MAX);
        head.entries.store(entries, Ordering::Relaxed);
        head.used.store(used, Ordering::Release);
        head.version.store(VERSION, Ordering::Release);
    }

    fn is_used(&self) -> bool {
        self.head[0].version.load(Ordering::Acquire) != 0
    }

    /// Counters and heads of the marked entries, oldest first.
    fn marked(&self) -> Vec<(u64, u16)> {
        let entries = (0..=u16::MAX).zip(&*self.entries);
        let marked = entries.filter(|(_, entry)| entry.mark.load(Ordering::Acquire) == 1);
        let marked = marked.map(|(head, entry)| (entry.counter.load(Ordering::Relaxed), head));
        let mut marked: Vec<_> = marked.collect();
        marked.sort_unstable();
        marked
    }
}

/// Bytes of one ring's part.
const fn ring_len(ring_size: u16) -> usize {
    let len = size_of::<Head>() + ring_size as usize * size_of::<Entry>();
    len.next_multiple_of(64)
}

const _: () = assert!(size_of::<Head>() == 16 && size_of::<Entry>() == 16);

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    fn memory(rings: u16) -> (OwnedFd, InflightMemory) {
        let file = InflightMemory::create(rings, 8).expect("created");
        let memory = InflightMemory::map(file.as_fd(), 0, rings, 8).expect("mapped");
        (file, memory)
    }

    #[test]
    fn the_next_daemon_finds_what_was_in_flight_oldest_first() {
        let (file, memory) = memory(2);
        assert_eq!(memory.marked(), None);
        let ring = memory.ring(1).expect("a ring");
        assert_eq!(ring.attach(7), None);
        for head in [5, 0, 3, 1] {
            ring.take(head);
        }
        ring.begin_return(0);
        ring.end_return(0, 8);
        drop((ring, memory));

        let memory = InflightMemory::map(file.as_fd(), 0, 2, 8).expect("mapped");
        assert_eq!(memory.marked(), Some(3));
        let ring = memory.ring(1).expect("a ring");
        assert_eq!(ring.attach(8), Some(vec![5, 3, 1]));
        // A new one is younger than all of them.
        ring.take(0);
        assert_eq!(ring.attach(8), Some(vec![5, 3, 1, 0]));
        assert_eq!(memory.ring(0).expect("a ring").attach(0), None);
        assert!(memory.ring(2).is_none());
    }

    #[test]
    fn a_chain_whose_return_was_cut_short_is_in_flight_unless_the_guest_has_it() {
        let (_file, memory) = memory(1);
        let ring = memory.ring(0).expect("a ring");
        assert_eq!(ring.attach(u16::MAX), None);
        ring.take(2);
        ring.take(4);
        ring.begin_return(2);
        // Before the used ring's index was written, and after.
        assert_eq!(ring.attach(u16::MAX), Some(vec![2, 4]));
        assert_eq!(ring.attach(0), Some(vec![4]));
        ring.keep(&[6, 1], 0);
        assert_eq!(ring.attach(0), Some(vec![6, 1]));
    }

    #[test]
    fn a_ring_that_is_elsewhere_than_its_daemon_has_left_it_is_another_one() {
        let (_file, memory) = memory(1);
        let ring = memory.ring(0).expect("a ring");
        assert!(!ring.is_of(0), "unused");
        ring.keep(&[], u16::MAX);
        // The return of a chain was cut short behind the used ring's index.
        assert!(ring.is_of(u16::MAX) && ring.is_of(0));
        assert!(!ring.is_of(1) && !ring.is_of(u16::MAX - 1));
    }

    #[test]
    fn heads_outside_of_the_ring_change_nothing() {
        let (_file, memory) = memory(1);
        let ring = memory.ring(0).expect("a ring");
        ring.keep(&[], 0);
        ring.take(8);
        ring.begin_return(u16::MAX);
        assert_eq!(ring.attach(1), Some(vec![]));
    }

    #[test]
    fn a_file_that_is_too_short_or_may_become_so_is_refused() {
        let file = InflightMemory::create(1, 8).expect("created");
        assert!(InflightMemory::map(file.as_fd(), 0, 40, 8).is_err());
        assert!(InflightMemory::map(file.as_fd(), u64::MAX, 1, 8).is_err());
        let file = memfd_create("open", MemfdFlags::ALLOW_SEALING).expect("created");
        ftruncate(&file, 1 << 20).expect("as long");
        let error = InflightMemory::map(file.as_fd(), 0, 1, 8).expect_err("not sealed");
        assert!(error.to_string().contains("seal"), "{error}");
    }
}
