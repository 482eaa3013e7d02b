//! Each operation, with a death at each point.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_backend::crash_hook::{Death, Point};
use gangplank_fuse::Opcode;
use gangplank_tests::process::User;

use super::cases::{CASES, Prepare};
use super::crash::Crashing;
use super::outcome;
use super::requests::{self, Prepared};
use super::world::{Tree, World};

/// Operations that no case has: they have the same request or the same refusal as another.
const LEFT_OUT: [Opcode; 2] = [Opcode::Removemapping, Opcode::CuseInit];

/// A kernel removes only what it has found there, so what is not there was removed by the request
/// itself.
const REMOVALS_OF_NOTHING: [&str; 2] = ["UNLINK of nothing", "REMOVEXATTR of nothing"];

/// More than a tick of the kernel's clock of files' times: what is there was not made in the tick
/// in which the request begins.
const TICK: Duration = Duration::from_millis(12);

/// Limit for a worker to get from a reply to the points behind it, on a busy machine.
const LAST_POINTS: Duration = Duration::from_secs(20);

/// The reply of success of most operations.
const NO_PAYLOAD: &str = "\"\"";

/// What a guest, and the host, see of an operation.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    reply: String,
    tree: Tree,
    /// Descriptors that are left of open files when the guest has closed all.
    open: usize,
    /// The same of inodes, when it has forgotten all.
    inodes: usize,
}

/// A daemon, and how guests use it.
struct Setting {
    crashing: Crashing,
    /// Who the caller is and what new files get: see [`World::add_acl_and_user`].
    has_acl_and_user: bool,
}

/// Carries an operation out in a world of its own. With a `point`, the worker dies there.
fn run(setting: &Setting, prepare: Prepare, point: Option<Point>) -> Result<(Opcode, Outcome)> {
    let crashing = &setting.crashing;
    let fixture = &crashing.fixture;
    let mut world = World::new(fixture)?;
    if setting.has_acl_and_user {
        world.add_acl_and_user()?;
    }
    let Prepared {
        node,
        operation,
        data,
        next,
    } = prepare(&mut world)?;
    let opcode = operation.opcode();
    thread::sleep(TICK);
    if let Some(point) = point {
        crashing.order((Some(opcode), point), Death::Killed, 0, 1)?;
    }
    let queue = requests::queue_of(opcode);
    let capacity = operation.reply_capacity();
    let ticket = world.guest.submit(queue, node, operation, data, capacity)?;
    let mut following = None;
    if let Some((node, operation)) = next {
        let capacity = operation.reply_capacity();
        following = Some(world.guest.submit(queue, node, operation, &[], capacity)?);
    }
    if point.is_some() {
        let was_reached = crashing.kill(1, || Ok(world.guest.is_finished(&ticket)?))?;
        // A reply may be there before the worker gets to the last points.
        let deadline = Instant::now() + LAST_POINTS;
        let is_late = || Ok(Instant::now() >= deadline);
        let was_reached = was_reached || crashing.kill(1, is_late)?;
        crashing.clear()?;
        ensure!(was_reached, "the point is not reached");
    }
    let answer = world.guest.finish(ticket);
    if let Some(ticket) = following {
        world.guest.finish(ticket)?;
    }
    if opcode == Opcode::Destroy {
        world.guest.init()?;
    }
    let reply = outcome::describe(&mut world, (opcode, node), answer)?;
    let tree = world.tree()?;
    let (open, inodes) = world.leave(fixture)?;
    let outcome = Outcome {
        reply,
        tree,
        open,
        inodes,
    };
    Ok((opcode, outcome))
}

/// Whether the next worker may count a look-up once more than the guest: nobody knows whether the
/// dead one had counted, and counts are never too low.
fn may_count_twice(opcode: Opcode, point: Point) -> bool {
    match opcode {
        Opcode::Forget | Opcode::BatchForget => point == Point::Begun,
        Opcode::Lookup | Opcode::Link | Opcode::Readdirplus => point == Point::CarriedOut,
        _ => opcode.creates() && point == Point::CarriedOut,
    }
}

/// Whether what a disturbed run shows is right.
fn compare(
    (name, opcode, point): (&str, Opcode, Point),
    expected: &Outcome,
    mut found: Outcome,
) -> Result<()> {
    let is_in_doubt = matches!(point, Point::Begun | Point::CarriedOut);
    if REMOVALS_OF_NOTHING.contains(&name) && is_in_doubt && found.reply == NO_PAYLOAD {
        found.reply.clone_from(&expected.reply);
    }
    if may_count_twice(opcode, point) && found.inodes >= expected.inodes {
        found.inodes = expected.inodes;
    }
    ensure!(found == *expected, "{found:?}\nundisturbed: {expected:?}");
    Ok(())
}

/// Tries all operations, with a death at each of `points`. Returns the operations.
fn try_all(setting: &Setting, points: &[Point]) -> Result<Vec<Opcode>> {
    let mut failures = Vec::new();
    let mut tried: Vec<Opcode> = Vec::new();
    let mut cells = 0;
    for &(name, prepare) in CASES {
        let undisturbed = run(setting, prepare, None);
        let (opcode, expected) = undisturbed.context(name)?;
        tried.push(opcode);
        for &point in points {
            cells += 1;
            let found = run(setting, prepare, Some(point));
            let result =
                found.and_then(|(_, found)| compare((name, opcode, point), &expected, found));
            if let Err(error) = result {
                setting.crashing.clear()?;
                failures.push(format!("{name}, {point:?}: {error:#}"));
            }
        }
    }
    eprintln!("{cells} cells, {} fail", failures.len());
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    setting.crashing.fixture.wait_until_idle()?;
    Ok(tried)
}

#[test]
fn a_death_at_any_point_of_any_operation_is_not_noticed() -> Result<()> {
    let arguments = ["--xattr", "--locks=host", "--max-crashes=100000"];
    let setting = Setting {
        crashing: Crashing::new(&arguments)?,
        has_acl_and_user: false,
    };
    let tried = try_all(&setting, &Point::ALL)?;
    for opcode in Opcode::ALL {
        ensure!(
            tried.contains(opcode) != LEFT_OUT.contains(opcode),
            "{opcode} has no case, or is left out"
        );
    }
    Ok(())
}

/// The same with what changes how operations are carried out: access control lists, a user who is
/// not root, a write-back cache, and threads that serve requests beside the ring's. Only the points
/// at which these matter, except with `GANGPLANK_LONG`.
#[test]
fn a_death_is_not_noticed_with_access_control_lists_write_back_and_other_threads() -> Result<()> {
    if !User::is_root() {
        eprintln!("skipped: only root can act for other users");
        return Ok(());
    }
    let arguments = [
        "--posix-acl",
        "--xattr",
        "--locks=host",
        "--writeback",
        "--thread-pool-size=2",
        "--max-crashes=100000",
    ];
    let setting = Setting {
        crashing: Crashing::new(&arguments)?,
        has_acl_and_user: true,
    };
    let points: &[Point] = match std::env::var_os("GANGPLANK_LONG") {
        Some(_) => &Point::ALL,
        None => &[Point::Begun, Point::CarriedOut, Point::Done],
    };
    try_all(&setting, points).map(drop)
}
