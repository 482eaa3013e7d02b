//! Guest memory whose pages never come, while the daemon uses it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{NodeId, SetattrIn, SetattrValid};
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::stalling_memory::StallingMemory;
use gangplank_tests::driver::{NodeAndFile, Setup};
use gangplank_tests::process::User;
use rustix::fs::OFlags;

/// Limit for the daemon to stop a ring.
const ERROR_LIMIT: Duration = Duration::from_secs(20);

/// The other guest writes, cuts and reads the file that the attacker's write is for. Each of that
/// takes the file's lock.
#[test]
fn a_write_from_memory_that_never_comes_delays_no_other_guest_at_the_same_file() -> Result<()> {
    if !User::is_root() {
        eprintln!("SKIPPED: only root can mount a server of memory that never comes");
        return Ok(());
    }
    let mut fixture = Fixture::new(&[])?;
    let memory = StallingMemory::new()?;
    let mut attacker = fixture.guest(&Setup::default())?;
    memory.add_to(&attacker)?;
    let target = attacker.create(NodeId::ROOT, c"shared", 0o644)?;
    memory
        .write_from(&mut attacker, target)
        .with_context(|| fixture.log())?;

    let mut other = fixture.guest(&Setup::default())?;
    let node = NodeId::new(other.lookup(NodeId::ROOT, c"shared")?.nodeid);
    let file = other.open(node, OFlags::RDWR)?;
    let shared = NodeAndFile { node, file };
    other.write(shared, 8192, b"theirs").context("WRITE")?;
    let cut = SetattrIn {
        valid: SetattrValid::SIZE.bits(),
        size: 8195,
        ..SetattrIn::default()
    };
    other.setattr(node, cut).context("SETATTR")?;
    ensure!(other.read(shared, 8192, 10)? == b"the", "other bytes");
    fixture.neighbour_goes_on()?;

    memory.release();
    attacker.getattr(target.node, None)?;
    let written = other.read(shared, 0, 4096)?;
    ensure!(
        written == vec![b'm'; 4096],
        "the write that waited is incomplete"
    );
    drop((attacker, other));
    fixture.survive(&[])
}

/// What cannot be read from the memory must not be replaced by zeros in the file.
#[test]
fn a_write_from_memory_that_fails_writes_nothing() -> Result<()> {
    if !User::is_root() {
        eprintln!("SKIPPED: only root can mount a server of memory that never comes");
        return Ok(());
    }
    let fixture = Fixture::new(&[])?;
    let memory = StallingMemory::new()?;
    let mut attacker = fixture.guest(&Setup::default())?;
    memory.add_to(&attacker)?;
    let target = attacker.create(NodeId::ROOT, c"kept", 0o644)?;
    attacker.write(target, 0, &[b'k'; 4096])?;
    memory.write_from(&mut attacker, target)?;
    memory.fail();
    attacker.rings[1]
        .wait_for_error(ERROR_LIMIT)
        .context("the ring goes on")?;
    drop(attacker);
    let content = std::fs::read(fixture.share().join("kept"))?;
    ensure!(content == vec![b'k'; 4096], "the file has other bytes");
    fixture.survive(&[])
}
