//! The guests that are connected, or whose sessions are kept, and how the acceptor notices that one
//! has gone: by the end of its keeper, whoever's child that is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use gangplank_service::owned_file::FileId;
use rustix::event::{Timespec, epoll};
use rustix::process::Pid;

use crate::handover::channel::{Channel, Message};

/// Ends that are taken from the kernel at a time.
const ENDS: usize = 64;

/// A connected guest.
#[derive(Debug)]
pub(super) struct Guest {
    /// Its number in the log.
    pub(super) number: u64,
    /// Whether the usual events of its connection are logged.
    pub(super) is_logged: bool,
    /// The keeper's pidfd.
    pub(super) handle: OwnedFd,
    /// The other end is the keeper's. The supervisor has a copy of this one. Shutting it down ends
    /// the guest's connection, after its requests in flight.
    pub(super) control: Channel,
    /// Its processes have said all that is noted below: those of a guest that was taken over say it
    /// a moment later.
    pub(super) has_announced: bool,
    /// The file in which its frontend keeps the requests in flight.
    pub(super) inflight: Option<FileId>,
    /// When the acceptor learned that the connection is lost, while the session is kept.
    pub(super) disconnected: Option<Instant>,
    /// Its connection is being given to the guest of this number, whose connection was lost. There
    /// is one such guest for each at most.
    pub(super) joins: Option<u64>,
}

impl Guest {
    /// A guest whose keeper has the pidfd `handle`.
    pub(super) const fn new(
        number: u64,
        is_logged: bool,
        handle: OwnedFd,
        control: Channel,
    ) -> Self {
        Self {
            number,
            is_logged,
            handle,
            control,
            has_announced: false,
            inflight: None,
            disconnected: None,
            joins: None,
        }
    }

    /// Tells the supervisor of the guest, so that it outlives the acceptor. Its keeper is
    /// `process`, and asks at the other end of `holder` for descriptors to be held.
    pub(super) fn register(
        &self,
        process: Pid,
        holder: Option<Channel>,
        supervisor: &Channel,
    ) -> io::Result<()> {
        let message = Message::Keeper {
            number: self.number,
            is_logged: self.is_logged,
            process: process.as_raw_nonzero().get(),
        };
        let holder = holder.as_ref().map(AsFd::as_fd);
        let passed = [self.control.as_fd(), self.handle.as_fd()];
        let passed: Vec<_> = passed.into_iter().chain(holder).collect();
        supervisor.send(&message, &passed)
    }
}

/// Who has the session of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Session {
    /// The guest of this number.
    Of(u64),
    /// Nobody.
    Nobody,
    /// Perhaps a guest that has not announced itself yet.
    Unknown,
}

/// The guests, in the order of their connections.
#[derive(Debug)]
pub(super) struct Guests {
    all: Vec<Guest>,
    /// An epoll descriptor, which has the ends of keepers.
    ends: OwnedFd,
    /// An epoll descriptor, which has what keepers and workers say.
    messages: OwnedFd,
}

impl Guests {
    /// None.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            all: Vec::new(),
            ends: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            messages: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        })
    }

    /// Adds a guest, whose connection ends if that fails.
    pub(super) fn add(&mut self, guest: Guest) -> io::Result<()> {
        let number = epoll::EventData::new_u64(guest.number);
        epoll::add(&self.ends, &guest.handle, number, epoll::EventFlags::IN)
            .and_then(|()| {
                epoll::add(
                    &self.messages,
                    &guest.control,
                    number,
                    epoll::EventFlags::IN,
                )
            })
            .inspect_err(|_| guest.control.shut_down())?;
        self.all.push(guest);
        Ok(())
    }

    /// Removes the guest of this number.
    pub(super) fn remove(&mut self, number: u64) {
        for guest in self.all.extract_if(.., |guest| guest.number == number) {
            // Closing the descriptors does not do it: the supervisor has copies.
            let _ = epoll::delete(&self.ends, &guest.handle);
            let _ = epoll::delete(&self.messages, &guest.control);
        }
        for guest in &mut self.all {
            guest.joins.take_if(|joined| *joined == number);
        }
    }

    /// What to wait for: messages of guests' processes.
    pub(super) fn messages(&self) -> BorrowedFd<'_> {
        self.messages.as_fd()
    }

    /// The guests whose processes have said something, by number. Each is named again until its
    /// message has been taken.
    pub(super) fn with_messages(&self) -> Vec<u64> {
        numbers(&self.messages).unwrap_or_default()
    }

    /// How often [`Self::with_messages`] names guests until it has named each once.
    pub(super) fn looks_for_all(&self) -> usize {
        self.all.len().div_ceil(ENDS)
    }

    /// Listens no more to the guest of this number.
    pub(super) fn stop_listening(&self, number: u64) {
        for guest in self.iter().filter(|guest| guest.number == number) {
            let _ = epoll::delete(&self.messages, &guest.control);
        }
    }

    /// Removes the guests whose keepers have ended.
    pub(super) fn remove_ended(&mut self) {
        while let Some(ended) = numbers(&self.ends) {
            for number in ended {
                self.remove(number);
            }
        }
    }

    /// The guest of this number.
    pub(super) fn get(&self, number: u64) -> Option<&Guest> {
        self.iter().find(|guest| guest.number == number)
    }

    /// The guest of this number.
    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Guest> {
        let mut guests = self.all.iter_mut();
        guests.find(|guest| guest.number == number)
    }

    /// Who has the session of the frontend with this memory, except the guest that asks.
    pub(super) fn session(&self, asker: u64, memory: FileId) -> Session {
        let others = || self.iter().filter(|guest| guest.number != asker);
        // The last one, if its frontend was given up before.
        let found = others().filter(|guest| guest.inflight == Some(memory));
        match found.map(|guest| guest.number).max() {
            Some(number) => Session::Of(number),
            None if others().all(|guest| guest.has_announced) => Session::Nobody,
            None => Session::Unknown,
        }
    }

    /// Notes that the guest of this number asks for a session that is another guest's, or for none.
    pub(super) fn join(&mut self, number: u64, session: Session) {
        let joins = match session {
            Session::Of(found) => Some(found),
            Session::Nobody | Session::Unknown => None,
        };
        // Whoever asks for the session of a guest that is connected, or as a second one, is a guest
        // more.
        let is_free = |found: &u64| {
            let is_lost = |guest: &Guest| guest.disconnected.is_some();
            let is_joined = |guest: &Guest| guest.number != number && guest.joins == Some(*found);
            self.get(*found).is_some_and(is_lost) && !self.iter().any(is_joined)
        };
        let joins = joins.filter(is_free);
        if let Some(guest) = self.get_mut(number) {
            guest.joins = joins;
        }
    }

    /// How many are connected. A guest whose session is kept, and the one that joins it, are none
    /// until it has the connection.
    pub(super) fn connected(&self) -> usize {
        let is_connected = |guest: &&Guest| guest.disconnected.is_none() && guest.joins.is_none();
        self.iter().filter(is_connected).count()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Guest> {
        self.all.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

/// The numbers of guests that an epoll descriptor has events of, or some of them; `None` if it has
/// none.
fn numbers(events: &OwnedFd) -> Option<Vec<u64>> {
    let none = epoll::Event {
        flags: epoll::EventFlags::empty(),
        data: epoll::EventData::new_u64(0),
    };
    let mut found = [none; ENDS];
    match epoll::wait(events, &mut found, Some(&Timespec::default())) {
        Ok(count @ 1..) => {
            let found = found.iter().take(count);
            Some(found.map(|event| event.data.u64()).collect())
        }
        _ => None,
    }
}

/// Readable when a keeper has ended.
impl AsFd for Guests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ends.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::process::{PidfdFlags, Signal, kill_process, pidfd_open};

    use super::*;
    use crate::sys::process::{self, Forked};

    /// Guests with these numbers, whose keepers do not end.
    fn guests(numbers: &[u64]) -> (Guests, Vec<Channel>) {
        let mut guests = Guests::new().unwrap();
        let mut controls = Vec::new();
        for number in numbers {
            let handle = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
            let (control, theirs) = Channel::pair().unwrap();
            controls.push(theirs);
            let guest = Guest::new(*number, true, handle, control);
            guests.add(guest).unwrap();
        }
        (guests, controls)
    }

    fn memory() -> FileId {
        let file = rustix::fs::memfd_create("inflight", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        FileId::from(&rustix::fs::fstat(&file).unwrap())
    }

    #[test]
    fn nobody_has_a_session_only_once_all_guests_have_announced_themselves() {
        let (mut guests, _controls) = guests(&[1, 2, 3]);
        let memory = memory();
        assert_eq!(guests.session(3, memory), Session::Unknown);
        guests.get_mut(1).unwrap().has_announced = true;
        assert_eq!(guests.session(3, memory), Session::Unknown);
        // Not the asker.
        guests.get_mut(2).unwrap().has_announced = true;
        assert_eq!(guests.session(3, memory), Session::Nobody);
        guests.get_mut(2).unwrap().has_announced = false;
        guests.get_mut(1).unwrap().inflight = Some(memory);
        assert_eq!(guests.session(3, memory), Session::Of(1));
        guests.get_mut(2).unwrap().inflight = Some(memory);
        guests.get_mut(3).unwrap().inflight = Some(memory);
        assert_eq!(guests.session(3, memory), Session::Of(2));
    }

    #[test]
    fn only_one_guest_that_joins_a_lost_one_does_not_count() {
        let (mut guests, _controls) = guests(&[1, 2, 3, 4]);
        assert_eq!(guests.connected(), 4);
        // The session of a guest that is connected.
        guests.join(2, Session::Of(1));
        assert_eq!(guests.connected(), 4);
        guests.get_mut(1).unwrap().disconnected = Some(Instant::now());
        assert_eq!(guests.connected(), 3);
        guests.join(2, Session::Of(1));
        assert_eq!(guests.connected(), 2);
        guests.join(3, Session::Of(1));
        guests.join(2, Session::Of(1));
        assert_eq!(guests.connected(), 2);
        // Guest 1 has the connection, and the processes of guest 2 are about to end.
        guests.get_mut(1).unwrap().disconnected = None;
        assert_eq!(guests.connected(), 3);
        guests.remove(1);
        assert_eq!(guests.connected(), 3);
        guests.join(4, Session::Of(1));
        guests.join(4, Session::Nobody);
        assert_eq!(guests.connected(), 3);
    }

    #[test]
    fn a_guest_whose_keeper_ends_is_removed_although_another_process_has_its_pidfd() {
        let mut guests = Guests::new().unwrap();
        let (mut keepers, mut controls) = (Vec::new(), Vec::new());
        for number in 1..=2 {
            let Forked::Parent(keeper) = process::fork().unwrap() else {
                std::thread::park();
                process::exit(0)
            };
            let handle = pidfd_open(keeper, PidfdFlags::empty()).unwrap();
            keepers.push((keeper, handle.try_clone().unwrap()));
            let (control, theirs) = Channel::pair().unwrap();
            controls.push(theirs);
            let guest = Guest::new(number, true, handle, control);
            guests.add(guest).unwrap();
        }
        guests.remove_ended();
        assert_eq!(guests.len(), 2);
        assert!(guests.with_messages().is_empty());
        controls[1].send(&Message::Disconnected(true), &[]).unwrap();
        assert_eq!(guests.with_messages(), [2]);
        guests.stop_listening(2);
        assert!(guests.with_messages().is_empty());
        kill_process(keepers[0].0, Signal::KILL).unwrap();
        let ready = &mut [PollFd::new(&guests, PollFlags::IN)];
        assert_eq!(poll(ready, None), Ok(1));
        guests.remove_ended();
        let left: Vec<u64> = guests.iter().map(|guest| guest.number).collect();
        assert_eq!(left, [2]);
        let ready = &mut [PollFd::new(&guests, PollFlags::IN)];
        assert_eq!(poll(ready, Some(&Timespec::default())), Ok(0));
        for (keeper, _handle) in keepers {
            let _ = kill_process(keeper, Signal::KILL);
            rustix::process::waitpid(Some(keeper), rustix::process::WaitOptions::empty()).unwrap();
        }
    }
}
