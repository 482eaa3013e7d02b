//! Many guests of one daemon, at once and one after another.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::arena::{Arena, Footprint};
use gangplank_tests::driver::neighbour::Neighbour;
use gangplank_tests::driver::{Driver, Setup};
use rustix::fs::OFlags;

#[test]
fn eight_guests_work_side_by_side() -> Result<()> {
    let arena = Arena::quiet(&[])?;
    let mut guests = (0..8)
        .map(|index| Neighbour::start(arena.socket(), &format!("guest{index}")))
        .collect::<Result<Vec<_>>>()?;
    for guest in &mut guests {
        guest.wait_for_rounds(20).with_context(|| arena.log())?;
    }
    for guest in guests {
        guest.stop().with_context(|| arena.log())?;
    }
    ensure!(
        fs::read_dir(arena.share())?.count() == 0,
        "the guests have left something"
    );
    arena.survive(&[])
}

#[test]
fn guests_see_what_others_have_made() -> Result<()> {
    let arena = Arena::quiet(&[])?;
    let mut one = arena.guest(&Setup::default())?;
    let mut other = arena.guest(&Setup::default())?;
    let made = one.create(NodeId::ROOT, c"shared", 0o644)?;
    one.write(made, 0, b"from one to the other")?;
    let node = NodeId::new(other.lookup(NodeId::ROOT, c"shared")?.nodeid);
    let file = other.open(node, OFlags::RDONLY)?;
    let read = gangplank_tests::driver::NodeAndFile { node, file };
    ensure!(other.read(read, 0, 100)? == b"from one to the other");
    one.unlink(NodeId::ROOT, c"shared")?;
    // An open file outlives its name, for either.
    one.write(made, 0, b"FROM")?;
    ensure!(other.read(read, 0, 4)? == b"FROM");
    drop((one, other));
    arena.survive(&[])
}

#[test]
fn fifty_guests_one_after_another_leave_nothing() -> Result<()> {
    let arena = Arena::quiet(&[])?;
    fs::write(arena.share().join("file"), "content")?;
    for round in 0..50 {
        let mut guest = arena
            .guest(&Setup::default())
            .with_context(|| format!("guest {round}"))?;
        let node = NodeId::new(guest.lookup(NodeId::ROOT, c"file")?.nodeid);
        // Neither released nor forgotten: the guest is just gone.
        guest.open(node, OFlags::RDWR)?;
    }
    arena.survive(&[])
}

#[test]
fn what_a_killed_guest_held_is_freed() -> Result<()> {
    let mut arena = Arena::new(&["--locks=host"])?;
    let before = Footprint::of(arena.serving())?;
    let mut guest = arena.guest(&Setup::default())?;
    let mut nodes = HashSet::new();
    for index in 0..100 {
        let name = CString::new(format!("held{index}"))?;
        let made = guest.create(NodeId::ROOT, &name, 0o644)?;
        guest.setlk(made, 1, 1)?;
        guest.opendir(NodeId::ROOT)?;
        nodes.insert(made.node);
    }
    ensure!(nodes.len() == 100);
    let during = Footprint::of(arena.serving())?;
    ensure!(
        during.descriptors >= before.descriptors + 300,
        "{before:?}, and {during:?} with a hundred inodes, files, directories and locks"
    );
    drop(guest);
    arena.neighbour_goes_on()?;
    arena.survive(&["has gone"])
}

#[test]
fn a_guest_that_mounts_again_on_its_connection_starts_anew() -> Result<()> {
    let arena = Arena::quiet(&[])?;
    let mut guest = Driver::connect(arena.socket(), &Setup::default())?;
    guest.init()?;
    let first = Footprint::of(arena.serving())?;
    for round in 0..20 {
        let name = CString::new(format!("round{round}"))?;
        guest.create(NodeId::ROOT, &name, 0o644)?;
        if round % 2 == 0 {
            guest.destroy()?;
        }
        guest.init()?;
        let now = Footprint::of(arena.serving())?;
        ensure!(
            now.descriptors <= first.descriptors,
            "round {round}: {first:?}, then {now:?}"
        );
    }
    drop(guest);
    arena.survive(&[])
}
