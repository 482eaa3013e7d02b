//! Many guests of one daemon, at once and one after another.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::neighbour::Neighbour;
use gangplank_tests::driver::{Driver, Setup};
use rustix::fs::OFlags;

#[test]
fn eight_guests_work_side_by_side() -> Result<()> {
    let fixture = Fixture::quiet(&[])?;
    let mut guests = (0..8)
        .map(|index| Neighbour::start(fixture.socket(), &format!("guest{index}")))
        .collect::<Result<Vec<_>>>()?;
    for guest in &mut guests {
        guest.wait_for_rounds(20).with_context(|| fixture.log())?;
    }
    for guest in guests {
        guest.stop().with_context(|| fixture.log())?;
    }
    ensure!(
        fs::read_dir(fixture.share())?.count() == 0,
        "the guests have left something"
    );
    fixture.survive(&[])
}

#[test]
fn guests_see_what_others_have_made() -> Result<()> {
    let fixture = Fixture::quiet(&[])?;
    let mut one = fixture.guest(&Setup::default())?;
    let mut other = fixture.guest(&Setup::default())?;
    let made = one.create(NodeId::ROOT, c"shared", 0o644)?;
    one.write(made, 0, b"from one to the other")?;
    let node = NodeId::new(other.lookup(NodeId::ROOT, c"shared")?.nodeid);
    let file = other.open(node, OFlags::RDONLY)?;
    let read = gangplank_tests::driver::NodeAndFile { node, file };
    ensure!(other.read(read, 0, 100)? == b"from one to the other");
    one.unlink(NodeId::ROOT, c"shared")?;
    // An open file outlives its name, for both guests.
    one.write(made, 0, b"FROM")?;
    ensure!(other.read(read, 0, 4)? == b"FROM");
    drop((one, other));
    fixture.survive(&[])
}

#[test]
fn fifty_guests_one_after_another_leave_nothing() -> Result<()> {
    let fixture = Fixture::quiet(&[])?;
    fs::write(fixture.share().join("file"), "content")?;
    for round in 0..50 {
        let mut guest = fixture
            .guest(&Setup::default())
            .with_context(|| format!("guest {round}"))?;
        let node = NodeId::new(guest.lookup(NodeId::ROOT, c"file")?.nodeid);
        // The guest disconnects without RELEASE and FORGET.
        guest.open(node, OFlags::RDWR)?;
    }
    fixture.survive(&[])
}

#[test]
fn what_a_killed_guest_held_is_freed() -> Result<()> {
    let mut fixture = Fixture::new(&["--locks=host"])?;
    let before = fixture.footprint()?;
    let mut guest = fixture.guest(&Setup::default())?;
    let mut nodes = HashSet::new();
    for index in 0..100 {
        let name = CString::new(format!("held{index}"))?;
        let made = guest.create(NodeId::ROOT, &name, 0o644)?;
        guest.setlk(made, 1, 1)?;
        guest.opendir(NodeId::ROOT)?;
        nodes.insert(made.node);
    }
    ensure!(nodes.len() == 100);
    let during = fixture.footprint()?;
    ensure!(
        during.descriptors >= before.descriptors + 300,
        "{before:?}, and {during:?} with a hundred inodes, files, directories and locks"
    );
    drop(guest);
    fixture.neighbour_goes_on()?;
    fixture.survive(&["has gone"])
}

#[test]
fn a_guest_that_mounts_again_on_its_connection_starts_anew() -> Result<()> {
    let fixture = Fixture::quiet(&[])?;
    let mut guest = Driver::connect(fixture.socket(), &Setup::default())?;
    guest.init()?;
    let first = fixture.footprint()?;
    for round in 0..20 {
        let name = CString::new(format!("round{round}"))?;
        guest.create(NodeId::ROOT, &name, 0o644)?;
        if round % 2 == 0 {
            guest.destroy()?;
        }
        guest.init()?;
        let now = fixture.footprint()?;
        ensure!(
            now.descriptors <= first.descriptors,
            "round {round}: {first:?}, then {now:?}"
        );
    }
    drop(guest);
    fixture.survive(&[])
}
