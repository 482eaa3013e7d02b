//! Descriptor chains that break the rules of virtio stop their ring.

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::Driver;
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::memory::GUEST_BASE;
use gangplank_tests::driver::ring::{Descriptor, INDIRECT, NEXT, Ring, WRITE};

use super::{GuestAddresses, LIMIT, SETUP, entry};

/// A malformed chain stops ring 1. The daemon logs this, ring 2 continues, and ring 1 works again
/// after a new set-up.
fn assert_stops(
    case: &str,
    offer: impl FnOnce(&mut Driver, &GuestAddresses) -> Result<()>,
) -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut guest = fixture.guest(&SETUP)?;
    let places = GuestAddresses::new(&mut guest)?;
    offer(&mut guest, &places)?;
    guest.rings[1]
        .wait_for_error(LIMIT)
        .with_context(|| format!("{case}\n{}", fixture.log()))?;
    guest.queue = 2;
    guest
        .getattr(NodeId::ROOT, None)
        .with_context(|| format!("{case}: the other ring"))?;

    guest.stop_ring(1)?;
    let layout = *guest.rings[1].layout();
    guest.rings[1] = Ring::new(&mut guest.memory, layout)?;
    guest.start_ring(1)?;
    guest.queue = 1;
    guest
        .getattr(NodeId::ROOT, None)
        .with_context(|| format!("{case}: the ring set up anew"))?;
    drop(guest);
    fixture
        .survive(&["a ring is stopped"])
        .with_context(|| case.to_owned())
}

#[test]
fn chains_that_do_not_end_stop_their_ring() -> Result<()> {
    assert_stops("a chain of one that is its own next", |guest, at| {
        Ok(guest.offer_table(1, &[entry(at.request, 8, NEXT, 0)])?)
    })?;
    assert_stops("a loop of two", |guest, at| {
        let table = [entry(at.request, 8, NEXT, 1), entry(at.request, 8, NEXT, 0)];
        Ok(guest.offer_table(1, &table)?)
    })?;
    assert_stops("a loop within an indirect table", |guest, at| {
        let inner = [entry(at.request, 8, NEXT, 1), entry(at.request, 8, NEXT, 0)];
        guest
            .memory
            .write(at.table, &inner.map(Descriptor::to_bytes).concat());
        Ok(guest.offer_table(1, &[entry(at.table, 32, INDIRECT, 0)])?)
    })
}

#[test]
fn chains_that_leave_their_table_stop_their_ring() -> Result<()> {
    for next in [256, 257, u16::MAX] {
        assert_stops(&format!("next is {next}"), |guest, at| {
            Ok(guest.offer_table(1, &[entry(at.request, 56, NEXT, next)])?)
        })?;
    }
    for head in [256, u16::MAX] {
        assert_stops(&format!("the head is {head}"), |guest, _| {
            guest.rings[1].publish(&guest.memory, head);
            Ok(guest.rings[1].kick_anyway()?)
        })?;
    }
    Ok(())
}

#[test]
fn indirect_tables_that_break_the_rules_stop_their_ring() -> Result<()> {
    assert_stops("an indirect table within an indirect table", |guest, at| {
        let inner = entry(at.table, 16, INDIRECT, 0).to_bytes();
        guest.memory.write(at.table, &inner);
        Ok(guest.offer_table(1, &[entry(at.table, 16, INDIRECT, 0)])?)
    })?;
    for len in [0, 8, 17, u32::MAX, u32::MAX - 15] {
        assert_stops(&format!("an indirect table of {len} bytes"), |guest, at| {
            let inner = entry(at.request, 56, 0, 0).to_bytes();
            guest.memory.write(at.table, &inner);
            Ok(guest.offer_table(1, &[entry(at.table, len, INDIRECT, 0)])?)
        })?;
    }
    assert_stops("an indirect table longer than its ring", |guest, at| {
        let inner = entry(at.request, 56, 0, 0).to_bytes();
        guest.memory.write(at.table, &inner);
        Ok(guest.offer_table(1, &[entry(at.table, 16 * 261, INDIRECT, 0)])?)
    })?;
    assert_stops("an indirect table outside memory", |guest, at| {
        Ok(guest.offer_table(1, &[entry(at.end, 32, INDIRECT, 0)])?)
    })?;
    assert_stops("an indirect table that ends outside memory", |guest, at| {
        let inner = entry(at.request, 8, NEXT, 1).to_bytes();
        guest.memory.write(at.end - 16, &inner);
        Ok(guest.offer_table(1, &[entry(at.end - 16, 32, INDIRECT, 0)])?)
    })
}

#[test]
fn memory_that_the_guest_does_not_have_stops_the_ring() -> Result<()> {
    let end = GUEST_BASE + SETUP.memory;
    let outside = [
        (0, 56),
        (end, 1),
        (end - 1, 2),
        (GUEST_BASE, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX - 10, 56),
        (GUEST_BASE - 1, 56),
    ];
    for (address, len) in outside {
        assert_stops(
            &format!("{len} readable bytes at {address:#x}"),
            |guest, at| {
                let table = [entry(address, len, NEXT, 1), entry(at.reply, 120, WRITE, 0)];
                Ok(guest.offer_table(1, &table)?)
            },
        )?;
        assert_stops(
            &format!("{len} writable bytes at {address:#x}"),
            |guest, at| {
                let table = [
                    entry(at.request, 56, NEXT, 1),
                    entry(address, len, WRITE, 0),
                ];
                Ok(guest.offer_table(1, &table)?)
            },
        )?;
    }
    assert_stops("lengths that add up to more than 4 GiB", |guest, at| {
        let half = u32::try_from(8 << 20)?;
        let mut table: Vec<_> = (1..=255)
            .map(|next| entry(at.request & !0xfff, half, NEXT, next))
            .collect();
        // 255 times 8 MiB is below 4 GiB. An indirect table has no such limit.
        table.extend_from_within(..);
        table.extend_from_within(..);
        for (next, one) in (1..).zip(&mut table) {
            one.next = next;
        }
        let len = u32::try_from(16 * table.len())?;
        let place = guest.memory.allocate(16 * table.len())?;
        let bytes: Vec<u8> = table.iter().flat_map(|one| one.to_bytes()).collect();
        guest.memory.write(place, &bytes);
        Ok(guest.offer_table(1, &[entry(place, len, INDIRECT, 0)])?)
    })
}

#[test]
fn a_readable_descriptor_behind_a_writable_one_stops_the_ring() -> Result<()> {
    assert_stops("readable after writable", |guest, at| {
        let table = [
            entry(at.request, 40, NEXT, 1),
            entry(at.reply, 120, NEXT | WRITE, 2),
            entry(at.request + 40, 16, 0, 0),
        ];
        Ok(guest.offer_table(1, &table)?)
    })
}

#[test]
fn an_available_index_that_jumps_stops_the_ring() -> Result<()> {
    // INIT was one chain on a ring of 256, so an index up to 257 is a full ring.
    for index in [258, 1000, 0x8000, u16::MAX, 0] {
        assert_stops(
            &format!("the available index jumps to {index}"),
            |guest, _| {
                guest.rings[1].set_available_index(&guest.memory, index);
                Ok(guest.rings[1].kick_anyway()?)
            },
        )?;
    }
    Ok(())
}

#[test]
fn an_available_index_beyond_what_was_filled_in_stops_the_ring() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut guest = fixture.guest(&SETUP)?;
    let at = GuestAddresses::new(&mut guest)?;
    // 256 times the chain at 0, because all slots of the ring are zero.
    guest.rings[1].put_descriptor(&guest.memory, 0, entry(at.request, 56, NEXT, 1));
    guest.rings[1].put_descriptor(&guest.memory, 1, entry(at.reply, 120, WRITE, 0));
    let start = guest.rings[1].used_index(&guest.memory);
    guest.rings[1].set_available_index(&guest.memory, start.wrapping_add(256));
    guest.rings[1].kick_anyway()?;
    // The second is in flight when it is offered.
    guest.rings[1].wait_for_error(LIMIT)?;
    let replies = guest.rings[1].used_index(&guest.memory).wrapping_sub(start);
    ensure!(replies <= 1, "{replies} chains came back");
    drop(guest);
    fixture.survive(&["its driver offers chains that are in flight"])
}
