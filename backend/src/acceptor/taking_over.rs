//! What an acceptor does that takes the guests of an older program over.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus, waitpid};

use super::{Acceptor, Error, Guest};
use crate::handover::PROTOCOL;
use crate::handover::channel::{Arrived, Channel, Message, unexpected};
use crate::keeper::{self, Succession};
use crate::state::arena::LAYOUT;
use crate::sys::process::{self, Forked};

/// How long the older program and the keepers may take for their next message. The supervisor's
/// limits are shorter.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The acceptor of the older program.
#[derive(Debug)]
pub struct Predecessor {
    channel: Channel,
    guests: u32,
    connections: u64,
}

/// What the older program has passed at once.
#[derive(Debug)]
pub struct Greeting {
    /// The listening socket.
    pub listener: OwnedFd,
    /// The user namespace, if its processes have one of their own.
    pub user_namespace: Option<OwnedFd>,
}

/// Checks that a keeper has ended because its guest has gone.
fn has_gone(guest: &Guest) -> Result<(), Error> {
    let status = loop {
        match waitpid(Some(guest.keeper), WaitOptions::empty()) {
            Err(Errno::INTR) => {}
            waited => break waited.ok().flatten().map(|(_, status)| status),
        }
    };
    match status.and_then(WaitStatus::exit_status) {
        Some(0) => Ok(()),
        _ => Err(Error::TakeOver(format!(
            "the process for guest {} has died",
            guest.number
        ))),
    }
}

fn deadline() -> Option<Instant> {
    Some(Instant::now() + TIMEOUT)
}

impl Predecessor {
    /// Meets the older program's acceptor, and checks that this program can take over from it.
    ///
    /// # Errors
    /// It cannot: [`Error::TakeOver`].
    pub fn meet(channel: Channel) -> Result<(Self, Greeting), Error> {
        let Arrived {
            message,
            descriptors,
        } = channel.expect(deadline())?;
        let Message::Hello {
            protocol,
            layout,
            guests,
            connections,
        } = message
        else {
            return Err(unexpected(&message).into());
        };
        if protocol != PROTOCOL {
            return Err(Error::TakeOver(format!(
                "the running program hands guests over by protocol {protocol}, this one takes \
                 them over by protocol {PROTOCOL}"
            )));
        }
        if layout != LAYOUT {
            return Err(Error::TakeOver(format!(
                "the running program keeps guests' states in version {layout}, and this one reads \
                 version {LAYOUT}"
            )));
        }
        let mut descriptors = descriptors.into_iter();
        let listener = descriptors.next();
        let listener = listener.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        let greeting = Greeting {
            listener,
            user_namespace: descriptors.next(),
        };
        let predecessor = Self {
            channel,
            guests,
            connections,
        };
        Ok((predecessor, greeting))
    }
}

/// What the keeper of a guest begins with that is taken over.
struct NextGuest {
    number: u64,
    is_logged: bool,
    /// Its present keeper.
    predecessor: Channel,
    /// The ends of the channel between this process and the new keeper.
    ends: (Channel, Channel),
}

impl Acceptor<'_> {
    /// Takes all guests over, each by a keeper, and returns when the older program has ended. If
    /// that fails, the supervisor knows why.
    pub(super) fn take_over(mut self, predecessor: Predecessor) -> Result<Self, Error> {
        self.number = predecessor.connections;
        for _ in 0..predecessor.guests {
            let next = NextGuest::receive(&predecessor.channel);
            let next = next.map_err(|error| self.give_up(error.into()))?;
            let (ours, control) = next.ends;
            match process::fork() {
                Ok(Forked::Child) => {
                    drop((ours, predecessor));
                    let acceptor = self.process;
                    let (confined, config) = self.into_keeper();
                    let succession = Succession {
                        number: next.number,
                        acceptor,
                        control,
                        predecessor: next.predecessor,
                        is_logged: next.is_logged,
                    };
                    keeper::take_over(succession, confined, config)
                }
                Ok(Forked::Parent(keeper)) => self.guests.push(Guest {
                    number: next.number,
                    keeper,
                    control: Some(ours),
                    is_logged: next.is_logged,
                }),
                Err(error) => return Err(self.give_up(error.into())),
            }
        }
        let taken = self.lead_keepers();
        taken.map_err(|error| self.give_up(error))?;
        log::info!("{} guests were taken over", self.guests.len());
        Ok(self)
    }

    fn give_up(&self, error: Error) -> Error {
        // If this fails, the supervisor has given up.
        let failed = Message::failed(&error.to_string());
        let _ = self.means.supervisor.send(&failed, &[]);
        error
    }

    /// Leads the keepers from one step to the next.
    fn lead_keepers(&mut self) -> Result<(), Error> {
        self.await_supervisor(&Message::Known)?;
        self.await_all(&Message::Prepared)?;
        self.means.supervisor.send(&Message::Prepared, &[])?;
        self.tell_all(&Message::Take);
        self.await_all(&Message::Placed)?;
        self.means.supervisor.send(&Message::Placed, &[])?;
        self.await_supervisor(&Message::Go)?;
        self.tell_all(&Message::Go);
        Ok(())
    }

    /// Waits without a limit: the supervisor has one.
    fn await_supervisor(&self, expected: &Message) -> Result<(), Error> {
        let told = self.means.supervisor.expect(None)?.message;
        match told == *expected {
            true => Ok(()),
            false => Err(unexpected(&told).into()),
        }
    }

    /// Waits until each keeper says this. A guest whose keeper says nothing more has gone.
    fn await_all(&mut self, expected: &Message) -> Result<(), Error> {
        let mut present = Vec::new();
        for guest in std::mem::take(&mut self.guests) {
            let Some(control) = &guest.control else {
                continue;
            };
            match control.receive(deadline())? {
                None => has_gone(&guest)?,
                Some(arrived) => match arrived.message {
                    message if message == *expected => present.push(guest),
                    Message::Failed(reason) => return Err(Error::TakeOver(reason)),
                    other => return Err(unexpected(&other).into()),
                },
            }
        }
        self.guests = present;
        self.check_supervisor()
    }

    /// A keeper that does not listen has ended, which is found out later.
    fn tell_all(&self, message: &Message) {
        for control in self
            .guests
            .iter()
            .filter_map(|guest| guest.control.as_ref())
        {
            let _ = control.send(message, &[]);
        }
    }

    /// Gives up as soon as the supervisor has.
    fn check_supervisor(&self) -> Result<(), Error> {
        let mut ready = [PollFd::from_borrowed_fd(
            self.means.supervisor.as_fd(),
            PollFlags::RDHUP,
        )];
        match poll(&mut ready, Some(&Timespec::default())) {
            Ok(0) => Ok(()),
            _ => Err(Error::TakeOver("the supervisor has given up".to_owned())),
        }
    }
}

impl NextGuest {
    fn receive(channel: &Channel) -> io::Result<Self> {
        let arrived = channel.expect(deadline())?;
        let Message::Guest { number, is_logged } = arrived.message else {
            return Err(unexpected(&arrived.message));
        };
        let predecessor = arrived.descriptors.into_iter().next().map(Channel::new);
        Ok(Self {
            number,
            is_logged,
            predecessor: predecessor.ok_or(io::ErrorKind::InvalidData)?,
            ends: Channel::pair()?,
        })
    }
}

/// An error of a channel.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::TakeOver(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_another_version_is_refused_before_anything_else() {
        for (protocol, layout, culprit) in [
            (PROTOCOL + 1, LAYOUT, "protocol"),
            (PROTOCOL, LAYOUT + 1, "version"),
        ] {
            let (one, other) = Channel::pair().unwrap();
            let hello = Message::Hello {
                protocol,
                layout,
                guests: 0,
                connections: 0,
            };
            let socket = std::fs::File::open("/dev/null").unwrap();
            one.send(&hello, &[socket.as_fd()]).unwrap();
            let error = Predecessor::meet(other).unwrap_err().to_string();
            assert!(error.contains(culprit), "{error}");
        }
    }
}
