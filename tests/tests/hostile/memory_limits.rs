//! A frontend has no more memory mapped than the operator permits, and what it has mapped is no
//! other guest's concern.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::Setup;
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::vhost_user::{Peer, VERSION, memory_table, message, words};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

const TIB: u64 = 1 << 40;

/// A sparse file of `len` bytes.
fn sparse(len: u64) -> Result<OwnedFd> {
    let file = memfd_create("memory", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, len)?;
    Ok(file)
}

/// A frontend that has negotiated what SET_MEM_TABLE and ADD_MEM_REG need.
fn frontend(fixture: &Fixture) -> Result<Peer> {
    const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// CONFIGURE_MEM_SLOTS and REPLY_ACK.
    const SLOTS: u64 = 1 << 15 | 1 << 3;

    let mut peer = Peer::connect(fixture.socket())?;
    peer.tell(message::SET_OWNER, &[], &[])?;
    peer.ask_u64(message::GET_FEATURES)?;
    peer.ask_u64(message::GET_PROTOCOL_FEATURES)?;
    peer.tell(
        message::SET_FEATURES,
        &words(&[1 << 32 | PROTOCOL_FEATURES]),
        &[],
    )?;
    peer.tell(message::SET_PROTOCOL_FEATURES, &words(&[SLOTS]), &[])?;
    peer.set_need_reply();
    Ok(peer)
}

#[test]
fn more_bytes_than_permitted_end_the_connection() -> Result<()> {
    for (arguments, len) in [
        (&[][..], 8 * TIB + 4096),
        (&["--max-guest-memory=64M"], 64 << 20 | 4096),
    ] {
        let mut fixture = Fixture::new(arguments)?;
        let memory = sparse(len)?;
        let peer = frontend(&fixture)?;
        let table = memory_table(&[[0, len, 0, 0]]);
        let refused = peer.tell(message::SET_MEM_TABLE, &table, &[memory.as_fd()]);
        ensure!(refused.is_err(), "{len} bytes are mapped");
        peer.wait_for_hang_up()?;
        fixture.neighbour_goes_on()?;
        fixture.survive(&["--max-guest-memory"])?;
    }
    Ok(())
}

#[test]
fn a_bitmap_of_dirty_pages_is_no_larger_than_the_memory_permitted() -> Result<()> {
    let mut fixture = Fixture::new(&["--max-guest-memory=64M"])?;
    // A bit for each page of the memory, and of a tebibyte of holes.
    let most = (TIB + (64 << 20)) / 4096 / 8;
    let file = sparse(100 * TIB)?;
    for (size, is_taken) in [(most, true), (most + 1, false), (100 * TIB, false)] {
        let peer = frontend(&fixture)?;
        let area = words(&[size, 0]);
        peer.send(message::SET_LOG_BASE, VERSION, &area, &[file.as_fd()])?;
        if is_taken {
            ensure!(peer.receive()?.payload == area, "{size} bytes are refused");
            continue;
        }
        peer.wait_for_hang_up()?;
        fixture.neighbour_goes_on()?;
    }
    fixture.survive(&["bitmap of dirty pages", "--max-guest-memory"])
}

#[test]
fn regions_added_one_by_one_count_together() -> Result<()> {
    let fixture = Fixture::new(&["--max-guest-memory=64M", "--max-memory-regions=4"])?;
    let memory = sparse(64 << 20)?;
    let add = |peer: &Peer, address: u64, len: u64| {
        let region = words(&[0, address, len, address, 0]);
        peer.tell(message::ADD_MEM_REG, &region, &[memory.as_fd()])
    };

    let peer = frontend(&fixture)?;
    let slots = peer.ask_u64(message::GET_MAX_MEM_SLOTS)?;
    ensure!(slots == 4, "the frontend is told that it has {slots} slots");
    for index in 0..4 {
        add(&peer, index << 32, 1 << 20)?;
    }
    ensure!(add(&peer, 4 << 32, 1 << 20).is_err(), "a fifth region");
    peer.wait_for_hang_up()?;

    let peer = frontend(&fixture)?;
    add(&peer, 0, 32 << 20)?;
    add(&peer, 1 << 32, 32 << 20)?;
    ensure!(add(&peer, 2 << 32, 4096).is_err(), "one page too many");
    peer.wait_for_hang_up()?;
    fixture.survive(&["--max-guest-memory", "--max-memory-regions"])
}

#[test]
fn memory_that_may_be_replaced_is_not_counted_twice() -> Result<()> {
    let fixture = Fixture::new(&["--max-guest-memory=16M"])?;
    let mut guest = fixture.guest(&Setup::default())?;
    for _ in 0..10 {
        guest.share_memory()?;
        guest.getattr(NodeId::ROOT, None)?;
    }
    drop(guest);
    fixture.survive(&[])
}

/// Else memory that a refused message takes away would still be mapped, and not counted.
#[test]
fn a_refused_message_ends_the_connection() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let memory = sparse(1 << 20)?;
    let (len, beyond) = (1 << 20, u64::MAX - 4095);
    for request in [message::SET_MEM_TABLE, message::REM_MEM_REG] {
        let peer = frontend(&fixture)?;
        let table = memory_table(&[[0, len, 0, 0]]);
        peer.tell(message::SET_MEM_TABLE, &table, &[memory.as_fd()])?;
        let refused = match request {
            // There is no such region.
            message::REM_MEM_REG => peer.tell(request, &words(&[0, len, len, len, 0]), &[]),
            // The region's user addresses overflow.
            _ => {
                let table = memory_table(&[[0, len, beyond, 0]]);
                peer.tell(request, &table, &[memory.as_fd()])
            }
        };
        ensure!(refused.is_err(), "message {request} is carried out");
        peer.wait_for_hang_up()?;
    }
    fixture.survive(&[])
}

#[test]
fn terabytes_of_many_frontends_leave_other_guests_alone() -> Result<()> {
    let mut fixture = Fixture::new(&[])?;
    fixture.permit_address_space(6 * TIB);
    let memory = sparse(5 * TIB)?;
    let mut peers = Vec::new();
    // More than one process could map.
    for _ in 0..26 {
        let peer = frontend(&fixture)?;
        let table = memory_table(&[[0, 5 * TIB, 0, 0]]);
        peer.tell(message::SET_MEM_TABLE, &table, &[memory.as_fd()])
            .context("5 TiB of sparse memory")?;
        peers.push(peer);
    }
    fixture.neighbour_goes_on()?;
    let mut guest = fixture.guest(&Setup::default())?;
    guest.getattr(NodeId::ROOT, None)?;
    drop((guest, peers));
    fixture.survive(&[])
}
