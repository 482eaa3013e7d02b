//! The places of inodes in memory: up to two for each, and which are used least.

use std::collections::{HashMap, HashSet};

use super::handle::FileHandle;

/// A directory and a name in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The directory, in the same export.
    pub parent: FileHandle,
    /// The name.
    pub name: Box<[u8]>,
}

#[derive(Debug)]
struct Entry {
    first: Place,
    /// Another link of the file.
    second: Option<Box<Place>>,
    /// When it was used last, by the table's clock.
    used: u64,
}

impl Entry {
    fn places(&self) -> impl Iterator<Item = &Place> {
        [&self.first].into_iter().chain(self.second.as_deref())
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct PlaceTable {
    entries: HashMap<FileHandle, Entry>,
    clock: u64,
    /// Most inodes.
    limit: usize,
}

impl PlaceTable {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            entries: HashMap::new(),
            clock: 0,
            limit,
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The places of an inode, which is used.
    pub(super) fn get(&mut self, handle: FileHandle) -> Vec<Place> {
        self.touch(handle);
        let entry = self.entries.get(&handle);
        let places = entry.into_iter().flat_map(Entry::places);
        places.cloned().collect()
    }

    /// Notes that an inode is used.
    pub(super) fn touch(&mut self, handle: FileHandle) {
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(&handle) {
            entry.used = self.clock;
        }
    }

    /// Makes `places` those of an inode. Of more than two, the others are left out.
    pub(super) fn set(&mut self, handle: FileHandle, places: Vec<Place>) {
        self.clock += 1;
        let mut places = places.into_iter();
        let Some(first) = places.next() else {
            self.entries.remove(&handle);
            return;
        };
        let entry = Entry {
            first,
            second: places.next().map(Box::new),
            used: self.clock,
        };
        self.entries.insert(handle, entry);
    }

    /// All inodes, each behind the time when it was used last.
    pub(super) fn handles(&self) -> Vec<(u64, FileHandle)> {
        let entries = self.entries.iter();
        entries
            .map(|(handle, entry)| (entry.used, *handle))
            .collect()
    }

    /// The places of an inode, if it is there. It counts as unused.
    pub(super) fn peek(&self, handle: FileHandle) -> Option<impl Iterator<Item = &Place>> {
        self.entries.get(&handle).map(Entry::places)
    }

    /// If there are too many inodes, forgets the quarter that was used least recently, but for the
    /// directories above others, without which those could not be found. Returns the places of
    /// each that is forgotten.
    pub(super) fn evict(&mut self) -> Vec<Vec<Place>> {
        if self.entries.len() <= self.limit {
            return Vec::new();
        }
        let mut all: Vec<_> = self.entries.values().map(|entry| entry.used).collect();
        let quarter = all.len() / 4;
        let (_, oldest_kept, _) = all.select_nth_unstable(quarter);
        let oldest_kept = *oldest_kept;
        let mut needed = HashSet::new();
        let kept = self
            .entries
            .values()
            .filter(|entry| entry.used >= oldest_kept);
        for place in kept.flat_map(Entry::places) {
            let mut at = place.parent;
            while let Some(above) = self.entries.get(&at)
                && above.used < oldest_kept
                && needed.insert(at)
            {
                at = above.first.parent;
            }
        }
        // The next time, others are the oldest.
        for handle in &needed {
            self.touch(*handle);
        }
        let old = self.entries.extract_if(|_, entry| entry.used < oldest_kept);
        old.map(|(_, entry)| entry.places().cloned().collect())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(ino: u64) -> FileHandle {
        FileHandle {
            export: 1,
            ino,
            birth: 0,
        }
    }

    fn at(parent: u64) -> Vec<Place> {
        vec![Place {
            parent: handle(parent),
            name: b"name"[..].into(),
        }]
    }

    #[test]
    fn what_is_used_or_leads_to_it_stays_when_the_table_is_full() {
        let mut table = PlaceTable::new(100);
        // 1 is the root, and 2, 3, 4 lead to 50.
        for ino in 2..=4 {
            table.set(handle(ino), at(ino - 1));
        }
        for ino in 5..=101 {
            table.set(handle(ino), at(if ino == 50 { 4 } else { 1 }));
        }
        assert!(table.evict().is_empty());
        for ino in [5, 50] {
            table.touch(handle(ino));
        }
        table.set(handle(102), at(1));
        let gone = table.evict();
        assert!((20..=25).contains(&gone.len()), "{}", gone.len());
        assert_eq!(table.len(), 101 - gone.len());
        for ino in [2, 3, 4, 5, 50, 101, 102] {
            assert!(!table.get(handle(ino)).is_empty(), "{ino}");
        }
        for ino in 6..=25 {
            assert!(table.get(handle(ino)).is_empty(), "{ino}");
        }
    }
}
