//! The guests that are connected, and how the acceptor notices that one has gone: by the end of its
//! keeper, whoever's child that is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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
}

impl Guest {
    /// Tells the supervisor of the guest, so that it outlives the acceptor. Its keeper is `process`,
    /// and asks at the other end of `holder` for descriptors to be held.
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

/// The connected guests, in the order of their connections.
#[derive(Debug)]
pub(super) struct Guests {
    connected: Vec<Guest>,
    /// An epoll descriptor, which has the ends of keepers.
    ends: OwnedFd,
}

impl Guests {
    /// None.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            connected: Vec::new(),
            ends: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        })
    }

    /// Adds a guest, whose connection ends if that fails.
    pub(super) fn add(&mut self, guest: Guest) -> io::Result<()> {
        let number = epoll::EventData::new_u64(guest.number);
        epoll::add(&self.ends, &guest.handle, number, epoll::EventFlags::IN)
            .inspect_err(|_| guest.control.shut_down())?;
        self.connected.push(guest);
        Ok(())
    }

    /// Removes the guest of this number.
    pub(super) fn remove(&mut self, number: u64) {
        for guest in self
            .connected
            .extract_if(.., |guest| guest.number == number)
        {
            // Closing the pidfd does not do it: the supervisor has a copy.
            let _ = epoll::delete(&self.ends, &guest.handle);
        }
    }

    /// Removes the guests whose keepers have ended.
    pub(super) fn remove_ended(&mut self) {
        let none = epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        };
        let mut ended = [none; ENDS];
        while let Ok(count @ 1..) = epoll::wait(&self.ends, &mut ended, Some(&Timespec::default()))
        {
            for event in ended.iter().take(count) {
                self.remove(event.data.u64());
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Guest> {
        self.connected.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.connected.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.connected.is_empty()
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

    #[test]
    fn a_guest_whose_keeper_ends_is_removed_although_another_process_has_its_pidfd() {
        let mut guests = Guests::new().unwrap();
        let mut keepers = Vec::new();
        for number in 1..=2 {
            let Forked::Parent(keeper) = process::fork().unwrap() else {
                std::thread::park();
                process::exit(0)
            };
            let handle = pidfd_open(keeper, PidfdFlags::empty()).unwrap();
            keepers.push((keeper, handle.try_clone().unwrap()));
            let guest = Guest {
                number,
                is_logged: true,
                handle,
                control: Channel::pair().unwrap().0,
            };
            guests.add(guest).unwrap();
        }
        guests.remove_ended();
        assert_eq!(guests.len(), 2);
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
