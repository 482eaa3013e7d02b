//! A worker that aborts, as it does after a fault that it finds in itself.

use anyhow::{Context, Result};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::Setup;
use gangplank_tests::driver::fixture::{Fixture, wait_for_log};
use rustix::process::{Pid, Signal, kill_process};

/// What the keeper logs of it.
const ENDED: &str = "the worker of guest 2 was ended by signal 6: it found a fault in itself";

#[test]
fn an_aborted_worker_is_reported_as_such_and_takes_no_other_guest_along() -> Result<()> {
    let mut fixture = Fixture::new(&[])?;
    let mut guest = fixture.guest(&Setup::default())?;
    guest.lookup(NodeId::ROOT, c"neighbour")?;
    // The list of permitted calls has a unit test in which a process calls abort().
    let worker = Pid::from_raw(fixture.last_worker()?.try_into()?).context("a process id")?;
    kill_process(worker, Signal::ABORT)?;
    wait_for_log(&fixture.daemon, ENDED)?;
    fixture.neighbour_goes_on()?;
    // The next guest is served.
    let mut next = fixture.guest(&Setup::default())?;
    next.lookup(NodeId::ROOT, c"neighbour")?;
    Ok(())
}
