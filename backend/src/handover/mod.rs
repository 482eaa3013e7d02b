//! Handing guests over to a new program ([reload]): nothing is unmounted, closed or unlocked.
//!
//! On SIGHUP the supervisor starts the program that is at its path now, which builds a second tree
//! of processes beside the serving one. Each old keeper gives what its guest has to a new keeper:
//! the connection, the state's memory, and all descriptors under the same numbers. Then the new
//! worker goes on as after a death.
//!
//! ```text
//! supervisor ─┬─ old acceptor ── old keeper ── worker        (1) Hello, Guest ... : new acceptor
//!             │        └──────────┐  │                       (2) Offer: state, connection
//!             ├─ new program ─┐   └──┼─ socket of a guest    (3) Take: the old worker is stopped
//!             └─ new acceptor ┴─ new keeper                  (4) Descriptors, End
//! ```
//!
//! Until all new keepers hold everything, any failure leaves the old keepers with all that they
//! had, and they start their next workers. The supervisor decides: it kills the old processes, and
//! only when they have ended tells the new ones to serve. At last it executes the new program
//! itself, so that its process id stays what it was.
//!
//! When an acceptor has died, the supervisor starts the running program in the same way, and takes
//! the old acceptor's place towards it: it passes the channels to the keepers, and these go on.
//!
//! [reload]: reload

pub mod channel;
pub mod inherited;
pub mod program;
pub mod receiving;
pub mod reload;
pub mod report;
pub mod sending;

use std::env;
use std::io;
use std::os::fd::RawFd;

use self::channel::Channel;
use crate::sys::process;

/// The version of what the programs say to each other. Programs with different ones do not take
/// over from each other.
pub const PROTOCOL: u32 = 3;

/// The variable by which a supervisor tells the program that it starts what to take over: the
/// numbers of the channels to the supervisor and to the old acceptor, separated by a comma.
pub const TAKEOVER: &str = "GANGPLANKD_TAKEOVER";

/// The variable by which a supervisor tells the program that it becomes what it supervises
/// ([`inherited`]).
pub const SUPERVISE: &str = "GANGPLANKD_SUPERVISE";

/// What a new program begins with that takes guests over.
#[derive(Debug)]
pub struct Takeover {
    /// The supervisor, which becomes this program's.
    pub supervisor: Channel,
    /// The acceptor that serves now, or the supervisor in the place of one that has died.
    pub predecessor: Channel,
}

/// Whether a supervisor has started this process to take guests over.
#[must_use]
pub fn is_successor() -> bool {
    env::var_os(TAKEOVER).is_some()
}

impl Takeover {
    /// What the process was started with, if it is to take guests over. Must be called once, before
    /// the process opens descriptors.
    ///
    /// # Errors
    /// The descriptors are not open.
    pub fn inherited() -> io::Result<Option<Self>> {
        let Some(numbers) = env::var_os(TAKEOVER) else {
            return Ok(None);
        };
        let invalid = || {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{TAKEOVER} is malformed"),
            )
        };
        let numbers = numbers.into_string().map_err(|_| invalid())?;
        let (supervisor, predecessor) = numbers.split_once(',').ok_or_else(invalid)?;
        let adopt = |number: &str| {
            let number: RawFd = number.parse().map_err(|_| invalid())?;
            Channel::from_inherited(process::adopt(number)?)
        };
        Ok(Some(Self {
            supervisor: adopt(supervisor)?,
            predecessor: adopt(predecessor)?,
        }))
    }
}
