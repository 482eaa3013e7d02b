//! An event that tells waiting threads to end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// Set once. Every wait from then on ends at once.
#[derive(Debug)]
pub struct StopEvent(OwnedFd);

/// How a wait ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WaitEnd {
    /// The event was set.
    Stopped,
    /// The connection was hung up.
    HungUp,
    /// An eventfd was signalled.
    Signalled,
    /// The limit has passed.
    TimedOut,
}

impl StopEvent {
    /// Not set. Fails as `eventfd` does.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(eventfd(0, flags)?))
    }

    /// Sets it.
    pub fn set(&self) {
        // Fails only if the counter is full, and then the event is set anyway.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Whether it was set.
    pub fn is_set(&self) -> bool {
        matches!(self.wait(None, Some(Duration::ZERO)), Ok(WaitEnd::Stopped))
    }

    /// Waits until the event is set, `connection` is hung up if given, or `limit` has passed if
    /// given.
    pub fn wait(
        &self,
        connection: Option<&OwnedFd>,
        limit: Option<Duration>,
    ) -> io::Result<WaitEnd> {
        let hang_up = connection.map(|connection| PollFd::new(connection, PollFlags::RDHUP));
        self.wait_with(hang_up, limit, WaitEnd::HungUp)
    }

    /// Waits until the event is set, one of `eventfds` is signalled, or `limit` has passed. Leaves
    /// the eventfds as they are.
    pub fn wait_for_signal<'a>(
        &self,
        eventfds: impl Iterator<Item = BorrowedFd<'a>>,
        limit: Duration,
    ) -> io::Result<WaitEnd> {
        let signals = eventfds.map(|eventfd| PollFd::from_borrowed_fd(eventfd, PollFlags::IN));
        self.wait_with(signals, Some(limit), WaitEnd::Signalled)
    }

    fn wait_with<'a>(
        &'a self,
        others: impl IntoIterator<Item = PollFd<'a>>,
        limit: Option<Duration>,
        end_by_others: WaitEnd,
    ) -> io::Result<WaitEnd> {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut awaited = vec![PollFd::new(&self.0, PollFlags::IN)];
        awaited.extend(others);
        loop {
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            let left = left.map(Timespec::try_from).transpose();
            match poll(&mut awaited, left.map_err(io::Error::other)?.as_ref()) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(0) => return Ok(WaitEnd::TimedOut),
                Ok(_) => break,
            }
        }
        let is_set = awaited
            .first()
            .is_some_and(|stop| !stop.revents().is_empty());
        Ok(match is_set {
            true => WaitEnd::Stopped,
            false => end_by_others,
        })
    }
}

/// Polls as readable, for good, once it was set. Nothing may be read from it.
impl AsFd for StopEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_was_said_is_heard_by_every_wait_before_anything_else() {
        let stop = StopEvent::new().unwrap();
        let (connection, other) = UnixStream::pair().unwrap();
        drop(other);
        let connection = OwnedFd::from(connection);
        assert!(!stop.is_set());
        assert_eq!(stop.wait(Some(&connection), None).unwrap(), WaitEnd::HungUp);
        stop.set();
        for _ in 0..2 {
            assert_eq!(
                stop.wait(Some(&connection), None).unwrap(),
                WaitEnd::Stopped
            );
            assert!(stop.is_set());
        }
    }

    #[test]
    fn wait_with_nothing_to_hear_ends_in_time() {
        let stop = StopEvent::new().unwrap();
        let (connection, _other) = UnixStream::pair().unwrap();
        let limit = Some(Duration::from_millis(20));
        let waited = stop.wait(Some(&connection.into()), limit).unwrap();
        assert_eq!(waited, WaitEnd::TimedOut);
    }
}
