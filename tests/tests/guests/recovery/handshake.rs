//! The worker is killed while the frontend sets its device up.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::{Driver, Setup};
use gangplank_vhost_user::Deadline;
use gangplank_vhost_user::message::Inbox;

use super::{MANY, kill_worker};

/// Messages of a handshake at most.
const MESSAGES: usize = 60;

/// Passes messages on from `from` to `to` until one of them is closed, and calls `passed` with the
/// number of those so far after each. Returns how many there were.
fn pass_on(
    from: &UnixStream,
    to: &UnixStream,
    mut passed: impl FnMut(usize) -> Result<()>,
) -> Result<usize> {
    let mut count = 0;
    while let Ok(message) = Inbox::default().wait(from.as_fd(), Deadline::NONE) {
        let descriptors = message.borrowed_descriptors();
        if message
            .send(to.as_fd(), &descriptors, Deadline::NONE)
            .is_err()
        {
            break;
        }
        count += 1;
        passed(count)?;
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
    Ok(count)
}

/// Sets a guest up, and kills the worker as soon as it has been sent message number `at`. Returns
/// how many messages there were.
fn set_up(fixture: &Fixture, at: usize) -> Result<usize> {
    let (near, far) = UnixStream::pair()?;
    let daemon = UnixStream::connect(fixture.socket())?;
    thread::scope(|scope| -> Result<usize> {
        let replies = scope.spawn(|| pass_on(&daemon, &far, |_| Ok(())));
        let messages = scope.spawn(|| {
            pass_on(&far, &daemon, |count| {
                if count == at {
                    kill_worker(fixture)?;
                }
                Ok(())
            })
        });
        let served = (|| -> Result<()> {
            let mut guest = Driver::on_stream(near, &Setup::default())?;
            guest.init()?;
            guest.getattr(NodeId::ROOT, None)?;
            // Replies that nobody has asked for would be there now.
            ensure!(guest.stop_ring(1)? == 2, "the ring stopped elsewhere");
            guest.start_ring(1)?;
            guest.getattr(NodeId::ROOT, None)?;
            Ok(())
        })();
        if served.is_err() {
            let _ = daemon.shutdown(std::net::Shutdown::Both);
        }
        let count = messages.join().expect("no panic")?;
        replies.join().expect("no panic")?;
        served.map(|()| count)
    })
}

#[test]
fn a_worker_that_dies_at_any_message_leaves_a_guest_that_works() -> Result<()> {
    let fixture = Fixture::quiet(&[MANY])?;
    for at in 1..=MESSAGES {
        let count = set_up(&fixture, at);
        let count = count.with_context(|| format!("killed at message {at}\n{}", fixture.log()))?;
        fixture.wait_until_idle()?;
        if at > count {
            ensure!(at > 20, "a handshake of {at} messages");
            return Ok(());
        }
    }
    anyhow::bail!("a handshake of more than {MESSAGES} messages")
}
