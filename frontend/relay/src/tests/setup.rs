//! Setting up a device: what the guest is told, what the daemon gets, and which messages fail.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use gangplank_vhost_user::message::{FrontendReq, Message, MessageError};

use super::fake_daemon::{Behaviour, FakeDaemon};
use super::fake_guest::FakeGuest;
use super::{FEATURES, LIMITS, NEGOTIATION, RING, soon};
use crate::daemon::{Daemon, Limits};
use crate::guest::GuestError;
use crate::tests::file;

#[test]
fn guest_is_told_what_the_daemon_tells_and_its_rings_arrive_in_order() {
    let daemon = FakeDaemon::new(Behaviour::default());
    let mut guest = FakeGuest::connect(&daemon.path, None);
    let config = guest.ask(
        FrontendReq::GET_CONFIG,
        [0, 40, 0].map(u32::to_le_bytes).concat(),
    );
    assert_eq!((config.len(), &config[12..17]), (52, &b"told\0"[..]));
    assert_eq!(config[48], 2);
    let rings = guest.ask(FrontendReq::GET_QUEUE_NUM, Vec::new());
    assert_eq!(rings, 3u64.to_le_bytes());
    guest.set_up();
    assert!(guest.status().contains("served by"), "{}", guest.status());
    let base = guest.ask(FrontendReq::GET_VRING_BASE, 1u64.to_le_bytes().to_vec());
    assert_eq!(base, [1u32.to_le_bytes(), 41u32.to_le_bytes()].concat());
    guest.hang_up().unwrap();
    let mut expected = NEGOTIATION.to_vec();
    expected.extend([FrontendReq::SET_FEATURES, FrontendReq::SET_MEM_TABLE]);
    expected.extend(RING);
    expected.extend(RING);
    expected.extend([FrontendReq::SET_VRING_ENABLE, FrontendReq::GET_VRING_BASE]);
    assert_eq!(daemon.requests(), expected);
    // The daemon does not get the slot that User Mode Linux leaves empty.
    let received = daemon.received.lock().unwrap();
    let table = received.iter().find(|(request, _)| *request == 5).unwrap();
    assert_eq!(table.1.len(), 40);
}

#[test]
fn guest_without_a_daemon_is_answered_and_served_when_one_comes() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("fs.sock");
    let mut guest = FakeGuest::connect(&socket, Some("mine"));
    assert_eq!(
        guest.ask(FrontendReq::GET_FEATURES, Vec::new()),
        FEATURES.to_le_bytes()
    );
    let config = guest.ask(
        FrontendReq::GET_CONFIG,
        [0, 5, 0].map(u32::to_le_bytes).concat(),
    );
    assert_eq!(&config[12..], b"mine\0");
    guest.set_up();
    assert!(guest.status().contains("waits"), "{}", guest.status());
    let daemon = FakeDaemon::new(Behaviour::default());
    std::os::unix::fs::symlink(&daemon.path, &socket).unwrap();
    while !guest.status().contains("served") {
        thread::sleep(Duration::from_millis(5));
    }
    guest.hang_up().unwrap();
    let mut expected = NEGOTIATION.to_vec();
    expected.extend([FrontendReq::SET_FEATURES, FrontendReq::SET_MEM_TABLE]);
    expected.extend(RING);
    expected.extend(RING);
    assert_eq!(daemon.requests(), expected);
}

#[test]
fn qemu_which_asks_before_set_owner_is_not_offered_config() {
    let mut guest = FakeGuest::connect(Path::new("/nowhere/fs.sock"), None);
    let offered = guest.ask(FrontendReq::GET_PROTOCOL_FEATURES, Vec::new());
    assert_eq!(offered[1] & 2, 0);
    assert_eq!(guest.tell(FrontendReq::SET_OWNER, Vec::new(), None), 0);
    let offered = guest.ask(FrontendReq::GET_PROTOCOL_FEATURES, Vec::new());
    assert!(offered[1] & 2 != 0);
    guest.hang_up().unwrap();
}

#[test]
fn guest_that_asks_what_nobody_knows_gets_an_empty_answer() {
    let mut guest = FakeGuest::connect(Path::new("/nowhere/fs.sock"), None);
    let payload = [0, 5, 0].map(u32::to_le_bytes).concat();
    assert!(guest.ask(FrontendReq::GET_CONFIG, payload).is_empty());
    guest.hang_up().unwrap();
}

#[test]
fn daemon_that_has_accepted_the_connection_may_take_longer_to_tell_what_it_has() {
    let limits = Limits {
        connect: Duration::from_millis(700),
        ..LIMITS
    };
    let connect = |late| {
        let daemon = FakeDaemon::new(Behaviour {
            delays: Some((late, Duration::from_millis(900))),
            ..Behaviour::default()
        });
        Daemon::connect(&daemon.path, limits).map(|_| ())
    };
    connect(FrontendReq::GET_CONFIG).unwrap();
    assert!(connect(FrontendReq::GET_FEATURES).is_err());
}

#[test]
fn refusal_of_a_daemon_reaches_the_guest() {
    let daemon = FakeDaemon::new(Behaviour {
        refuses: Some(FrontendReq::SET_MEM_TABLE),
        ..Behaviour::default()
    });
    let mut guest = FakeGuest::connect(&daemon.path, None);
    let memory = OwnedFd::from(file(0x1000));
    let table = [1u64, 0, 0x1000, 0, 0];
    let table = table.into_iter().flat_map(u64::to_le_bytes).collect();
    assert_eq!(
        guest.tell(FrontendReq::SET_MEM_TABLE, table, Some(&memory)),
        1
    );
    guest.hang_up().unwrap();
}

#[test]
fn senseless_messages_are_refused_and_malformed_ones_cost_the_connection() {
    let mut guest = FakeGuest::connect(Path::new("/nowhere/fs.sock"), Some("mine"));
    let state = |ring: u32, value: u32| [ring.to_le_bytes(), value.to_le_bytes()].concat();
    for (request, payload) in [
        (FrontendReq::SET_FEATURES, u64::MAX.to_le_bytes().to_vec()),
        (
            FrontendReq::SET_FEATURES,
            (1u64 << 32).to_le_bytes().to_vec(),
        ),
        (
            FrontendReq::SET_PROTOCOL_FEATURES,
            u64::MAX.to_le_bytes().to_vec(),
        ),
        (FrontendReq::SET_MEM_TABLE, vec![0; 40]),
        (FrontendReq::SET_VRING_NUM, state(0, 3)),
        (FrontendReq::SET_VRING_NUM, state(2, 128)),
        (FrontendReq::SET_VRING_NUM, state(u32::MAX, 128)),
        (FrontendReq::SET_VRING_BASE, state(0, 65536)),
        (FrontendReq::SET_VRING_ENABLE, state(0, 2)),
        (FrontendReq::SET_VRING_ADDR, vec![0; 40]),
        (FrontendReq::SET_VRING_KICK, 0u64.to_le_bytes().to_vec()),
    ] {
        assert_eq!(guest.tell(request, payload, None), 1, "message {request:?}");
    }
    assert_eq!(guest.tell(4711u32, Vec::new(), None), 1);
    assert!(guest.hang_up().is_ok());
    for (request, payload) in [
        (FrontendReq::SET_FEATURES, vec![0; 7]),
        (FrontendReq::SET_VRING_NUM, vec![0; 9]),
        (FrontendReq::SET_VRING_ADDR, vec![0; 3]),
        (FrontendReq::SET_BACKEND_REQ_FD, Vec::new()),
        (FrontendReq::GET_CONFIG, vec![0; 12]),
        (
            FrontendReq::GET_CONFIG,
            [0, 257, 0].map(u32::to_le_bytes).concat(),
        ),
    ] {
        let guest = FakeGuest::connect(Path::new("/nowhere/fs.sock"), Some("mine"));
        Message::new(request, payload)
            .send(guest.socket.as_fd(), &[], soon())
            .unwrap();
        let ended = guest.served.join().unwrap();
        assert!(
            matches!(ended, Err(GuestError::Malformed(it)) if it == u32::from(request)),
            "{request:?}: {ended:?}"
        );
    }
    let guest = FakeGuest::connect(Path::new("/nowhere/fs.sock"), None);
    let answer = Message::new(FrontendReq::GET_FEATURES, Vec::new()).reply(Vec::new());
    answer.send(guest.socket.as_fd(), &[], soon()).unwrap();
    let ended = guest.served.join().unwrap();
    assert!(matches!(
        ended,
        Err(GuestError::Wire(MessageError::Flags { .. }))
    ));
}
