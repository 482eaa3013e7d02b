//! What an acceptor does that takes guests over: those of an older program, each by a new keeper,
//! or those of an acceptor that has died, with their keepers.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Acceptor, Error, Guest};
use crate::handover::PROTOCOL;
use crate::handover::channel::{Arrived, Channel, Message, unexpected};
use crate::keeper::{self, Succession};
use crate::state::arena::LAYOUT;
use crate::sys::process::WatchedFork;

/// How long the older program and the keepers may take for their next message. The supervisor's
/// limits are shorter.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The acceptor before, or the supervisor in its place.
#[derive(Debug)]
pub struct Predecessor {
    channel: Channel,
    guests: u32,
    connections: u64,
    /// It has ended. A guest that cannot be taken over ends as well.
    has_ended: bool,
}

/// What the older program has passed at once.
#[derive(Debug)]
pub struct Greeting {
    /// The listening socket.
    pub listener: OwnedFd,
    /// The user namespace, if its processes have one of their own.
    pub user_namespace: Option<OwnedFd>,
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
            has_ended: false,
        };
        Ok((predecessor, greeting))
    }

    /// The supervisor, which plays the acceptor of a program that has ended and whose guests were
    /// held ([`crate::holder`]).
    #[must_use]
    pub const fn held(channel: Channel, guests: u32, connections: u64) -> Self {
        Self {
            channel,
            guests,
            connections,
            has_ended: true,
        }
    }
}

/// A guest that is taken over.
enum NextGuest {
    /// By a new keeper.
    HandedOver {
        number: u64,
        is_logged: bool,
        /// Its present keeper.
        predecessor: Channel,
    },
    /// With its keeper: only the acceptor is another.
    Adopted(Guest),
}

impl Acceptor<'_> {
    /// Takes all guests over, and returns when the processes have ended that had them before. If
    /// that fails, the supervisor knows why.
    pub(super) fn take_over(mut self, predecessor: Predecessor) -> Result<Self, Error> {
        self.number = predecessor.connections;
        // Before that, the supervisor waits for another process's message.
        let known = self.await_supervisor(&Message::Known);
        known.map_err(|error| self.give_up(error))?;
        // Those that come by new keepers.
        let mut handed_over = Vec::new();
        for _ in 0..predecessor.guests {
            let next = NextGuest::receive(&predecessor.channel);
            let next = next.map_err(|error| self.give_up(error.into()))?;
            let (number, is_logged, channel) = match next {
                NextGuest::Adopted(guest) => {
                    let added = self.guests.add(guest);
                    added.map_err(|error| self.give_up(error.into()))?;
                    continue;
                }
                NextGuest::HandedOver {
                    number,
                    is_logged,
                    predecessor,
                } => (number, is_logged, predecessor),
            };
            let holder = self.holder_channel();
            let (holder, held_by) = holder.map_err(|error| self.give_up(error.into()))?;
            let forked =
                Channel::pair().and_then(|ends| Ok((self.means.confined.fork_keeper()?, ends)));
            match forked {
                Ok((WatchedFork::Child, (ours, control))) => {
                    drop((ours, holder, predecessor));
                    let (confined, config) = self.into_keeper();
                    let succession = Succession {
                        number,
                        control,
                        predecessor: channel,
                        is_logged,
                        holder: held_by,
                    };
                    keeper::take_over(succession, confined, config)
                }
                Ok((WatchedFork::Parent(process, handle), (control, theirs))) => {
                    drop((theirs, held_by));
                    let guest = Guest::new(number, is_logged, handle, control);
                    let told = guest.register(process, holder, &self.means.supervisor);
                    let added = told.and_then(|()| self.guests.add(guest));
                    added.map_err(|error| self.give_up(error.into()))?;
                    handed_over.push(number);
                }
                Err(error) => return Err(self.give_up(error.into())),
            }
        }
        let taken = self.lead_keepers(handed_over, predecessor.has_ended);
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

    /// Leads the keepers of these guests from one step to the next.
    fn lead_keepers(&mut self, mut numbers: Vec<u64>, has_ended: bool) -> Result<(), Error> {
        self.await_all(&mut numbers, &Message::Prepared, has_ended)?;
        self.means.supervisor.send(&Message::Prepared, &[])?;
        self.tell(&numbers, &Message::Take);
        self.await_all(&mut numbers, &Message::Placed, has_ended)?;
        self.means.supervisor.send(&Message::Placed, &[])?;
        self.await_supervisor(&Message::Go)?;
        // Adopted keepers as well: their acceptor may have died before it told them.
        let all: Vec<u64> = self.guests.iter().map(|guest| guest.number).collect();
        self.tell(&all, &Message::Go);
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

    /// Waits until the keeper of each of these guests says this. Removes those that have gone. If
    /// the older program has ended, so has a guest that cannot be taken over.
    fn await_all(
        &mut self,
        numbers: &mut Vec<u64>,
        expected: &Message,
        has_ended: bool,
    ) -> Result<(), Error> {
        let mut gone = Vec::new();
        for guest in self.guests.iter() {
            if !numbers.contains(&guest.number) {
                continue;
            }
            match guest.control.receive(deadline())? {
                None if has_ended => {
                    log::error!("guest {} cannot be served again", guest.number);
                    gone.push(guest.number);
                }
                None => {
                    return Err(Error::TakeOver(format!(
                        "the process for guest {} has died",
                        guest.number
                    )));
                }
                Some(arrived) => match arrived.message {
                    message if message == *expected => {}
                    Message::Gone => gone.push(guest.number),
                    Message::Failed(reason) if has_ended => {
                        log::error!("a guest cannot be served again: {reason}");
                        gone.push(guest.number);
                    }
                    Message::Failed(reason) => return Err(Error::TakeOver(reason)),
                    other => return Err(unexpected(&other).into()),
                },
            }
        }
        for number in gone {
            self.guests.remove(number);
            numbers.retain(|one| *one != number);
        }
        self.check_supervisor()
    }

    /// A keeper that does not listen has ended, which is found out later.
    fn tell(&self, numbers: &[u64], message: &Message) {
        for guest in self.guests.iter() {
            if numbers.contains(&guest.number) {
                let _ = guest.control.send(message, &[]);
            }
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
        let Arrived {
            message,
            descriptors,
        } = channel.expect(deadline())?;
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or(io::ErrorKind::InvalidData);
        match message {
            Message::Guest { number, is_logged } => Ok(Self::HandedOver {
                number,
                is_logged,
                predecessor: Channel::new(next()?),
            }),
            Message::Keeper {
                number, is_logged, ..
            } => {
                let control = Channel::new(next()?);
                Ok(Self::Adopted(Guest::new(
                    number,
                    is_logged,
                    next()?,
                    control,
                )))
            }
            other => Err(unexpected(&other)),
        }
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
