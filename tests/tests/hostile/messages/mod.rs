//! vhost-user messages that break the protocol. The daemon refuses the message or closes the
//! connection, and no other guest is affected.

mod exhaustion;
mod framing;
mod memory;
mod rings;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use gangplank_tests::driver::Error;
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::vhost_user::{Peer, VERSION, message, ring_state, words};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use self::framing::REQUESTS;

/// Limit for the daemon to report a broken ring.
const LIMIT: Duration = Duration::from_secs(60);

/// A shared file of `len` bytes.
fn shared(len: u64) -> Result<OwnedFd> {
    let file = memfd_create("hostile", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, len)?;
    Ok(file)
}

/// A peer that has negotiated features, REPLY_ACK among them, and nothing else.
fn negotiated(fixture: &Fixture) -> Result<Peer> {
    let mut peer = Peer::connect(fixture.socket())?;
    peer.tell(message::SET_OWNER, &[], &[])?;
    let features = peer.ask_u64(message::GET_FEATURES)?;
    let protocol = peer.ask_u64(message::GET_PROTOCOL_FEATURES)?;
    peer.tell(message::SET_PROTOCOL_FEATURES, &words(&[protocol]), &[])?;
    peer.set_need_reply();
    peer.tell(message::SET_FEATURES, &words(&[features]), &[])?;
    Ok(peer)
}

/// Fails unless the daemon replies with an error or closes the connection.
fn assert_refused(case: &str, result: gangplank_tests::driver::Result<()>) -> Result<()> {
    match result {
        Err(Error::Refused { .. } | Error::HungUp(_)) => Ok(()),
        Err(error) => Err(error).with_context(|| case.to_owned()),
        Ok(()) => anyhow::bail!("{case}: accepted"),
    }
}

#[test]
fn messages_before_their_time_are_refused_or_do_nothing() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
    for request in REQUESTS {
        let peer = Peer::connect(fixture.socket())?;
        let with_descriptor = [
            message::SET_VRING_KICK,
            message::SET_VRING_CALL,
            message::SET_VRING_ERR,
        ];
        let descriptors = [event.as_fd()];
        let descriptors = if with_descriptor.contains(&request) {
            &descriptors[..]
        } else {
            &[]
        };
        let _ = peer.send(request, VERSION, &[0; 8], descriptors);
        let _ = peer.send(message::SET_VRING_ENABLE, VERSION, &ring_state(0, 1), &[]);
        let _ = peer.send(message::GET_VRING_BASE, VERSION, &ring_state(0, 0), &[]);
        let _ = peer.send(message::RESET_DEVICE, VERSION, &[], &[]);
        peer.socket().shutdown(std::net::Shutdown::Write).ok();
        peer.wait_for_hang_up()
            .with_context(|| format!("request {request}"))?;
    }
    fixture.survive(&[])
}
