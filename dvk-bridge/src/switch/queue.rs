//! The commands that wait for a program: their order, their source and destination, and the time
//! since the queue is full.

use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use crate::abi::{Endpoint, Header, MAX_PAYLOAD};
use crate::carrier::local::{GENERATION, no_node};

/// Bytes from which a queue is full. The program must read as many within the switch's read
/// timeout, or all but half of them.
pub(super) const FULL_SIZE: usize = 1 << 20;

/// Bytes from one endpoint to another that may wait. A queue with as many is full, although a
/// command that is half sent counts as a whole.
const PAIR_LIMIT: usize = FULL_SIZE + 2 * MAX_PAYLOAD;

/// Bytes that may wait for a program: one copy for each endpoint of a container, and some more.
const MAX_QUEUED: usize = 16 << 20;

/// Container, source and destination. Two endpoints have one exchange at a time, with at most one
/// copy.
pub(super) type Pair = (i32, Endpoint, Endpoint);

/// The queue of one program.
#[derive(Default)]
pub(super) struct Queue {
    bytes: Vec<u8>,
    /// Bytes of `bytes` that are sent.
    sent: usize,
    /// Bytes that were ever queued, and ever sent.
    put: u64,
    taken: u64,
    /// The commands in `bytes` that count for a pair, in order.
    parts: VecDeque<Part>,
    /// Waiting bytes by pair.
    pairs: HashMap<Pair, usize>,
    full: Option<FullSince>,
    /// The queue has exceeded its limit.
    overrun: bool,
}

struct Part {
    pair: Pair,
    bytes: usize,
    /// The value of `put` at its end.
    end: u64,
}

/// The program must read some.
#[derive(Clone, Copy)]
struct FullSince {
    since: Instant,
    /// The value of `taken` at that time.
    taken: u64,
}

/// Why a program is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum QueueError {
    #[error("the program has not read {FULL_SIZE} of its queued bytes within {0:?}")]
    Slow(Duration),
    #[error("the program does not read: {MAX_QUEUED} bytes are queued for it")]
    Overrun,
}

impl Queue {
    /// Queues a command, counted for `pair` if it belongs to one. Beyond the limit the command is
    /// dropped, and [`Self::overdue`] reports it from then on.
    pub(super) fn put(&mut self, pair: Option<Pair>, header: Header, payload: &[u8]) {
        let bytes = GENERATION.header_size() + payload.len();
        if self.overrun || self.unsent() + bytes > MAX_QUEUED {
            self.overrun = true;
            return;
        }
        let header = Header {
            snode: no_node().raw(),
            dnode: no_node().raw(),
            len: i32::try_from(payload.len()).unwrap_or(i32::MAX),
            ..header
        };
        header.encode(GENERATION, &mut self.bytes);
        self.bytes.extend_from_slice(payload);
        self.put += count(bytes);
        if let Some(pair) = pair {
            let end = self.put;
            self.parts.push_back(Part { pair, bytes, end });
            *self.pairs.entry(pair).or_default() += bytes;
        }
        self.note_full();
    }

    /// Sends what the program accepts at once.
    pub(super) fn send(&mut self, socket: impl AsFd) -> Result<(), Errno> {
        while let Some(rest @ [_, ..]) = self.bytes.get(self.sent..) {
            match send(&socket, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    self.sent += sent;
                    self.taken += count(sent);
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        if self.unsent() == 0 {
            // Memory from a peak is given back.
            self.bytes.clear();
            self.bytes.shrink_to(FULL_SIZE);
            self.sent = 0;
        } else if self.sent > FULL_SIZE {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        while let Some(part) = self.parts.pop_front_if(|part| part.end <= self.taken) {
            if let Some(bytes) = self.pairs.get_mut(&part.pair) {
                *bytes -= part.bytes;
                if *bytes == 0 {
                    self.pairs.remove(&part.pair);
                }
            }
        }
        self.note_full();
        Ok(())
    }

    /// Bytes that wait.
    pub(super) fn unsent(&self) -> usize {
        self.bytes.len().saturating_sub(self.sent)
    }

    /// Whether more of `pair` waits than two endpoints that follow the rules can have in progress.
    pub(super) fn is_pair_full(&self, pair: &Pair) -> bool {
        self.pairs
            .get(pair)
            .is_some_and(|&bytes| bytes > PAIR_LIMIT)
    }

    /// When the queue must be checked again without an event.
    pub(super) fn deadline(&self, read_timeout: Duration) -> Option<Instant> {
        if self.overrun {
            return Some(Instant::now());
        }
        self.full.map(|full| full.since + read_timeout)
    }

    /// The error if the program has not read in time.
    pub(super) fn overdue(&self, read_timeout: Duration) -> Option<QueueError> {
        if self.overrun {
            return Some(QueueError::Overrun);
        }
        let full = self.full?;
        (full.since.elapsed() >= read_timeout).then_some(QueueError::Slow(read_timeout))
    }

    /// Starts the time limit anew if the program has read enough, or if the queue has become full.
    fn note_full(&mut self) {
        // Room for a few bytes is not enough. A program for which more keeps arriving would never
        // have to read the rest.
        if self.unsent() <= FULL_SIZE / 2 {
            self.full = None;
        }
        let taken = self.taken;
        let begins = match self.full {
            Some(full) => taken - full.taken >= count(FULL_SIZE),
            None => self.unsent() > FULL_SIZE,
        };
        if begins {
            let since = Instant::now();
            self.full = Some(FullSince { since, taken });
        }
    }
}

/// A size as a 64-bit count.
fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::abi::Command;

    const READ_TIMEOUT: Duration = Duration::from_secs(3600);
    const PAIR: Pair = (0, Endpoint::from_raw(1), Endpoint::from_raw(2));

    /// Puts commands of `pair` into `queue` while `more` holds.
    fn fill(queue: &mut Queue, pair: Option<Pair>, more: impl Fn(&Queue) -> bool) {
        while more(queue) {
            let header = Header::new(Command::COPYIN_DATA);
            queue.put(pair, header, &[0; MAX_PAYLOAD]);
        }
    }

    #[test]
    fn taken_bytes_are_removed() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let mut queue = Queue::default();
        fill(&mut queue, Some(PAIR), |it| !it.is_pair_full(&PAIR));
        assert!(queue.deadline(READ_TIMEOUT).is_some());
        let mut left = queue.unsent();
        let mut room = vec![0; MAX_PAYLOAD];
        while left > 0 {
            queue.send(&here).unwrap();
            left -= there.read(&mut room).unwrap();
        }
        assert_eq!((queue.unsent(), queue.pairs.len()), (0, 0));
        assert_eq!(queue.deadline(READ_TIMEOUT), None);
        assert!(queue.bytes.capacity() <= FULL_SIZE);
    }

    #[test]
    fn reading_a_little_does_not_extend_the_time() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let mut queue = Queue::default();
        fill(&mut queue, None, |it| it.unsent() <= 2 * FULL_SIZE);
        let deadline = queue.deadline(READ_TIMEOUT);
        queue.send(&here).unwrap();
        // Just enough for the system to accept some more.
        let mut few = [0; MAX_PAYLOAD];
        let before = queue.taken;
        while queue.taken == before {
            assert!(there.read(&mut few).unwrap() > 0);
            queue.send(&here).unwrap();
        }
        assert_eq!(queue.deadline(READ_TIMEOUT), deadline);
        while queue.taken < count(FULL_SIZE) {
            assert!(there.read(&mut few).unwrap() > 0);
            queue.send(&here).unwrap();
        }
        assert!(queue.deadline(READ_TIMEOUT) > deadline || queue.unsent() <= FULL_SIZE);
        assert_eq!(queue.overdue(READ_TIMEOUT), None);
        fill(&mut queue, None, |it| it.unsent() <= 2 * FULL_SIZE);
        let slow = QueueError::Slow(Duration::ZERO);
        assert_eq!(queue.overdue(Duration::ZERO), Some(slow));
    }

    #[test]
    fn the_queue_has_a_limit() {
        let mut queue = Queue::default();
        fill(&mut queue, None, |it| it.overdue(READ_TIMEOUT).is_none());
        assert_eq!(queue.overdue(READ_TIMEOUT), Some(QueueError::Overrun));
        assert!(queue.unsent() <= MAX_QUEUED && queue.unsent() > MAX_QUEUED - 2 * MAX_PAYLOAD);
    }
}
