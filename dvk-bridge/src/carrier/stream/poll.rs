//! Waiting for descriptors.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};
use rustix::io::Errno;

/// How long a thread sleeps when nothing happens. It is woken for everything, so this only bounds mistakes.
pub(crate) const MAX_POLL_WAIT: Duration = Duration::from_secs(60);

/// Waits until one of `ready` is, at most for `limit`: how many are. Signals do not end it early.
pub(crate) fn poll_for(ready: &mut [PollFd<'_>], limit: Duration) -> Result<usize, Errno> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or(Timespec {
            tv_sec: i32::MAX.into(),
            tv_nsec: 0,
        });
        match poll(ready, Some(&left)) {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}
