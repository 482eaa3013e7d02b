//! A worker dies while the requests of a ring finish that its frontend has disabled.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_backend::crash_hook::{Death, Point};
use gangplank_fuse::{GetattrIn, NodeId, Opcode, Operation};
use gangplank_tests::driver::Setup;
use gangplank_tests::driver::vhost_user::{VERSION, message, ring_state};

use super::crash::Crashing;
use super::requests::mkdir;

/// The ring of the requests.
const RING: usize = 1;

/// Limit for a worker to get to the point at which it dies, or to take a message.
const REACHING: Duration = Duration::from_secs(60);

#[test]
fn requests_of_a_disabled_ring_are_answered_and_no_others_are_taken_by_the_next_worker()
-> Result<()> {
    let crashing = Crashing::new(&["--max-crashes=100000"])?;
    for (point, name) in [
        (Point::Begun, c"one"),
        (Point::CarriedOut, c"two"),
        (Point::Done, c"three"),
    ] {
        let context = || format!("{point:?}: {}", crashing.fixture.log());
        let mut guest = crashing.fixture.guest(&Setup::default())?;
        let used = guest.rings[RING].used + 2;
        let before: u16 = guest.memory.load_or_zero(used);
        crashing.order((Some(Opcode::Mkdir), point), Death::Killed, 0, 1)?;
        let ticket = guest.submit(RING, NodeId::ROOT, mkdir(name), &[], 512)?;
        let deadline = Instant::now() + REACHING;
        while crashing.died()? == 0 {
            ensure!(Instant::now() < deadline, "no worker gets to the point");
            thread::sleep(Duration::from_millis(1));
        }
        // Without a reply, as QEMU disables rings before it stops them.
        let payload = ring_state(RING.try_into()?, 0);
        guest
            .peer
            .send(message::SET_VRING_ENABLE, VERSION, &payload, &[])?;
        // The worker takes the message, and cannot carry it out, of which nothing is seen.
        thread::sleep(Duration::from_millis(300));
        let getattr = Operation::Getattr(GetattrIn::default());
        let later = guest.submit(RING, NodeId::ROOT, getattr, &[], 512)?;
        ensure!(crashing.kill(1, || Ok(false))?);
        crashing.clear()?;
        let stopped = guest.stop_ring(RING).with_context(context)?;
        ensure!(
            stopped == u32::from(before) + 1,
            "{point:?}: the ring stopped at {stopped}, after {before} requests"
        );
        ensure!(
            guest.is_finished(&ticket)?,
            "{point:?}: a request has no reply"
        );
        guest.finish(ticket).with_context(context)?;
        let made = crashing.fixture.share().join(name.to_str()?);
        ensure!(made.is_dir(), "{point:?}: nothing was made");
        // The driver goes on with the one that was not taken.
        guest.start_ring(RING)?;
        guest.finish(later).with_context(context)?;
        drop(guest);
        crashing.fixture.wait_until_idle()?;
    }
    Ok(())
}
