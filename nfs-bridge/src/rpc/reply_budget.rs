//! How many bytes of replies are held for clients that do not take them.
//!
//! Room is reserved for the largest reply that a call can have, before the call is read any
//! further, and given back when the reply is sent. So a client that asks for much and takes nothing
//! is not read from any more. A connection without calls always may begin one. So none waits for
//! another, whatever that does with its replies.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of one connection beyond which it may begin no further call: eight of the largest READs,
/// which is more than a client's read-ahead asks for at once.
const MAX_OF_CONNECTION: usize = 8 << 20;

/// Bytes of all connections beyond which each may have one call.
const MAX_OF_ALL: usize = 64 << 20;

/// The bytes of all connections.
#[derive(Debug, Default)]
pub struct ReplyBudget(AtomicUsize);

impl ReplyBudget {
    fn reserved(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The bytes of one connection.
#[derive(Debug, Clone)]
pub struct ReplyAccount {
    all: Arc<ReplyBudget>,
    own: Arc<AtomicUsize>,
}

impl ReplyAccount {
    /// The account of a new connection.
    #[must_use]
    pub fn new(all: &Arc<ReplyBudget>) -> Self {
        Self {
            all: Arc::clone(all),
            own: Arc::default(),
        }
    }

    /// Bytes that are reserved for all connections.
    #[cfg(test)]
    pub(crate) fn all_reserved(&self) -> usize {
        self.all.reserved()
    }

    /// Whether the connection may begin another call.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let own = self.own.load(Ordering::Relaxed);
        own == 0 || own < MAX_OF_CONNECTION && self.all.reserved() < MAX_OF_ALL
    }

    /// Reserves bytes until the reservation is dropped.
    #[must_use]
    pub fn reserve(&self, bytes: usize) -> Reservation {
        let mut reservation = Reservation {
            account: self.clone(),
            bytes: 0,
        };
        reservation.set(bytes);
        reservation
    }
}

/// Bytes that are reserved for one reply.
#[derive(Debug)]
pub struct Reservation {
    account: ReplyAccount,
    bytes: usize,
}

impl Reservation {
    /// Reserves another number of bytes: those that the reply has.
    pub fn set(&mut self, bytes: usize) {
        for counter in [&self.account.all.0, &*self.account.own] {
            // Never below 0, since what is subtracted was added before.
            counter.fetch_add(bytes, Ordering::Relaxed);
            counter.fetch_sub(self.bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_without_calls_has_room_whatever_others_hold() {
        let all = Arc::new(ReplyBudget::default());
        let greedy: Vec<_> = (0..8).map(|_| ReplyAccount::new(&all)).collect();
        let mut held = Vec::new();
        for account in &greedy {
            while account.has_room() {
                held.push(account.reserve(1 << 20));
            }
        }
        assert_eq!(all.reserved(), MAX_OF_ALL);
        let other = ReplyAccount::new(&all);
        assert!(other.has_room());
        let one = other.reserve(100);
        assert!(!other.has_room());
        // One reply turns out to be short.
        held[0].set(100);
        assert!(other.has_room() && greedy[0].has_room());
        assert!(!greedy[1].has_room());
        drop((one, held));
        assert_eq!(all.reserved(), 0);
    }
}
