//! What the supervisor does while guests are served: has the service manager or the relay hold what
//! the guests' processes ask for, by names that say what it is.
//!
//! A name is `guest-NUMBER-WHAT`, where WHAT is the number of a descriptor in the guest's
//! processes, or one of `state`, `connection`, `root` and `mounts`. The user namespace that all
//! processes of an ordinary user's daemon have is `guest-users`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use gangplank_service::fd_store::FdStore;
use gangplank_service::rate_limited;
use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fstat, openat};

use crate::handover::channel::{Arrived, Channel, Message};

/// How all names begin.
pub const PREFIX: &str = "guest-";

/// What the user namespace is held by.
pub const USERS: &str = "guest-users";

/// The parts of a guest itself, in the order of [`Message::Offer`].
pub const PARTS: [&str; 4] = ["state", "connection", "root", "mounts"];

/// How long a guest whose processes have ended is still held: its processes may have ended because
/// the acceptor has, and then the next program goes on with the guest.
const GRACE: Duration = Duration::from_millis(200);

/// Requests of one guest that are carried out before others' turn.
const TURN: usize = 16;

/// What is held of all guests.
#[derive(Debug, Default)]
pub struct Holding {
    store: FdStore,
    guests: Vec<Guest>,
    /// Names of guests that have not said anything yet, because this program has just found them.
    found: BTreeMap<u64, BTreeSet<String>>,
    /// Guests that have ended, with the time from which on they are not held.
    ended: Vec<(Instant, Guest)>,
    has_users: bool,
}

/// What is held of one guest.
#[derive(Clone, Copy, Debug)]
pub struct Left<'a> {
    /// The guest.
    pub number: u64,
    /// The channel to its processes.
    pub channel: BorrowedFd<'a>,
    /// All names by which something is held.
    pub names: &'a BTreeSet<String>,
    /// Device and inode number of each file of memory among it, by name.
    pub files: &'a BTreeMap<String, (u64, u64)>,
}

#[derive(Debug)]
struct Guest {
    number: u64,
    channel: Channel,
    names: BTreeSet<String>,
    /// Device and inode number of each file of memory that is held, by name.
    files: BTreeMap<String, (u64, u64)>,
}

impl Holding {
    /// Nothing is held in this store yet.
    #[must_use]
    pub fn new(store: FdStore) -> Self {
        Self {
            store,
            ..Self::default()
        }
    }

    /// Where descriptors are held.
    #[must_use]
    pub const fn store(&self) -> &FdStore {
        &self.store
    }

    /// Holds descriptors in this store from now on.
    pub fn set_store(&mut self, store: FdStore) {
        self.store = store;
    }

    /// Whether anything is held.
    #[must_use]
    pub const fn is_in_use(&self) -> bool {
        self.store.capacity().is_some()
    }

    /// Notes what this program has found.
    pub fn note_found(&mut self, guest: u64, names: BTreeSet<String>) {
        self.found.insert(guest, names);
    }

    /// Notes that the user namespace is held.
    pub const fn note_users(&mut self) {
        self.has_users = true;
    }

    /// Takes over what the supervisor before had held for the same guests: their processes may not
    /// ask for all of it again. What it had held for others is not held any more.
    pub fn take_over(&mut self, before: &mut Self) {
        let ended = before.ended.drain(..).map(|(_, guest)| guest);
        for old in before.guests.drain(..).chain(ended) {
            self.keep_or_remove(old);
        }
    }

    /// Holds what the ended processes of a guest had held if other processes have that guest.
    fn keep_or_remove(&mut self, ended: Guest) {
        let mut guests = self.guests.iter_mut();
        match guests.find(|guest| guest.number == ended.number) {
            Some(guest) => guest.names.extend(ended.names),
            None => self.remove(&ended.names),
        }
    }

    /// What is held of each guest, to be left to the program that the process becomes.
    pub fn leave(&self) -> impl Iterator<Item = Left<'_>> {
        self.guests.iter().map(|guest| Left {
            number: guest.number,
            channel: guest.channel.as_fd(),
            names: &guest.names,
            files: &guest.files,
        })
    }

    /// [`Self::begin`] with what the program before has left.
    pub fn go_on(
        &mut self,
        number: u64,
        channel: Channel,
        names: BTreeSet<String>,
        files: BTreeMap<String, (u64, u64)>,
    ) {
        self.guests.push(Guest {
            number,
            channel,
            names,
            files,
        });
    }

    fn remove(&self, names: &BTreeSet<String>) {
        for name in names {
            log_failure(self.store.remove(name));
        }
    }

    /// The guests, with what to wait for: their messages.
    pub fn channels(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        let guests = self.guests.iter();
        guests.map(|guest| (guest.number, guest.channel.as_fd()))
    }

    /// Adds what an acceptor has that goes on for one that has died.
    pub fn append(&mut self, other: &mut Self) {
        self.guests.append(&mut other.guests);
    }

    /// When there is something to do without a message.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.ended.iter().map(|(end, _)| *end).min()
    }

    /// Holds the user namespace of the guests' processes.
    pub fn hold_users(&mut self, users: BorrowedFd<'_>) {
        if self.is_in_use() && !self.has_users {
            let stored = self.store.store(USERS, users);
            self.has_users = stored.is_ok();
            log_failure(stored);
        }
    }

    /// The processes of a guest ask by this channel for what is to be held.
    pub fn begin(&mut self, number: u64, channel: Channel) {
        if self.store.reconnect() {
            self.has_users = false;
        }
        let names = self.found.remove(&number).unwrap_or_default();
        self.go_on(number, channel, names, BTreeMap::new());
    }

    /// Holds no more of what was found and has no processes: its guest was not taken over.
    pub fn forget_found(&mut self) {
        for name in std::mem::take(&mut self.found).into_values().flatten() {
            log_failure(self.store.remove(&name));
        }
    }

    /// Carries out what guests ask for, and holds no more what belongs to guests that have gone.
    pub fn serve(&mut self) {
        let mut count = self.count();
        let now = Instant::now();
        let mut index = 0;
        while let Some(guest) = self.guests.get_mut(index) {
            match guest.serve(&self.store, &mut count) {
                true => index += 1,
                false => {
                    let guest = self.guests.swap_remove(index);
                    self.ended.push((now + GRACE, guest));
                }
            }
        }
        let ended: Vec<_> = (self.ended)
            .extract_if(.., |(end, _)| *end <= now)
            .collect();
        for (_, guest) in ended {
            // Other processes may have the same guest by now.
            self.keep_or_remove(guest);
        }
    }

    /// Holds nothing any more.
    pub fn clear(&mut self) {
        self.forget_found();
        let ended = self.ended.drain(..).map(|(_, guest)| guest);
        let all: Vec<_> = self.guests.drain(..).chain(ended).collect();
        for guest in &all {
            self.remove(&guest.names);
        }
        if std::mem::take(&mut self.has_users) {
            log_failure(self.store.remove(USERS));
        }
    }

    fn count(&self) -> usize {
        let ended = self.ended.iter().map(|(_, guest)| guest);
        self.guests
            .iter()
            .chain(ended)
            .map(|guest| guest.names.len())
            .sum()
    }
}

impl Guest {
    /// Carries out what its processes have said. Returns false when they have ended.
    fn serve(&mut self, store: &FdStore, count: &mut usize) -> bool {
        for _ in 0..TURN {
            let arrived = match self.channel.receive(Some(Instant::now())) {
                Ok(Some(arrived)) => arrived,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return true,
                Ok(None) | Err(_) => return false,
            };
            let (id, is_held) = self.carry_out(arrived, store, count);
            // Whoever asks more than it hears is no worker of this program. The others are not to
            // wait for it.
            let answered = self.channel.send_at_once(&Message::Held(id, is_held), &[]);
            if answered.is_err() {
                self.channel.shut_down();
                return false;
            }
        }
        true
    }

    /// Returns the request's number and whether what it asks for is held.
    fn carry_out(&mut self, arrived: Arrived, store: &FdStore, count: &mut usize) -> (u64, bool) {
        let Arrived {
            message,
            descriptors,
        } = arrived;
        let is_memory = matches!(message, Message::HoldMemory(..));
        let (id, whats): (u64, Vec<String>) = match message {
            Message::HoldGuest(id) => {
                // Not every guest has the last part, a mount namespace of its own.
                let parts = descriptors.len().clamp(PARTS.len() - 1, PARTS.len());
                let parts = PARTS.into_iter().take(parts);
                (id, parts.map(str::to_owned).collect())
            }
            Message::Hold(id, numbers) | Message::HoldMemory(id, numbers) => {
                (id, numbers.iter().map(u32::to_string).collect())
            }
            Message::Unhold(id, numbers) => {
                for number in numbers {
                    let name = name(self.number, &number.to_string());
                    self.files.remove(&name);
                    if self.names.remove(&name) {
                        *count = count.saturating_sub(1);
                        log_failure(store.remove(&name));
                    }
                }
                return (id, true);
            }
            Message::UnholdGuest(id) => {
                for name in std::mem::take(&mut self.names) {
                    *count = count.saturating_sub(1);
                    log_failure(store.remove(&name));
                }
                self.files.clear();
                return (id, true);
            }
            _ => return (0, false),
        };
        if descriptors.len() != whats.len() {
            return (id, false);
        }
        let capacity = store.capacity().unwrap_or_default();
        if count.saturating_add(descriptors.len()) > capacity {
            rate_limited!(
                error,
                "the service manager holds {count} descriptors and no more than {capacity}, so \
                 some of guest {} would be lost with the daemon; raise FileDescriptorStoreMax=",
                self.number
            );
            return (id, false);
        }
        for (what, descriptor) in whats.iter().zip(descriptors) {
            let name = name(self.number, what);
            let descriptor = match is_memory {
                true => self.distinct(&name, descriptor),
                false => descriptor,
            };
            // One that is held by this name already, also by the program before this one, would
            // stay beside it.
            if is_memory || self.names.contains(&name) {
                log_failure(store.remove(&name));
            }
            if let Err(error) = store.store(&name, descriptor.as_fd()) {
                log_failure(Err(error));
                return (id, false);
            }
            *count += usize::from(self.names.insert(name));
        }
        (id, true)
    }

    /// The service manager refuses a descriptor of an open file that it holds already. Frontends
    /// send one file for several regions of memory, so the file is opened once more for each.
    fn distinct(&mut self, name: &str, descriptor: OwnedFd) -> OwnedFd {
        let Ok(stat) = fstat(&descriptor) else {
            return descriptor;
        };
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !is_file {
            return descriptor;
        }
        let file = (stat.st_dev, stat.st_ino);
        let is_known = self.files.values().any(|known| *known == file);
        self.files.insert(name.to_owned(), file);
        if !is_known {
            return descriptor;
        }
        // With no more rights than whoever opened it had.
        let Ok(flags) = fcntl_getfl(&descriptor) else {
            return descriptor;
        };
        let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        let flags = flags & OFlags::RWMODE | OFlags::CLOEXEC;
        openat(CWD, path, flags, Mode::empty()).unwrap_or(descriptor)
    }
}

/// The name of a part of a guest.
fn name(guest: u64, what: &str) -> String {
    format!("{PREFIX}{guest}-{what}")
}

/// Guest and part of a name. `None` if the name is another's.
#[must_use]
pub fn parse(name: &str) -> Option<(u64, &str)> {
    let (guest, what) = name.strip_prefix(PREFIX)?.split_once('-')?;
    Some((guest.parse().ok()?, what))
}

fn log_failure(result: io::Result<()>) {
    if let Err(error) = result {
        rate_limited!(error, "descriptors cannot be held: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// A guest of which nothing is held, and the other end of its channel.
    fn guest() -> (Guest, Channel) {
        let (channel, theirs) = Channel::pair().expect("a channel");
        let guest = Guest {
            number: 1,
            channel,
            names: BTreeSet::new(),
            files: BTreeMap::new(),
        };
        (guest, theirs)
    }

    #[test]
    fn a_file_of_several_regions_is_opened_again_with_no_more_rights() {
        let (mut guest, _theirs) = guest();
        let file = tempfile::NamedTempFile::new().expect("a file");
        for (writable, access) in [(false, OFlags::RDONLY), (true, OFlags::RDWR)] {
            let open = || {
                let file = File::options().read(true).write(writable).open(file.path());
                OwnedFd::from(file.expect("opened"))
            };
            guest.files.clear();
            for name in ["guest-1-5", "guest-1-6"] {
                let descriptor = open();
                let number = descriptor.as_raw_fd();
                let distinct = guest.distinct(name, descriptor);
                let is_another = distinct.as_raw_fd() != number;
                assert_eq!(is_another, name == "guest-1-6", "{name}");
                let flags = fcntl_getfl(&distinct).expect("its flags");
                assert_eq!(flags & OFlags::RWMODE, access, "{name}");
            }
        }
        assert_eq!(guest.files.len(), 2);
    }

    #[test]
    fn after_a_reload_a_guest_has_all_that_was_held_and_goes_with_it() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        let channel = || Channel::pair().expect("a channel").0;
        let mut before = Holding::default();
        before.go_on(
            1,
            channel(),
            names(&["guest-1-5", "guest-1-81"]),
            BTreeMap::new(),
        );
        before.go_on(2, channel(), names(&["guest-2-5"]), BTreeMap::new());
        let mut after = Holding::default();
        after.go_on(
            1,
            channel(),
            names(&["guest-1-5", "guest-1-6"]),
            BTreeMap::new(),
        );
        after.take_over(&mut before);
        let left: Vec<_> = after.leave().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].number, 1);
        assert_eq!(
            *left[0].names,
            names(&["guest-1-5", "guest-1-6", "guest-1-81"])
        );
        assert_eq!(before.leave().count(), 0);
    }

    #[test]
    fn whoever_asks_and_hears_nothing_is_given_up_and_holds_up_nobody() {
        let (mut guest, theirs) = guest();
        let begun = Instant::now();
        let mut passes = 0;
        while {
            for id in 0..TURN as u64 {
                // Once the guest is given up, nobody receives it.
                let _ = theirs.send_at_once(&Message::Unhold(id, vec![1]), &[]);
            }
            guest.serve(&FdStore::None, &mut 0)
        } {
            passes += 1;
            assert!(passes < 100_000, "it is never given up");
        }
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_name_says_which_guest_and_what() {
        assert_eq!(parse(&name(7, "state")), Some((7, "state")));
        assert_eq!(parse(&name(u64::MAX, "12")), Some((u64::MAX, "12")));
        for other in ["guest-users", "socket", "guest-x-1", "guest--1", "guest-7"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
