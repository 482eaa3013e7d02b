//! Pausing a device, and replacing its daemon.

use std::io::{ErrorKind, Read};

use gangplank_vhost_user::message::FrontendReq;

use super::fake_daemon::{Behaviour, FakeDaemon};
use super::fake_guest::FakeGuest;
use crate::control::Command;
use crate::device::Files;

#[test]
fn state_goes_from_one_daemon_to_the_next() {
    let (old, new) = (
        FakeDaemon::new(Behaviour::default()),
        FakeDaemon::new(Behaviour::default()),
    );
    let mut guest = FakeGuest::connect(&old.path, None);
    guest.set_up();
    // The daemon has taken 40 entries of the rings and used none.
    let busy = guest.command(Command::Pause);
    assert!(busy.is_err_and(|text| text.contains("in flight")));
    assert!(guest.status().contains("served by"));
    drop(guest);
    let mut daemon = old.connect().unwrap();
    let state = daemon.save().unwrap();
    assert_eq!(state, b"what I know");
    new.connect().unwrap().load(&state).unwrap();
    let received = new.received.lock().unwrap();
    assert!(received.contains(&(0, b"what I know".to_vec())));
    assert_eq!(
        received.last().unwrap().0,
        u32::from(FrontendReq::CHECK_DEVICE_STATE)
    );
}

#[test]
fn guest_hears_of_replies_that_came_while_its_rings_stopped() {
    let daemon = FakeDaemon::new(Behaviour {
        consumes_nothing: true,
        ..Behaviour::default()
    });
    let mut guest = FakeGuest::connect(&daemon.path, None);
    guest.set_up();
    for call in &guest.calls {
        call.set_nonblocking(true).unwrap();
        let early = (&mut &*call).read(&mut [0; 8]).unwrap_err();
        assert_eq!(early.kind(), ErrorKind::WouldBlock);
    }
    guest.command(Command::Pause).unwrap();
    for call in &guest.calls {
        assert!((&mut &*call).read(&mut [0; 8]).unwrap() > 0);
    }
    guest.hang_up().unwrap();
}

/// Otherwise virtiofsd may look for requests in a stopped ring for ever.
#[test]
fn all_rings_are_disabled_before_the_first_is_stopped() {
    let daemon = FakeDaemon::new(Behaviour {
        consumes_nothing: true,
        ..Behaviour::default()
    });
    let mut guest = FakeGuest::connect(&daemon.path, None);
    guest.set_up();
    let before = daemon.requests().len();
    guest.command(Command::Pause).unwrap();
    let requests = daemon.requests().split_off(before);
    let stops = [FrontendReq::SET_VRING_ENABLE, FrontendReq::GET_VRING_BASE];
    let stops: Vec<_> = stops.iter().flat_map(|one| [*one; 2]).collect();
    assert!(requests.starts_with(&stops), "{requests:?}");
    guest.hang_up().unwrap();
}

#[test]
fn daemon_without_state_is_not_left_unless_that_is_wanted() {
    let behaviour = Behaviour {
        has_no_state: true,
        ..Behaviour::default()
    };
    let (without, other) = (FakeDaemon::new(behaviour), FakeDaemon::new(behaviour));
    let guest = FakeGuest::connect(&without.path, None);
    let command = |files| Command::Switch {
        socket: other.path.clone(),
        files,
    };
    let refused = guest.command(command(Files::Kept)).unwrap_err();
    assert!(refused.contains("DEVICE_STATE"), "{refused}");
    assert!(guest.command(command(Files::Lost)).is_ok());
    assert!(guest.command(Command::Resume).is_err());
    guest.hang_up().unwrap();
}

#[test]
fn daemon_that_had_a_ring_for_a_moment_is_not_followed_by_the_one_before() {
    let old = FakeDaemon::new(Behaviour {
        consumes_nothing: true,
        ..Behaviour::default()
    });
    // It takes the first ring, and hangs up at the second.
    let new = FakeDaemon::new(Behaviour {
        hangs_up_at: Some(FrontendReq::SET_VRING_KICK),
        successes: 1,
        ..Behaviour::default()
    });
    let mut guest = FakeGuest::connect(&old.path, None);
    guest.set_up();
    let switched = guest.command(Command::Switch {
        socket: new.path.clone(),
        files: Files::Kept,
    });
    let text = switched.unwrap_err();
    assert!(text.contains("SET_VRING_KICK"), "{text}");
    assert!(guest.status().contains("lost"), "{}", guest.status());
    guest.hang_up().unwrap();
}

#[test]
fn paused_guest_stays_paused_where_the_other_daemon_fails() {
    let old = FakeDaemon::new(Behaviour {
        consumes_nothing: true,
        ..Behaviour::default()
    });
    let new = FakeDaemon::new(Behaviour {
        refuses: Some(FrontendReq::CHECK_DEVICE_STATE),
        ..Behaviour::default()
    });
    let mut guest = FakeGuest::connect(&old.path, None);
    guest.set_up();
    guest.command(Command::Pause).unwrap();
    let switched = guest.command(Command::Switch {
        socket: new.path.clone(),
        files: Files::Kept,
    });
    assert!(switched.is_err());
    assert!(guest.status().contains("paused"), "{}", guest.status());
    guest.command(Command::Resume).unwrap();
    assert!(guest.status().contains("served"), "{}", guest.status());
    guest.hang_up().unwrap();
}

#[test]
fn guest_is_not_moved_to_the_daemon_that_it_has() {
    let daemon = FakeDaemon::new(Behaviour::default());
    let mut guest = FakeGuest::connect(&daemon.path, None);
    guest.set_up();
    let command = Command::Switch {
        socket: daemon.path.clone(),
        files: Files::Kept,
    };
    let text = guest.command(command).unwrap();
    assert!(text.contains("already"), "{text}");
    guest.hang_up().unwrap();
}
