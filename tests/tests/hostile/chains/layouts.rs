//! Rings of odd sizes, at odd addresses, overlapping, or not enabled.

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::Driver;
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::memory::GUEST_BASE;
use gangplank_tests::driver::ring::{Layout, Ring};
use gangplank_tests::driver::vhost_user::{message, ring_state};

use super::{GETATTR, LIMIT, SETUP};

/// Sets up ring 1 with its three parts at the addresses of `places` (descriptors, available, used),
/// and kicks it.
fn misplaced(places: impl Fn(&Driver) -> [u64; 3]) -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut guest = fixture.guest(&SETUP)?;
    guest.stop_ring(1)?;
    let layout = *guest.rings[1].layout();
    guest.rings[1] = Ring::new(&mut guest.memory, layout)?;
    let [descriptors, available, used] = places(&guest);
    let ring = &mut guest.rings[1];
    (ring.descriptors, ring.available, ring.used) = (descriptors, available, used);
    // An index that announces a chain.
    if available + 4 <= GUEST_BASE + guest.memory.len() {
        guest.memory.write(available + 2, &1u16.to_le_bytes());
    }
    match guest.start_ring(1) {
        Ok(()) => {
            guest.rings[1].kick_anyway()?;
            guest.rings[1]
                .wait_for_error(LIMIT)
                .with_context(|| fixture.log())?;
            guest.queue = 2;
            guest
                .getattr(NodeId::ROOT, None)
                .context("the other ring")?;
            guest
                .stop_ring(1)
                .context("GET_VRING_BASE of the broken ring")?;
        }
        // The daemon refuses the message, or closes the connection.
        Err(error) => ensure!(error.errno().is_none(), "{error}"),
    }
    drop(guest);
    fixture.survive(&[])
}

#[test]
fn rings_that_end_outside_memory_stop() -> Result<()> {
    let end = |guest: &Driver| GUEST_BASE + guest.memory.len();
    misplaced(|guest| {
        [
            guest.rings[1].descriptors,
            end(guest) - 4,
            guest.rings[1].used,
        ]
    })?;
    misplaced(|guest| {
        [
            guest.rings[1].descriptors,
            end(guest) - 2,
            guest.rings[1].used,
        ]
    })?;
    misplaced(|guest| {
        [
            guest.rings[1].descriptors,
            guest.rings[1].available,
            end(guest) - 4,
        ]
    })?;
    misplaced(|guest| {
        [
            end(guest) - 16,
            guest.rings[1].available,
            guest.rings[1].used - 1,
        ]
    })?;
    misplaced(|guest| {
        [
            end(guest) - 8,
            guest.rings[1].available,
            guest.rings[1].used,
        ]
    })
}

#[test]
fn rings_that_overlap_hurt_nobody_else() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut guest = fixture.guest(&SETUP)?;
    guest.stop_ring(1)?;
    let layout = *guest.rings[1].layout();
    guest.rings[1] = Ring::new(&mut guest.memory, layout)?;
    let ring = &mut guest.rings[1];
    (ring.available, ring.used) = (ring.descriptors, ring.descriptors);
    guest.start_ring(1)?;
    for index in 0..100u16 {
        guest
            .memory
            .write(guest.rings[1].descriptors + 2, &index.to_le_bytes());
        guest.rings[1].kick_anyway()?;
    }
    guest.queue = 2;
    guest.getattr(NodeId::ROOT, None)?;
    drop(guest);
    fixture.survive(&[])
}

#[test]
fn a_ring_that_is_not_enabled_is_left_alone() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut guest = fixture.guest(&SETUP)?;
    guest
        .peer
        .tell(message::SET_VRING_ENABLE, &ring_state(1, 0), &[])?;
    let ticket = guest.submit(1, NodeId::ROOT, GETATTR, &[], 256)?;
    guest.queue = 2;
    guest.getattr(NodeId::ROOT, None)?;
    ensure!(!guest.is_finished(&ticket)?, "a disabled ring was served");
    guest
        .peer
        .tell(message::SET_VRING_ENABLE, &ring_state(1, 1), &[])?;
    guest.finish(ticket)?;
    drop(guest);
    fixture.survive(&[])
}

#[test]
fn layouts_of_every_size_work() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut guest = fixture.guest(&SETUP)?;
    for (index, size) in [(1, 2u16), (1, 4), (1, 1024)] {
        guest.stop_ring(index)?;
        let layout = Layout {
            size,
            ..*guest.rings[index].layout()
        };
        guest.rings[index] = Ring::new(&mut guest.memory, layout)?;
        guest.start_ring(index)?;
        for _ in 0..10 {
            guest
                .getattr(NodeId::ROOT, None)
                .with_context(|| format!("size {size}"))?;
        }
    }
    drop(guest);
    fixture.survive(&[])
}
