//! Waits for descriptors.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};
use rustix::io::Errno;

/// Longest wait of a thread without an event. Every event wakes the thread, so this only bounds the
/// effect of a bug.
pub(crate) const MAX_POLL_WAIT: Duration = Duration::from_secs(60);

/// Waits up to `limit` until one of `ready` is ready. Returns the number of ready descriptors.
/// Signals do not end the wait.
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
