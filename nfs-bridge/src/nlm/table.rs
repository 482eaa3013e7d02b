//! Who holds which locks, within limits for each client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::message::Holder;
use super::range::{Held, Range, Ranges};
use crate::share::handle::FileHandle;

/// Most clients with locks.
const MAX_CLIENTS: usize = 1024;

/// Most pairs of a file and an owner of one client.
const MAX_OWNERS: usize = 4096;

/// Most ranges that one client holds, and a little more: the parts of a range that is cut.
const MAX_RANGES: usize = 16 << 10;

/// Most locks that one client waits for.
const MAX_WAITERS: usize = 256;

/// A client: where it calls from, and its name of itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientId {
    /// Its address.
    pub address: IpAddr,
    /// Its name.
    pub name: Box<[u8]>,
}

/// Who owns locks: a process of a client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The client.
    pub client: Arc<ClientId>,
    /// The owner's number, unique in the client.
    pub svid: u32,
}

/// The locks of an owner on a file.
#[derive(Debug)]
pub struct OwnerEntry {
    /// The owner in requests to the daemon. It is of this file alone.
    pub number: u64,
    /// The client's name of the owner.
    pub owner_handle: Vec<u8>,
    /// The locks.
    pub ranges: Ranges,
    /// Locks that it waits for.
    waiters: usize,
}

/// A file with locks.
#[derive(Debug)]
pub struct FileEntry<F> {
    /// The file at the daemon.
    pub file: F,
    owners: HashMap<Owner, OwnerEntry>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    owners: usize,
    ranges: usize,
    waiters: usize,
    /// How often the client has started, as it said last.
    state: u32,
}

/// How many locks there are, of all clients.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Files with locks, or with somebody who waits for one.
    pub files: usize,
    /// Clients with locks.
    pub clients: usize,
    /// Locked ranges.
    pub ranges: usize,
    /// Locks that are waited for.
    pub waiters: usize,
}

/// The limit of a client, or of clients, is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// All locks. `F` is a file at the daemon.
#[derive(Debug)]
pub struct Table<F> {
    files: HashMap<FileHandle, FileEntry<F>>,
    clients: HashMap<Arc<ClientId>, Counts>,
    next_number: u64,
}

impl<F> Default for Table<F> {
    fn default() -> Self {
        Self {
            files: HashMap::new(),
            clients: HashMap::new(),
            // The daemon's requests without an owner have 0.
            next_number: 1,
        }
    }
}

impl<F> Table<F> {
    /// Whether nobody holds or waits for a lock.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// How many locks there are.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let counts = || self.clients.values();
        Totals {
            files: self.files.len(),
            clients: counts().filter(|one| one.owners > 0).count(),
            ranges: counts().map(|one| one.ranges).sum(),
            waiters: counts().map(|one| one.waiters).sum(),
        }
    }

    /// The files with locks.
    #[must_use]
    pub fn files(&self) -> Vec<FileHandle> {
        self.files.keys().copied().collect()
    }

    /// The file at the daemon.
    #[must_use]
    pub fn file(&self, file: FileHandle) -> Option<&F> {
        self.files.get(&file).map(|entry| &entry.file)
    }

    /// Replaces the file at the daemon.
    pub fn set_file(&mut self, file: FileHandle, at_daemon: F) {
        if let Some(entry) = self.files.get_mut(&file) {
            entry.file = at_daemon;
        }
    }

    /// The owners with locks on a file, or waiting for one.
    #[must_use]
    pub fn owners(&self, file: FileHandle) -> Vec<Owner> {
        let entry = self.files.get(&file);
        entry.map_or_else(Vec::new, |entry| entry.owners.keys().cloned().collect())
    }

    /// An owner's locks on a file.
    #[must_use]
    pub fn entry(&self, file: FileHandle, owner: &Owner) -> Option<&OwnerEntry> {
        self.files.get(&file)?.owners.get(owner)
    }

    /// A lock of another owner that is in the way.
    #[must_use]
    pub fn conflict(&self, file: FileHandle, owner: &Owner, wanted: Held) -> Option<Holder> {
        let owners = &self.files.get(&file)?.owners;
        let others = owners.iter().filter(|(other, _)| *other != owner);
        others
            .filter_map(|(other, entry)| {
                let held = entry.ranges.conflict(wanted)?;
                Some(Holder {
                    exclusive: held.exclusive,
                    svid: other.svid,
                    owner_handle: entry.owner_handle.clone(),
                    range: held.range,
                })
            })
            .next()
    }

    /// Makes an entry for an owner, if it has none. Returns its number.
    ///
    /// # Errors
    /// [`Full`].
    pub fn begin(
        &mut self,
        file: FileHandle,
        owner: &Owner,
        owner_handle: &[u8],
        at_daemon: impl FnOnce() -> F,
    ) -> Result<u64, Full> {
        if let Some(entry) = self.entry(file, owner) {
            let counts = self.clients.get(&owner.client);
            return match counts.is_some_and(|counts| counts.ranges >= MAX_RANGES) {
                true => Err(Full),
                false => Ok(entry.number),
            };
        }
        if !self.clients.contains_key(&owner.client) && self.clients.len() >= MAX_CLIENTS {
            return Err(Full);
        }
        let counts = self.clients.entry(Arc::clone(&owner.client)).or_default();
        if counts.owners >= MAX_OWNERS || counts.ranges >= MAX_RANGES {
            return Err(Full);
        }
        counts.owners += 1;
        let number = self.next_number;
        self.next_number += 1;
        let entry = self.files.entry(file).or_insert_with(|| FileEntry {
            file: at_daemon(),
            owners: HashMap::new(),
        });
        let new = OwnerEntry {
            number,
            owner_handle: owner_handle.to_vec(),
            ranges: Ranges::default(),
            waiters: 0,
        };
        entry.owners.insert(owner.clone(), new);
        Ok(number)
    }

    /// Notes that an owner has a lock. It must have an entry.
    pub fn lock(&mut self, file: FileHandle, owner: &Owner, lock: Held) {
        self.change(file, owner, |ranges| ranges.lock(lock));
    }

    /// Notes that an owner has no lock on a range.
    pub fn unlock(&mut self, file: FileHandle, owner: &Owner, range: Range) {
        self.change(file, owner, |ranges| ranges.unlock(range));
    }

    fn change(&mut self, file: FileHandle, owner: &Owner, change: impl FnOnce(&mut Ranges)) {
        let entry = self.files.get_mut(&file);
        let entry = entry.and_then(|entry| entry.owners.get_mut(owner));
        if let (Some(entry), Some(counts)) = (entry, self.clients.get_mut(&owner.client)) {
            counts.ranges -= entry.ranges.len();
            change(&mut entry.ranges);
            counts.ranges += entry.ranges.len();
        }
    }

    /// Counts a lock that an owner with an entry waits for.
    ///
    /// # Errors
    /// [`Full`].
    pub fn begin_wait(&mut self, file: FileHandle, owner: &Owner) -> Result<(), Full> {
        let entry = self.files.get_mut(&file);
        let entry = entry.and_then(|entry| entry.owners.get_mut(owner));
        match (entry, self.clients.get_mut(&owner.client)) {
            (Some(entry), Some(counts)) if counts.waiters < MAX_WAITERS => {
                entry.waiters += 1;
                counts.waiters += 1;
                Ok(())
            }
            _ => Err(Full),
        }
    }

    /// Counts the end of a wait.
    pub fn end_wait(&mut self, file: FileHandle, owner: &Owner) {
        let entry = self.files.get_mut(&file);
        let entry = entry.and_then(|entry| entry.owners.get_mut(owner));
        if let (Some(entry), Some(counts)) = (entry, self.clients.get_mut(&owner.client)) {
            entry.waiters -= 1;
            counts.waiters -= 1;
        }
    }

    /// Removes an owner's entry if it holds nothing and waits for nothing. `forget` is told the
    /// file at the daemon and the owner's number.
    pub fn tidy(&mut self, file: FileHandle, owner: &Owner, forget: impl FnOnce(&F, u64)) {
        let Some(entry) = self.files.get_mut(&file) else {
            return;
        };
        let is_idle = |entry: &OwnerEntry| entry.ranges.is_empty() && entry.waiters == 0;
        let Some(idle) = entry.owners.get(owner).filter(|entry| is_idle(entry)) else {
            return;
        };
        forget(&entry.file, idle.number);
        entry.owners.remove(owner);
        if entry.owners.is_empty() {
            self.files.remove(&file);
        }
        if let Some(counts) = self.clients.get_mut(&owner.client) {
            counts.owners -= 1;
            if counts.owners == 0 {
                self.clients.remove(&owner.client);
            }
        }
    }

    /// Notes how often a client has started. Returns whether it has started again since it told
    /// last, so that its older locks are nobody's.
    pub fn note_state(&mut self, client: &Arc<ClientId>, state: u32) -> bool {
        match self.clients.get_mut(client) {
            Some(counts) if state != 0 => {
                let before = std::mem::replace(&mut counts.state, state);
                before != 0 && before != state
            }
            _ => false,
        }
    }

    /// The clients at an address that have not told yet that they have started `state` times.
    #[must_use]
    pub fn older_clients(&self, address: IpAddr, state: u32) -> Vec<Arc<ClientId>> {
        let clients = self.clients.iter();
        clients
            .filter(|(client, counts)| {
                client.address == address && (counts.state == 0 || counts.state != state)
            })
            .map(|(client, _)| Arc::clone(client))
            .collect()
    }

    /// All pairs of a file and an owner of a client.
    #[must_use]
    pub fn owned_by(&self, client: &ClientId) -> Vec<(FileHandle, Owner)> {
        let files = self.files.iter();
        files
            .flat_map(|(file, entry)| entry.owners.keys().map(|owner| (*file, owner)))
            .filter(|(_, owner)| *owner.client == *client)
            .map(|(file, owner)| (file, owner.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileHandle = FileHandle {
        export: 1,
        ino: 2,
        birth: 3,
    };

    fn owner(host: u8, svid: u32) -> Owner {
        let client = ClientId {
            address: IpAddr::from([10, 0, 2, host]),
            name: b"guest"[..].into(),
        };
        Owner {
            client: Arc::new(client),
            svid,
        }
    }

    const ALL: Held = Held {
        range: Range::ALL,
        exclusive: true,
    };

    fn holding(owner: &Owner) -> Table<()> {
        let mut table = Table::default();
        table.begin(FILE, owner, b"oh", || ()).unwrap();
        table.lock(FILE, owner, ALL);
        table
    }

    #[test]
    fn totals_count_what_clients_have() {
        let one = owner(15, 7);
        let mut table = holding(&one);
        table.begin(FILE, &owner(16, 1), b"", || ()).unwrap();
        table.begin_wait(FILE, &owner(16, 1)).unwrap();
        let totals = Totals {
            files: 1,
            clients: 2,
            ranges: 1,
            waiters: 1,
        };
        assert_eq!(table.totals(), totals);
        table.unlock(FILE, &one, Range::ALL);
        table.tidy(FILE, &one, |(), _| ());
        assert_eq!(
            table.totals(),
            Totals {
                clients: 1,
                ranges: 0,
                ..totals
            }
        );
    }

    #[test]
    fn the_owner_is_the_same_process_of_the_same_client() {
        let one = owner(15, 7);
        let mut table = holding(&one);
        assert_eq!(table.conflict(FILE, &owner(15, 7), ALL), None);
        for other in [owner(15, 8), owner(16, 7)] {
            let holder = table.conflict(FILE, &other, ALL).unwrap();
            assert_eq!((holder.svid, &*holder.owner_handle), (7, &b"oh"[..]));
        }
        table.unlock(FILE, &one, Range::ALL);
        let mut forgotten = None;
        table.tidy(FILE, &one, |(), number| forgotten = Some(number));
        assert_eq!(forgotten, Some(1));
        assert!(table.is_empty() && table.clients.is_empty());
    }

    #[test]
    fn a_client_cannot_use_up_the_memory() {
        let mut table = holding(&owner(15, 0));
        for svid in 1..u32::try_from(MAX_OWNERS).unwrap() {
            table.begin(FILE, &owner(15, svid), b"", || ()).unwrap();
        }
        assert_eq!(
            table.begin(FILE, &owner(15, 1 << 20), b"", || ()),
            Err(Full)
        );
        assert!(table.begin(FILE, &owner(16, 1), b"", || ()).is_ok());
        for _ in 0..MAX_WAITERS {
            table.begin_wait(FILE, &owner(15, 1)).unwrap();
        }
        assert_eq!(table.begin_wait(FILE, &owner(15, 2)), Err(Full));
        assert_eq!(table.begin_wait(FILE, &owner(16, 1)), Ok(()));
    }

    #[test]
    fn a_client_that_started_again_is_recognized_once() {
        let one = owner(15, 7);
        let mut table = holding(&one);
        let address = one.client.address;
        assert!(!table.note_state(&one.client, 3), "the first time");
        assert!(!table.note_state(&one.client, 0), "it does not know");
        assert!(table.older_clients(address, 3).is_empty(), "a late notice");
        assert_eq!(table.older_clients(address, 5).len(), 1);
        assert!(table.note_state(&one.client, 5));
        assert!(table.older_clients(address, 5).is_empty());
    }
}
