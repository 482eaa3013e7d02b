//! The thread that looks after waiting clients: replies of the daemon and of clients, and daemons
//! that were lost.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use gangplank_driver::Pending;
use gangplank_service::rate_limit::peer_at;
use gangplank_service::{error_chain, rate_limited};
use log::debug;

use super::daemon_file::{Answer, DaemonFile};
use super::locks::{Event, Locks};
use super::state::{State, Unconfirmed};
use crate::share::connection::Connection;
use crate::share::error::Result;
use crate::share::handle::FileHandle;

/// Interval at which other waits are tried again, and the connection is looked after.
const TICK: Duration = Duration::from_secs(1);

/// Shortest and longest interval at which waits at the daemon are looked after.
const POLL_INTERVAL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));

impl Locks {
    /// Looks after waiting clients, until the process ends.
    pub(super) fn run(&self, events: &Receiver<Event>) {
        let mut polls = 0_u32;
        let mut looked_after = Instant::now();
        loop {
            let interval = {
                let state = self.state.lock();
                let at_daemon = state.waiters.iter().any(|waiter| waiter.pending.is_some());
                match (at_daemon, state.table.is_empty()) {
                    (true, _) => Some((POLL_INTERVAL.0 * (1 + polls / 16)).min(POLL_INTERVAL.1)),
                    (false, false) => Some(TICK),
                    (false, true) => None,
                }
            };
            let event = match interval {
                Some(interval) => events.recv_timeout(interval).ok(),
                None => events.recv().ok(),
            };
            polls = if event.is_some() {
                0
            } else {
                polls.saturating_add(1)
            };
            if let Some(Event::Granted(id, taken)) = event {
                self.granted(id, taken);
            }
            if self.collect() {
                polls = 0;
            }
            if looked_after.elapsed() >= TICK {
                // Waits for the daemon, if it is away.
                if let Ok(connection) = self.share.connection() {
                    let mut state = self.state.lock();
                    self.follow(&mut state, &connection);
                    self.advance(&mut state, None);
                }
                looked_after = Instant::now();
            }
        }
    }

    /// Takes a client's answer to GRANTED.
    fn granted(&self, id: u64, taken: Option<bool>) {
        let mut state = self.state.lock();
        let Some(granted) = state.unconfirmed.remove(&id) else {
            return;
        };
        if taken == Some(true) {
            return;
        }
        debug!(
            "{}: does not take a lock that it has waited for",
            granted.owner.client.address
        );
        let Unconfirmed {
            file,
            owner,
            wanted,
        } = granted;
        self.release(&mut state, file, &owner, wanted.range);
        self.advance(&mut state, Some(file));
    }

    /// Takes the replies of the daemon to waits. Returns whether there was one.
    fn collect(&self) -> bool {
        let mut state = self.state.lock();
        let mut found = false;
        let mut position = 0;
        while let Some(waiter) = state.waiters.get_mut(position) {
            match waiter.pending.as_ref().map(Pending::is_answered) {
                None => position += 1,
                Some(Ok(false)) => {
                    if waiter.is_canceled {
                        let interrupted = waiter.pending.as_ref().map(Pending::interrupt);
                        debug!("ending a wait: {interrupted:?}");
                    }
                    position += 1;
                }
                Some(answered) => {
                    found = true;
                    let pending = waiter.pending.take();
                    let result = match (answered, pending) {
                        (Ok(_), Some(pending)) => pending.wait(),
                        (Err(error), _) => Err(error),
                        (Ok(_), None) => Ok(()),
                    };
                    match (result, waiter.is_canceled) {
                        (Ok(()), false) => self.grant(&mut state, position),
                        (Ok(()), true) => {
                            state.restore(position);
                            state.end(position);
                        }
                        (Err(_), true) => state.end(position),
                        (Err(error), false) => {
                            // It is tried again at the next tick.
                            debug!("waiting for a lock: {}", error_chain(&error));
                            position += 1;
                        }
                    }
                }
            }
        }
        found
    }

    /// Takes all locks again if they are not on this connection, but on one that was lost.
    pub(super) fn follow(&self, state: &mut State, connection: &Arc<Connection>) {
        if connection.number <= state.connection {
            return;
        }
        let before = state.connection;
        state.connection = connection.number;
        if before == 0 {
            return;
        }
        for position in (0..state.waiters.len()).rev() {
            if let Some(waiter) = state.waiters.get_mut(position) {
                waiter.pending = None;
                if waiter.is_canceled {
                    state.end(position);
                }
            }
        }
        for file in state.table.files() {
            if let Err(failure) = self.retake(state, connection, file) {
                self.share.met(connection, &failure);
                rate_limited!(
                    warn,
                    "locks of clients are lost with the daemon: {}",
                    error_chain(&failure)
                );
            }
        }
        self.advance(state, None);
    }

    /// Takes the locks on a file again.
    fn retake(
        &self,
        state: &mut State,
        connection: &Arc<Connection>,
        file: FileHandle,
    ) -> Result<()> {
        let node = self.share.resolve(connection, file)?;
        let at_daemon = DaemonFile::open(connection, &node)?;
        state.table.set_file(file, at_daemon.clone());
        for owner in state.table.owners(file) {
            let Some(entry) = state.table.entry(file, &owner) else {
                continue;
            };
            let number = entry.number;
            let all: Vec<_> = entry.ranges.iter().collect();
            for held in all {
                let answer = at_daemon.set(number, held.range, Some(held.exclusive))?;
                if answer == Answer::InUse {
                    rate_limited!(
                        peer = peer_at(owner.client.address),
                        warn,
                        "{}: a lock is lost: somebody else has taken it while the daemon was away",
                        owner.client.address
                    );
                    state.table.unlock(file, &owner, held.range);
                }
            }
            state.tidy(file, &owner);
        }
        Ok(())
    }
}
