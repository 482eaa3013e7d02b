//! Daemons that hang up, do not reply, or refuse.

use std::os::fd::AsFd;
use std::time::Duration;

use gangplank_vhost_user::message::{FrontendReq, Message};

use super::fake_daemon::{Behaviour, FakeDaemon};
use super::fake_guest::FakeGuest;
use super::soon;
use crate::daemon::DaemonError;
use crate::device::Fatal;
use crate::guest::GuestError;

#[test]
fn daemons_that_do_not_do_their_part_are_named_with_the_message() {
    for (behaviour, expected) in [
        (
            Behaviour {
                refuses: Some(FrontendReq::SET_PROTOCOL_FEATURES),
                ..Behaviour::default()
            },
            None,
        ),
        (
            Behaviour {
                ignores: Some(FrontendReq::GET_FEATURES),
                ..Behaviour::default()
            },
            Some("GET_FEATURES to the daemon at"),
        ),
        (
            Behaviour {
                hangs_up_at: Some(FrontendReq::GET_CONFIG),
                ..Behaviour::default()
            },
            Some("GET_CONFIG to the daemon at"),
        ),
    ] {
        let connected = FakeDaemon::new(behaviour).connect();
        let text = connected.err().map(|error| error.to_string());
        assert_eq!(
            text.is_some(),
            expected.is_some(),
            "{behaviour:?}: {text:?}"
        );
        let expected = expected.unwrap_or_default();
        assert!(text.unwrap_or_default().starts_with(expected), "{expected}");
    }
    for refused in [
        FrontendReq::SET_DEVICE_STATE_FD,
        FrontendReq::CHECK_DEVICE_STATE,
    ] {
        let daemon = FakeDaemon::new(Behaviour {
            refuses: Some(refused),
            ..Behaviour::default()
        });
        let mut daemon = daemon.connect().unwrap();
        let error = daemon.load(b"state").unwrap_err();
        assert!(matches!(error, DaemonError::Refused { .. }), "{error}");
        assert!(daemon.save().is_err());
    }
}

#[test]
fn daemon_that_hangs_up_leaves_a_guest_whose_requests_are_refused() {
    let daemon = FakeDaemon::new(Behaviour {
        hangs_up_at: Some(FrontendReq::RESET_DEVICE),
        ..Behaviour::default()
    });
    let mut guest = FakeGuest::connect(&daemon.path, None);
    guest.set_up();
    // It hangs up at the reset. The device has no state then, and connects again.
    assert_eq!(guest.tell(FrontendReq::RESET_DEVICE, Vec::new(), None), 0);
    assert!(!guest.status().contains("lost"), "{}", guest.status());
    guest.set_up();
    // It hangs up once more, while it has the guest's rings.
    let base = guest.ask(FrontendReq::GET_VRING_BASE, 0u64.to_le_bytes().to_vec());
    assert_eq!(base.len(), 8);
    guest.hang_up().unwrap();
}

#[test]
fn daemon_that_is_late_to_stop_a_ring_is_waited_for_and_keeps_its_requests() {
    let daemon = FakeDaemon::new(Behaviour {
        delays: Some((FrontendReq::SET_VRING_ENABLE, Duration::from_millis(1300))),
        ..Behaviour::default()
    });
    let mut daemon = daemon.connect().unwrap();
    daemon.disable_ring(1).unwrap();
    assert_eq!(daemon.stop_ring(1).unwrap(), 41);
}

#[test]
fn daemon_that_has_rings_and_does_not_answer_costs_the_guest_its_connection() {
    let daemon = FakeDaemon::new(Behaviour {
        ignores: Some(FrontendReq::SET_VRING_CALL),
        successes: 2,
        ..Behaviour::default()
    });
    let mut guest = FakeGuest::connect(&daemon.path, None);
    guest.set_up();
    let message = Message::new(FrontendReq::SET_VRING_CALL, 0x100u64.to_le_bytes().to_vec());
    message.send(guest.socket.as_fd(), &[], soon()).unwrap();
    let ended = guest.served.join().unwrap();
    assert!(
        matches!(ended, Err(GuestError::Fatal(Fatal::BackendUnresponsive(_)))),
        "{ended:?}"
    );
}
