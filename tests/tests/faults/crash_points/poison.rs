//! A request of which each worker dies is answered with an error.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_backend::crash_hook::{Death, Point};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::Error;
use gangplank_tests::driver::fixture::wait_for_log;
use rustix::io::Errno;

use super::cases::CASES;
use super::crash::Crashing;
use super::requests::{self, Prepared};
use super::world::World;

/// Deaths of which the request is the reason, or may be, and the number of them after which it is
/// not run again.
const DEATHS: [(Death, u32); 2] = [(Death::Fault, 2), (Death::Killed, 6)];

/// The operations that are tried, each of another kind.
const TRIED: [&str; 8] = [
    "LOOKUP",
    "FORGET",
    "MKDIR",
    "CREATE",
    "WRITE",
    "FSYNC",
    "READDIRPLUS",
    "INIT",
];

#[test]
fn a_request_that_kills_each_worker_is_answered_with_an_error_and_logged() -> Result<()> {
    let crashing = Crashing::new(&["--max-crashes=100000"])?;
    for name in TRIED {
        let case = CASES.iter().find(|(other, _)| *other == name);
        let (_, prepare) = case.context("no such case")?;
        for (death, limit) in DEATHS {
            let context = || format!("{name}, {death:?}: {}", crashing.fixture.log());
            let prepared = World::new(&crashing.fixture).and_then(|mut world| {
                let prepared = prepare(&mut world)?;
                Ok((world, prepared))
            });
            let (world, prepared) = prepared.with_context(context)?;
            poison(&crashing, world, prepared, (death, limit)).with_context(context)?;
        }
    }
    crashing.fixture.wait_until_idle()
}

/// Has all workers die of the request.
fn poison(
    crashing: &Crashing,
    mut world: World,
    prepared: Prepared,
    (death, limit): (Death, u32),
) -> Result<()> {
    let Prepared {
        node,
        operation,
        data,
        ..
    } = prepared;
    let opcode = operation.opcode();
    thread::sleep(Duration::from_millis(12));
    let known = crashing.fixture.daemon.log().len();
    crashing.order((Some(opcode), Point::Begun), death, 0, u32::MAX)?;
    let (queue, room) = (requests::queue_of(opcode), operation.reply_capacity());
    let ticket = world.guest.submit(queue, node, operation, data, room)?;
    if death == Death::Killed {
        for count in 1..=limit {
            let is_finished = || Ok(world.guest.is_finished(&ticket)?);
            ensure!(
                crashing.kill(count, is_finished)?,
                "death {count} is missing"
            );
        }
    }
    let answer = world.guest.finish(ticket);
    match (opcode.expects_reply(), answer) {
        (true, Err(Error::Errno(Errno::IO))) | (false, Ok(_)) => {}
        (_, other) => anyhow::bail!("the answer is {other:?}"),
    }
    thread::sleep(Duration::from_millis(50));
    let died = crashing.died()?;
    ensure!(died == limit, "{died} workers have died");
    crashing.clear()?;

    let room = match opcode.expects_reply() {
        true => room + size_of::<gangplank_fuse::OutHeader>(),
        false => 0,
    };
    let told = format!("opcode {}, ", opcode as u32);
    wait_for_log(&crashing.fixture.daemon, &told)?;
    let log = crashing.fixture.daemon.log();
    let told = log[known..].lines().find(|line| line.contains(&told));
    let told = told.context("the log does not tell this request")?;
    ensure!(told.contains(&format!("{room} bytes of room")), "{told}");
    // The guest goes on.
    world.guest.getattr(NodeId::ROOT, None)?;
    world.find(c"other")?;
    Ok(())
}
