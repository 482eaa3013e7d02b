//! Bytes that are not messages, messages cut short, and headers with wrong lengths or flags.

use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use gangplank_tests::driver::Error;
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::memory::{GUEST_BASE, USER_BASE};
use gangplank_tests::driver::vhost_user::{
    NEED_REPLY, Peer, REPLY, VERSION, encode, memory_table, message, words,
};

use super::{assert_refused, negotiated, shared};

/// Numbers of messages that a frontend may send (vhost-user, "Front-end message types"), and some
/// beyond.
pub(super) const REQUESTS: std::ops::RangeInclusive<u32> = 0..=48;

#[test]
fn random_bytes_cost_the_connection() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut state = 88_172_645_463_325_252u64;
    for len in [1, 11, 12, 13, 100, 1000, 5000, 100_000] {
        for _ in 0..5 {
            let bytes: Vec<u8> = (0..len)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state.to_le_bytes()[2]
                })
                .collect();
            let peer = Peer::connect(fixture.socket())?;
            // The daemon may close the connection during the message.
            let _ = peer.send_bytes(&bytes, &[]);
            peer.socket().shutdown(std::net::Shutdown::Write).ok();
            peer.wait_for_hang_up()
                .with_context(|| format!("{len} bytes"))?;
        }
    }
    fixture.survive(&["is dropped"])
}

#[test]
fn messages_cut_anywhere_cost_the_connection() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let whole = encode(message::SET_FEATURES, VERSION, 8, &[0; 8]);
    for len in 1..whole.len() {
        let peer = Peer::connect(fixture.socket())?;
        let file = shared(4096)?;
        peer.send_bytes(&whole[..len], &[file.as_fd()])?;
        peer.socket().shutdown(std::net::Shutdown::Write)?;
        peer.wait_for_hang_up()
            .with_context(|| format!("{len} bytes"))?;
    }
    // Closed without a message.
    for len in 0..whole.len() {
        let peer = Peer::connect(fixture.socket())?;
        peer.send_bytes(&whole[..len], &[])?;
    }
    fixture.survive(&["is dropped"])
}

#[test]
fn payload_lengths_that_are_wrong_cost_the_connection() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    for len in [4097, 5000, 65_536, 1 << 31, u32::MAX] {
        let peer = Peer::connect(fixture.socket())?;
        peer.send_bytes(&encode(message::SET_FEATURES, VERSION, len, &[0; 8]), &[])?;
        peer.wait_for_hang_up()
            .with_context(|| format!("a length of {len}"))?;
    }
    for request in REQUESTS {
        for len in [1, 3, 7, 9, 41, 4096] {
            let peer = negotiated(&fixture)?;
            peer.send(request, VERSION | NEED_REPLY, &vec![0xff; len], &[])?;
            // The daemon replies with an error or closes the connection. It must not keep the peer
            // waiting.
            let answer = peer.receive();
            ensure!(
                !matches!(answer, Err(Error::Late { .. })),
                "request {request} with {len} bytes is not answered"
            );
        }
    }
    fixture.survive(&["is dropped"])
}

#[test]
fn flags_that_are_wrong_cost_the_connection() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    for flags in [0, 2, 3, REPLY | VERSION, u32::MAX, 0x10 | VERSION] {
        let peer = Peer::connect(fixture.socket())?;
        peer.send(message::GET_FEATURES, flags, &[], &[])?;
        peer.socket().shutdown(std::net::Shutdown::Write)?;
        peer.wait_for_hang_up()
            .with_context(|| format!("flags {flags:#x}"))?;
    }
    fixture.survive(&[])
}

#[test]
fn descriptors_in_wrong_numbers_are_refused_and_closed() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let file = shared(4096)?;
    let table = memory_table(&[[GUEST_BASE, 4096, USER_BASE, 0]]);
    for count in [0, 2, 3, 31, 32, 33, 64] {
        let peer = negotiated(&fixture)?;
        let descriptors = vec![file.as_fd(); count];
        let result = peer.tell(message::SET_MEM_TABLE, &table, &descriptors);
        assert_refused(&format!("a memory table with {count} descriptors"), result)?;
    }
    for request in [
        message::SET_VRING_KICK,
        message::SET_VRING_CALL,
        message::SET_VRING_ERR,
    ] {
        for count in [0, 2, 32] {
            let peer = negotiated(&fixture)?;
            let result = peer.tell(request, &words(&[0]), &vec![file.as_fd(); count]);
            assert_refused(
                &format!("request {request} with {count} descriptors"),
                result,
            )?;
        }
    }
    // Messages without a payload.
    for request in [
        message::GET_FEATURES,
        message::SET_OWNER,
        message::GET_QUEUE_NUM,
    ] {
        let peer = Peer::connect(fixture.socket())?;
        peer.send(request, VERSION, &[], &[file.as_fd(), file.as_fd()])?;
        peer.socket().shutdown(std::net::Shutdown::Write)?;
        peer.wait_for_hang_up()
            .with_context(|| format!("request {request} with descriptors"))?;
    }
    fixture.survive(&[])
}
