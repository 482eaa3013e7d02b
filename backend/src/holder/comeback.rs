//! What the supervisor of the next program does: finds what was held, and hands the guests over to
//! its own acceptor as if it was the acceptor and the keepers of an older program.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use gangplank_service::fd_store::{self, holder};
use gangplank_vhost_user::descriptors::SCM_MAX_FD;

use super::store::{Holding, PARTS, PREFIX, USERS, parse};
use crate::handover::channel::{Channel, Message, unexpected};
use crate::state::arena::Arena;
use crate::supervisor::Supervisor;
use crate::sys::process;

/// How long the new acceptor and its keepers may take for a step.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What was held while no process of the daemon ran.
#[derive(Debug, Default)]
pub struct Found {
    guests: BTreeMap<u64, FoundGuest>,
    /// The user namespace of an ordinary user's processes.
    pub users: Option<OwnedFd>,
    connections: u64,
}

#[derive(Debug, Default)]
struct FoundGuest {
    names: BTreeSet<String>,
    /// State, connection, root, and the mount namespace if there is one.
    parts: [Option<OwnedFd>; PARTS.len()],
    /// The others, by the number that they had.
    descriptors: BTreeMap<RawFd, OwnedFd>,
}

impl Found {
    /// What the process was started with. Must be called once, before the process opens
    /// descriptors.
    ///
    /// # Errors
    /// The descriptors are not open.
    pub fn inherited() -> io::Result<Self> {
        let mut found = Self::default();
        for (number, name) in fd_store::inherited()? {
            if name.starts_with(PREFIX) {
                found.add(name, process::adopt(number)?);
            }
        }
        Ok(found)
    }

    /// What a holder has passed.
    #[must_use]
    pub fn passed(descriptors: holder::Found) -> Self {
        let mut found = Self::default();
        for (name, descriptor) in descriptors {
            found.add(name, descriptor);
        }
        found
    }

    fn add(&mut self, name: String, descriptor: OwnedFd) {
        if name == USERS {
            self.users = Some(descriptor);
            return;
        }
        let Some((guest, what)) = parse(&name) else {
            return;
        };
        self.connections = self.connections.max(guest);
        let guest = self.guests.entry(guest).or_default();
        if let Some(part) = PARTS.iter().position(|part| *part == what) {
            guest.parts[part] = Some(descriptor);
        } else if let Ok(number) = what.parse() {
            guest.descriptors.insert(number, descriptor);
        }
        guest.names.insert(name);
    }

    /// Removes the guests that cannot be served again, and says why in the log. `holding` learns of
    /// all that is held.
    pub fn check(&mut self, holding: &mut Holding) {
        if self.users.is_some() {
            holding.note_users();
        }
        for (number, guest) in &self.guests {
            holding.note_found(*number, guest.names.clone());
        }
        self.guests.retain(|number, guest| match guest.check() {
            Ok(()) => true,
            Err(reason) => {
                log::error!("guest {number} was held, but cannot be served again: {reason}");
                false
            }
        });
    }

    /// Number of guests.
    #[must_use]
    pub fn guests(&self) -> usize {
        self.guests.len()
    }

    /// A number that no later guest's is below.
    #[must_use]
    pub const fn connections(&self) -> u64 {
        self.connections
    }

    /// Hands the guests over to the supervisor's acceptor, which waits for them at the other end of
    /// `predecessor`.
    ///
    /// # Errors
    /// The acceptor fails or does not answer.
    pub fn hand_over(self, predecessor: &Channel, supervisor: &mut Supervisor) -> io::Result<()> {
        supervisor.send(&Message::Known, &[])?;
        let mut keepers = Vec::new();
        for (number, guest) in self.guests {
            let (ours, theirs) = Channel::pair()?;
            let introduced = Message::Guest {
                number,
                is_logged: true,
            };
            predecessor.send(&introduced, &[theirs.as_fd()])?;
            let parts: Vec<_> = guest.parts.iter().flatten().map(AsFd::as_fd).collect();
            ours.send(&Message::Offer, &parts)?;
            keepers.push((number, ours, guest.descriptors));
        }
        expect(supervisor, &Message::Prepared)?;
        for (number, keeper, descriptors) in &keepers {
            // A keeper that fails says so to the acceptor. It ends with its guest.
            if let Err(error) = give(keeper, descriptors) {
                log::debug!("guest {number} was not taken over: {error}");
            }
        }
        expect(supervisor, &Message::Placed)?;
        drop(keepers);
        supervisor.send(&Message::Go, &[])
    }
}

impl FoundGuest {
    fn check(&self) -> Result<(), String> {
        let [state, connection, root, _] = &self.parts;
        let (Some(state), Some(_), Some(_)) = (state, connection, root) else {
            return Err("not all of it was held".to_owned());
        };
        let state = state.try_clone().map_err(|error| error.to_string())?;
        Arena::check(state).map_err(|error| format!("its state cannot be used: {error}"))
    }
}

/// Plays the old keeper of a guest.
fn give(keeper: &Channel, descriptors: &BTreeMap<RawFd, OwnedFd>) -> io::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    let asked = keeper.expect(Some(deadline))?.message;
    if asked != Message::Take {
        return Err(unexpected(&asked));
    }
    let end = descriptors.last_key_value().map_or(0, |(last, _)| last + 1);
    let end = end.cast_unsigned();
    keeper.send(&Message::Stopped { end }, &[])?;
    let all: Vec<_> = descriptors.iter().collect();
    for batch in all.chunks(SCM_MAX_FD) {
        let numbers = batch.iter().map(|(number, _)| number.cast_unsigned());
        keeper.send(&Message::Numbers(numbers.collect()), &[])?;
        let passed: Vec<_> = batch
            .iter()
            .map(|(_, descriptor)| descriptor.as_fd())
            .collect();
        keeper.send(&Message::Descriptors, &passed)?;
    }
    keeper.send(&Message::Incomplete, &[])
}

fn expect(supervisor: &mut Supervisor, expected: &Message) -> io::Result<()> {
    let message = supervisor.expect(Some(Instant::now() + TIMEOUT))?;
    match message == *expected {
        true => Ok(()),
        false => Err(unexpected(&message)),
    }
}
