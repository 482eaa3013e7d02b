//! How long a peer may take.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::message::MessageError;

/// A point in time by which a peer has to act, or none.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    /// The time that was granted and its end.
    end: Option<(Duration, Instant)>,
}

impl Deadline {
    /// The peer may take as long as it wants.
    pub const NONE: Self = Self { end: None };

    /// The peer may take `limit` from now on.
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        let end = Instant::now().checked_add(limit);
        Self {
            end: end.map(|end| (limit, end)),
        }
    }

    /// Waits until `descriptor` has one of `events`, or an error, or its peer hangs up.
    ///
    /// # Errors
    /// [`MessageError::Late`] at the deadline, [`MessageError::Socket`] if poll fails.
    pub fn wait(&self, descriptor: impl AsFd, events: PollFlags) -> Result<(), MessageError> {
        let descriptor = descriptor.as_fd();
        loop {
            let timeout = match self.end {
                None => None,
                Some((limit, end)) => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(MessageError::Late(limit));
                    }
                    Timespec::try_from(left).ok()
                }
            };
            let mut awaited = [PollFd::from_borrowed_fd(descriptor, events)];
            match poll(&mut awaited, timeout.as_ref()) {
                Ok(1..) => return Ok(()),
                Ok(0) | Err(Errno::INTR) => {}
                Err(errno) => return Err(MessageError::Socket(errno.into())),
            }
        }
    }
}
