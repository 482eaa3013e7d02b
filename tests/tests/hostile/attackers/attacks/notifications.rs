//! Call descriptors that take no more.

use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use gangplank_fuse::{GetattrIn, NodeId, Operation};
use gangplank_tests::driver::vhost_user::{message, words};
use gangplank_tests::driver::{Driver, Setup};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::Target;

/// The greatest value of an eventfd (eventfd(2)).
const FULL: u64 = u64::MAX - 1;

/// Requests whose replies would be signalled.
const REQUESTS: usize = 40;

/// How long the guest stays.
const STAYING: Duration = Duration::from_millis(200);

/// A blocking eventfd that would exceed its greatest value by the next signal.
pub(super) fn full_eventfd(target: &Target<'_>, _: u64) -> Result<()> {
    let call = eventfd(0, EventfdFlags::CLOEXEC)?;
    rustix::io::write(&call, &FULL.to_ne_bytes())?;
    submit_with(target, call.as_fd())
}

/// A blocking pipe without room.
pub(super) fn full_pipe(target: &Target<'_>, _: u64) -> Result<()> {
    let (_near, far) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setfl(&far, OFlags::NONBLOCK)?;
    loop {
        match rustix::io::write(&far, &[1; 4096]) {
            Ok(_) => {}
            Err(Errno::AGAIN) => break,
            Err(error) => return Err(error.into()),
        }
    }
    fcntl_setfl(&far, OFlags::empty())?;
    submit_with(target, far.as_fd())
}

/// A guest that takes signals by `call` sends requests, and leaves without a signal.
fn submit_with(target: &Target<'_>, call: BorrowedFd<'_>) -> Result<()> {
    let mut guest: Driver = target.guest(&Setup::default())?;
    // Ring 1, without the flag for "no descriptor".
    guest
        .peer
        .tell(message::SET_VRING_CALL, &words(&[1]), &[call])
        .context("another call descriptor")?;
    let operation = Operation::Getattr(GetattrIn::default());
    for _ in 0..REQUESTS {
        let _ticket = guest.submit(1, NodeId::ROOT, operation, &[], 512)?;
    }
    thread::sleep(STAYING);
    Ok(())
}
