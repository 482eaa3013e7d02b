//! What an acceptor does when the next program is to take its guests over.

use std::io;
use std::os::fd::AsFd;

use super::{Acceptor, Guest};
use crate::handover::PROTOCOL;
use crate::handover::channel::{Channel, Message};
use crate::state::arena::LAYOUT;

impl Acceptor<'_> {
    /// Does what the supervisor tells: hands the guests over to the program that it has started, or
    /// answers that it is alive. If handing over fails, the guests stay.
    pub(super) fn hand_over(&mut self) {
        let told = match self.means.supervisor.receive(None) {
            Ok(Some(told)) if told.message == Message::HandOver => told,
            Ok(Some(told)) if told.message == Message::Ping => {
                // If this fails, the supervisor has ended.
                let _ = self.means.supervisor.send(&Message::Pong, &[]);
                return;
            }
            Ok(_) => return,
            Err(error) => return log::error!("cannot understand the supervisor: {error}"),
        };
        let Some(successor) = told.descriptors.into_iter().next().map(Channel::new) else {
            return;
        };
        match self.introduce(&successor) {
            // Connections wait until it is decided who accepts them.
            Ok(()) => self.successor = Some(successor),
            Err(error) => log::error!("cannot hand the guests over: {error}"),
        }
    }

    /// Tells the successor of all guests, and their keepers of their successors.
    fn introduce(&self, successor: &Channel) -> io::Result<()> {
        let hello = Message::Hello {
            protocol: PROTOCOL,
            layout: LAYOUT,
            guests: u32::try_from(self.guests.len()).map_err(io::Error::other)?,
            connections: self.number,
        };
        successor.send(&hello, &self.passed())?;
        self.guests
            .iter()
            .try_for_each(|guest| guest.introduce(successor))
    }
}

impl Guest {
    /// The keeper is told first: whoever receives one end of their channel believes that the guest
    /// has gone when the other end is closed, also if that is because this process has just been
    /// killed.
    fn introduce(&self, successor: &Channel) -> io::Result<()> {
        let (ours, theirs) = Channel::pair()?;
        match self.control.send(&Message::HandOver, &[ours.as_fd()]) {
            // The keeper has just ended, and its successor finds that out by the closed socket.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            told => told?,
        }
        let message = Message::Guest {
            number: self.number,
            is_logged: self.is_logged,
        };
        successor.send(&message, &[theirs.as_fd()])
    }
}
