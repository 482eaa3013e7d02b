//! A worker dies when it has carried out a vhost-user message and not sent the reply.

use std::thread;

use anyhow::{Context, Result, ensure};
use gangplank_backend::crash_hook::{Death, Point};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::{Driver, Setup};

use super::crash::Crashing;

/// Replies of a handshake at least, and at most.
const REPLIES: (u32, u32) = (10, 60);

#[test]
fn each_reply_of_a_handshake_is_sent_once_although_the_worker_dies_before() -> Result<()> {
    let crashing = Crashing::new(&["--max-crashes=100000"])?;
    for before in 0..REPLIES.1 {
        crashing.order((None, Point::Replying), Death::Killed, before, 1)?;
        let socket = crashing.fixture.socket();
        let (was_reached, mounted) = thread::scope(|scope| {
            let mounting = scope.spawn(move || Driver::mount(socket, &Setup::default()));
            let was_reached = crashing.kill(1, || Ok(mounting.is_finished()));
            (was_reached, mounting.join().expect("no panic"))
        });
        let context = || format!("after {before} replies: {}", crashing.fixture.log());
        let mut guest = mounted.with_context(context)?;
        if !was_reached? {
            crashing.clear()?;
            ensure!(before > REPLIES.0, "a handshake of {before} replies");
            return Ok(());
        }
        crashing.clear()?;
        guest.getattr(NodeId::ROOT, None).with_context(context)?;
        // A reply that was sent twice would be taken for this one.
        ensure!(guest.stop_ring(1)? == 2, "the ring stopped elsewhere");
        guest.start_ring(1)?;
        guest.getattr(NodeId::ROOT, None).with_context(context)?;
        drop(guest);
        crashing.fixture.wait_until_idle()?;
    }
    anyhow::bail!("a handshake of more than {} replies", REPLIES.1)
}
