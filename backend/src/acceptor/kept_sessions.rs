//! How a frontend that connects again finds its guest's session: by the memory in which it keeps
//! the requests in flight.
//!
//! Each guest's processes pass that file, and the acceptor notes which one it is. Whoever passes
//! the file of another guest has got it from that one's frontend, or is that frontend: nothing else
//! leads to it. The acceptor maps and reads no such file.
//!
//! A worker that its guest has taken over may pass anything. So the acceptor closes nothing itself
//! whose close could wait for somebody.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use gangplank_service::owned_file::FileId;
use gangplank_service::rate_limited;
use rustix::fs::{fcntl_get_seals, fstat};

use super::Acceptor;
use super::guests::Session;
use super::reporting::is_running;
use crate::handover::channel::{self, Message};
use crate::sys::process;

/// Messages of a guest that are taken before the next connection is accepted, which may be refused
/// if the acceptor does not know yet that another one is lost.
const MAX_MESSAGES: usize = 4;

/// Descriptors of a message, at most.
const MAX_PASSED: usize = 2;

/// Processes at a time that close what one guest's processes have passed. They end at once, unless
/// the guest's worker means them to wait.
const MAX_CLOSING: usize = 16;

impl Acceptor<'_> {
    /// Takes the messages of guests: all that an honest guest says at a time.
    pub(super) fn hear_guests(&mut self) {
        self.closing.retain(|(_, child)| is_running(*child));
        for _ in 0..MAX_MESSAGES * self.guests.looks_for_all() {
            let numbers = self.guests.with_messages();
            if numbers.is_empty() {
                return;
            }
            self.hear(numbers);
        }
    }

    /// Takes a message of each of these guests.
    fn hear(&mut self, numbers: Vec<u64>) {
        for number in numbers {
            let Some(guest) = self.guests.get(number) else {
                continue;
            };
            let mut passed = Vec::new();
            match guest
                .control
                .receive_into(&mut passed, Some(Instant::now()))
            {
                Ok(Some(message)) => self.hear_guest(number, &message, &passed),
                // No descriptor is left, or a worker says what no worker of this program says.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    rate_limited!(warn, "a message of guest {number} is lost: {error}");
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                // Its processes have ended, or were told to.
                Ok(None) | Err(_) => self.guests.stop_listening(number),
            }
            self.close(number, passed);
        }
    }

    fn hear_guest(&mut self, number: u64, message: &Message, passed: &[OwnedFd]) {
        match message {
            Message::Inflight => self.note_or_find(number, passed),
            Message::Disconnected(is_lost) => self.note_connection(number, *is_lost),
            other => {
                rate_limited!(warn, "guest {number} has sent {other:?} out of turn");
            }
        }
    }

    /// Closes what the guest's processes have passed.
    fn close(&mut self, number: u64, passed: Vec<OwnedFd>) {
        let passed = passed.into_iter();
        let (memory, others): (Vec<_>, Vec<_>) = passed.partition(|file| is_memory(file.as_fd()));
        drop(memory);
        if others.is_empty() {
            return;
        }
        if others.len() > MAX_PASSED {
            self.refuse(number, "more descriptors than any message has");
        }
        let mut children = Vec::new();
        if let Err(error) = process::close_in_children(others, &mut children) {
            rate_limited!(
                error,
                "descriptors of guest {number} stay open, since no process can be started that \
                 closes them: {error}"
            );
        }
        let children = children.into_iter().map(|child| (number, child));
        self.closing.extend(children);
        let closing = self.closing.iter();
        if closing.filter(|(one, _)| *one == number).count() > MAX_CLOSING {
            self.refuse(number, "descriptors that cannot be closed");
        }
    }

    /// Ends the connection of a guest whose worker does what no worker of this program does.
    fn refuse(&self, number: u64, what: &str) {
        rate_limited!(
            error,
            "guest {number} is dropped: its worker has sent {what}"
        );
        if let Some(guest) = self.guests.get(number) {
            guest.control.shut_down();
        }
        self.guests.stop_listening(number);
    }

    /// Passes the guest's channel to the keeper that has the session of its frontend, or notes by
    /// which memory its own one will be found.
    fn note_or_find(&mut self, number: u64, passed: &[OwnedFd]) {
        let (memory, asker) = match passed {
            [memory] => (memory, None),
            [memory, asker] if channel::is_end(asker.as_fd()) => (memory, Some(asker)),
            _ => return self.refuse(number, "other descriptors than a session is found by"),
        };
        let Ok(id) = memory_id(memory.as_fd()) else {
            return self.refuse(number, "no memory as that of its requests in flight");
        };
        let Some(asker) = asker else {
            if let Some(guest) = self.guests.get_mut(number) {
                guest.inflight = Some(id);
                guest.joins = None;
            }
            return;
        };
        let session = self.guests.session(number, id);
        match session {
            Session::Of(found) => {
                let message = Message::Reconnected { number };
                let found = self.guests.get(found);
                // If this fails, it has ended. The asker finds the channel closed, and asks again.
                let _ = found.map(|found| found.control.send_at_once(&message, &[asker.as_fd()]));
            }
            Session::Nobody => {
                let _ = channel::send(asker.as_fd(), &Message::Gone, &[], Instant::now());
            }
            // It finds the channel closed as well.
            Session::Unknown => {}
        }
        self.guests.join(number, session);
    }

    fn note_connection(&mut self, number: u64, is_lost: bool) {
        if let Some(guest) = self.guests.get_mut(number) {
            guest.has_announced = true;
            let since = guest.disconnected.unwrap_or_else(Instant::now);
            guest.disconnected = is_lost.then_some(since);
        }
        // Frontends that connect, mount and hang up must not fill the memory.
        let lost = || {
            self.guests
                .iter()
                .filter(|guest| guest.disconnected.is_some())
        };
        if lost().count() > self.means.max_guests
            && let Some(oldest) = lost().min_by_key(|guest| guest.disconnected)
        {
            rate_limited!(
                warn,
                "the session of guest {} is not kept any longer: {} sessions without a connection \
                 are kept, as many as guests are permitted (--max-guests)",
                oldest.number,
                self.means.max_guests
            );
            oldest.control.shut_down();
        }
    }
}

/// Whether this is a memory file. A file of another kind might have a server that does not answer.
fn is_memory(file: BorrowedFd<'_>) -> bool {
    fcntl_get_seals(file).is_ok()
}

/// Which memory file this is.
fn memory_id(file: BorrowedFd<'_>) -> io::Result<FileId> {
    if !is_memory(file) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(FileId::from(&fstat(file)?))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn a_memory_file_is_known_by_any_descriptor_and_no_other_file_is_taken_for_one() {
        let new = || memfd_create("inflight", MemfdFlags::ALLOW_SEALING).unwrap();
        let (one, other) = (new(), new());
        let id = |file: &OwnedFd| memory_id(file.as_fd()).unwrap();
        assert_eq!(id(&one), id(&one.try_clone().unwrap()));
        assert_ne!(id(&one), id(&other));
        let socket = channel::Channel::pair().unwrap().0;
        assert!(memory_id(socket.as_fd()).is_err());
    }
}
