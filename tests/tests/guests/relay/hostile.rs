//! Guests that send invalid messages to a relay. The relay refuses them or closes the connection,
//! and no other guest is affected.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_tests::driver::vhost_user::{
    NEED_REPLY, Peer, REPLY, VERSION, encode, memory_table, message, ring_addresses, ring_state,
    words,
};
use gangplank_tests::tools;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, ftruncate, memfd_create};
use rustix::process::Signal;

use crate::fixture::{Fixture, Kind};

const MEMORY_LEN: u64 = 0x10_0000;

/// The features that a daemon offers and its guests accept.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28;

fn memory() -> Result<OwnedFd> {
    let file = memfd_create("hostile", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, MEMORY_LEN)?;
    Ok(file)
}

/// The state of a guest's memory when its daemon dies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// Truncated.
    Gone,
    /// Not writable by descriptor, like huge pages.
    ReadOnly,
    /// Filled with this byte.
    Filled(u8),
}

/// The file client, which is a guest too, works as before.
fn others_are_served(fixture: &Fixture) -> Result<()> {
    let output = Command::new(tools::frontend()?)
        .args(["fs", "--socket"])
        .arg(fixture.relay.socket())
        .args(["cat", "file"])
        .output()?;
    ensure!(
        output.stdout == b"calm\n",
        "{}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        fixture.relay.log()
    );
    Ok(())
}

fn negotiated(fixture: &Fixture) -> Result<Peer> {
    let mut peer = Peer::connect(&fixture.relay.socket())?;
    peer.tell(message::SET_OWNER, &[], &[])?;
    let protocol = peer.ask_u64(message::GET_PROTOCOL_FEATURES)?;
    peer.tell(message::SET_PROTOCOL_FEATURES, &words(&[protocol]), &[])?;
    peer.set_need_reply();
    peer.tell(message::SET_FEATURES, &words(&[FEATURES]), &[])?;
    Ok(peer)
}

/// Every message with every kind of wrong payload, flags and descriptors.
pub(crate) fn rubbish_harms_nobody() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    fs::write(fixture.host("file"), "calm\n")?;
    let daemon = fixture.daemon(Kind::Gangplankd, &[])?;
    fixture.put(&daemon)?;
    let file = memory()?;
    for request in 0..=48 {
        for len in [0, 1, 7, 8, 9, 40, 4096] {
            for byte in [0, 0xff] {
                let peer = negotiated(&fixture)?;
                let beside = vec![file.as_fd(); len % 3];
                peer.send(request, VERSION | NEED_REPLY, &vec![byte; len], &beside)?;
                // The relay replies or closes the connection. It does not keep the guest waiting.
                let answer = peer.receive();
                ensure!(
                    !matches!(answer, Err(gangplank_tests::driver::Error::Late { .. })),
                    "request {request} with {len} bytes is not answered"
                );
            }
        }
    }
    for flags in [0, 2, 3, REPLY | VERSION, u32::MAX, 0x10 | VERSION] {
        let peer = Peer::connect(&fixture.relay.socket())?;
        peer.send(message::GET_FEATURES, flags, &[], &[])?;
        peer.wait_for_hang_up()
            .with_context(|| format!("flags {flags:#x}"))?;
    }
    for len in [4097, 65_536, u32::MAX] {
        let peer = Peer::connect(&fixture.relay.socket())?;
        peer.send_bytes(&encode(message::SET_FEATURES, VERSION, len, &[0; 8]), &[])?;
        peer.wait_for_hang_up()
            .with_context(|| format!("a length of {len}"))?;
    }
    let peer = Peer::connect(&fixture.relay.socket())?;
    peer.send_bytes(&encode(message::GET_FEATURES, VERSION, 0, &[])[..7], &[])?;
    peer.wait_for_hang_up()
        .context("a message that does not go on")?;
    others_are_served(&fixture)?;
    let log = fixture.relay.stop()?;
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

/// A guest whose memory is truncated, read-only or full of nonsense when its daemon dies. If the
/// relay cannot write to the memory, it closes the connection.
pub(crate) fn rings_of_nonsense_harm_nobody() -> Result<()> {
    let fixture = Fixture::new(&["--tag=myfs"])?;
    fs::write(fixture.host("file"), "calm\n")?;
    let daemon = fixture.daemon(Kind::Gangplankd, &[])?;
    fixture.put(&daemon)?;
    let mut guests = Vec::new();
    for kind in [
        Memory::Gone,
        Memory::ReadOnly,
        Memory::Filled(0x5a),
        Memory::Filled(0xff),
    ] {
        let file = memory()?;
        let peer = negotiated(&fixture)?;
        let table = memory_table(&[[0, MEMORY_LEN, 0, 0]]);
        peer.tell(message::SET_MEM_TABLE, &table, &[file.as_fd()])?;
        let kick = eventfd(0, EventfdFlags::empty())?;
        for ring in 0..2 {
            let number = words(&[u64::from(ring)]);
            peer.tell(message::SET_VRING_NUM, &ring_state(ring, 128), &[])?;
            let addresses = ring_addresses(ring, 0x1000, 0x3000, 0x2000, 0);
            peer.tell(message::SET_VRING_ADDR, &addresses, &[])?;
            peer.tell(message::SET_VRING_KICK, &number, &[kick.as_fd()])?;
            peer.tell(message::SET_VRING_ENABLE, &ring_state(ring, 1), &[])?;
        }
        let file = File::from(file);
        match kind {
            Memory::Gone => file.set_len(0)?,
            Memory::ReadOnly => {
                rustix::fs::fcntl_add_seals(&file, SealFlags::FUTURE_WRITE)?;
            }
            Memory::Filled(byte) => {
                std::os::unix::fs::FileExt::write_all_at(&file, &[byte; 0x8000], 0)?;
            }
        }
        guests.push((kind, peer, kick, file));
    }
    daemon.signal_all(Signal::KILL)?;
    drop(daemon);
    fixture.relay.wait_for("has lost its daemon")?;
    for (kind, peer, kick, _) in &guests {
        rustix::io::write(kick, &1u64.to_ne_bytes())?;
        if matches!(kind, Memory::Gone | Memory::ReadOnly) {
            peer.wait_for_hang_up()
                .context("memory that cannot be written")?;
        }
    }
    std::thread::sleep(Duration::from_millis(200));
    let daemon = fixture.daemon(Kind::Gangplankd, &[])?;
    fixture.put(&daemon)?;
    others_are_served(&fixture)?;
    drop(guests);
    let log = fixture.relay.stop()?;
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}
