//! Daemons that note their requests in flight, and the successors that get the notes.

use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use gangplank_vhost_user::message::FrontendReq;

use super::LIMIT;
use super::fake_daemon::{Behaviour, FakeDaemon};
use super::fake_guest::FakeGuest;
use crate::control::Command;
use crate::device::Files;

/// Where the parts of ring 1 are in the guest's memory.
const DESCRIPTORS: u64 = 0x2_0000;
const AVAILABLE: u64 = 0x2_1000;
const USED: u64 = 0x2_2000;

/// FUSE's numbers of requests.
const GETATTR: u8 = 3;
const INIT: u8 = 26;

/// A daemon that hangs up when the guest changes a call descriptor of its two rings.
const MORTAL: Behaviour = Behaviour {
    refuses: None,
    ignores: None,
    delays: None,
    hangs_up_at: Some(FrontendReq::SET_VRING_CALL),
    successes: 2,
    has_no_state: true,
    consumes_nothing: false,
    has_inflight: true,
};

impl FakeGuest {
    /// Offers a GETATTR on ring 1, whose used index becomes `used`.
    fn offer_one(&self, available: u16, used: u16) {
        self.offer(GETATTR, available, used);
    }

    fn offer(&self, opcode: u8, available: u16, used: u16) {
        let memory = self.memory.as_ref().unwrap();
        let write = |at: u64, bytes: &[u8]| memory.write_all_at(bytes, at).unwrap();
        // Length, opcode, number.
        write(0x4_0000, &[40, 0, 0, 0, opcode, 0, 0, 0, 9]);
        for (index, address, len, flags) in
            [(0_u64, 0x4_0000_u64, 40_u32, 1_u16), (1, 0x4_1000, 16, 2)]
        {
            let mut descriptor = address.to_le_bytes().to_vec();
            descriptor.extend_from_slice(&len.to_le_bytes());
            descriptor.extend_from_slice(&flags.to_le_bytes());
            descriptor.extend_from_slice(&1_u16.to_le_bytes());
            write(DESCRIPTORS + index * 16, &descriptor);
        }
        write(AVAILABLE + 2, &available.to_le_bytes());
        write(USED + 2, &used.to_le_bytes());
    }

    /// Has the daemon hang up.
    fn kill_daemon(&mut self) {
        // With no descriptor: the bit of the protocol for that.
        let ring = 0x101_u64.to_le_bytes().to_vec();
        assert_eq!(self.tell(FrontendReq::SET_VRING_CALL, ring, None), 0);
    }

    fn wait_until(&self, is_so: impl Fn(&str) -> bool) {
        let begun = Instant::now();
        while !is_so(&self.status()) {
            assert!(begun.elapsed() < LIMIT, "{}", self.status());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The payloads of a message that a daemon has got.
fn payloads(daemon: &FakeDaemon, request: FrontendReq) -> Vec<Vec<u8>> {
    let received = daemon.received.lock().unwrap();
    let those = received
        .iter()
        .filter(|(number, _)| *number == u32::from(request));
    those.map(|(_, payload)| payload.clone()).collect()
}

#[test]
fn the_successor_of_a_daemon_gets_its_notes_before_the_rings_and_these_behind_what_is_used() {
    let daemon = FakeDaemon::new(MORTAL);
    let mut guest = FakeGuest::connect_returning(&daemon.path, None, Some(LIMIT));
    guest.set_up();
    guest.offer_one(7, 5);
    guest.kill_daemon();
    guest.wait_until(|status| status.contains("daemons 2"));
    let status = guest.status();
    assert!(
        status.contains("served by") && status.contains("losses 1, requests refused 0"),
        "{status}"
    );
    guest.hang_up().unwrap();
    let notes = payloads(&daemon, FrontendReq::SET_INFLIGHT_FD);
    assert_eq!(notes.len(), 2);
    assert_eq!(notes[0], notes[1]);
    assert_eq!(payloads(&daemon, FrontendReq::GET_INFLIGHT_FD).len(), 1);
    let bases = payloads(&daemon, FrontendReq::SET_VRING_BASE);
    let expected = [1_u32.to_le_bytes(), 5_u32.to_le_bytes()].concat();
    assert_eq!(bases.last(), Some(&expected));
    let requests = daemon.requests();
    let last = |request| requests.iter().rposition(|one| *one == request).unwrap();
    let first_ring = requests.len() - 12;
    assert_eq!(
        last(FrontendReq::SET_INFLIGHT_FD) + 1,
        first_ring,
        "{requests:?}"
    );
}

#[test]
fn requests_fail_when_no_successor_comes_in_time() {
    let daemon = FakeDaemon::new(MORTAL);
    let time = Duration::from_millis(150);
    let mut guest = FakeGuest::connect_returning(&daemon.path, None, Some(time));
    guest.set_up();
    guest.offer_one(1, 0);
    std::fs::remove_file(&daemon.path).unwrap();
    let begun = Instant::now();
    guest.kill_daemon();
    guest.wait_until(|status| status.contains("lost"));
    assert!(begun.elapsed() >= time);
    assert!(
        guest.status().contains("losses 1, requests refused 1"),
        "{}",
        guest.status()
    );
    guest.hang_up().unwrap();
}

#[test]
fn requests_that_no_successor_gets_ahead_with_do_not_wait_for_ever() {
    let daemon = FakeDaemon::new(MORTAL);
    let time = Some(Duration::from_millis(200));
    let mut guest = FakeGuest::connect_returning(&daemon.path, None, time);
    guest.set_up();
    guest.offer_one(1, 0);
    let begun = Instant::now();
    while !guest.status().contains("lost") {
        assert!(begun.elapsed() < LIMIT, "{}", guest.status());
        guest.kill_daemon();
        thread::sleep(Duration::from_millis(20));
    }
    assert!(guest.status().contains("refused 1"), "{}", guest.status());
    guest.hang_up().unwrap();
}

#[test]
fn successors_of_which_each_gets_ahead_may_be_lost_one_after_another() {
    let daemon = FakeDaemon::new(MORTAL);
    let time = Duration::from_millis(300);
    let mut guest = FakeGuest::connect_returning(&daemon.path, None, Some(time));
    guest.set_up();
    let begun = Instant::now();
    let mut lost = 0;
    while begun.elapsed() < time * 2 {
        guest.offer_one(lost + 2, lost + 1);
        guest.kill_daemon();
        lost += 1;
        let daemons = format!("daemons {}", lost + 1);
        guest.wait_until(|status| status.contains(&daemons));
        thread::sleep(Duration::from_millis(20));
    }
    assert!(guest.status().contains("refused 0"), "{}", guest.status());
    guest.hang_up().unwrap();
}

#[test]
fn a_daemon_that_notes_nothing_has_no_successor() {
    let daemon = FakeDaemon::new(Behaviour {
        has_inflight: false,
        ..MORTAL
    });
    let mut guest = FakeGuest::connect_returning(&daemon.path, None, Some(LIMIT));
    guest.set_up();
    guest.offer_one(1, 0);
    guest.kill_daemon();
    assert!(guest.status().contains("refused 1"), "{}", guest.status());
    guest.hang_up().unwrap();
}

#[test]
fn a_request_that_waits_for_a_lock_outlives_losses_that_are_far_apart() {
    let daemon = FakeDaemon::new(MORTAL);
    let time = Duration::from_millis(500);
    let mut guest = FakeGuest::connect_returning(&daemon.path, None, Some(time));
    guest.set_up();
    guest.offer_one(1, 0);
    for loss in 1..=2 {
        guest.kill_daemon();
        let daemons = format!("daemons {}", loss + 1);
        guest.wait_until(|status| status.contains(&daemons) || status.contains("lost"));
        assert!(guest.status().contains("refused 0"), "{}", guest.status());
        thread::sleep(time);
    }
    guest.hang_up().unwrap();
}

#[test]
fn a_guest_whose_daemon_ends_while_it_is_paused_goes_on_with_the_next() {
    let daemon = FakeDaemon::new(Behaviour {
        consumes_nothing: true,
        ..MORTAL
    });
    let mut guest = FakeGuest::connect_returning(&daemon.path, None, Some(LIMIT));
    guest.set_up();
    guest.command(Command::Pause).unwrap();
    daemon.hang_up();
    assert!(guest.status().starts_with("paused"), "{}", guest.status());
    guest.command(Command::Resume).unwrap();
    guest.wait_until(|status| status.contains("daemons 2"));
    assert!(guest.status().contains("refused 0"), "{}", guest.status());
    guest.hang_up().unwrap();
    let notes = payloads(&daemon, FrontendReq::SET_INFLIGHT_FD);
    assert_eq!(notes.len(), 2);
    assert_eq!(payloads(&daemon, FrontendReq::GET_INFLIGHT_FD).len(), 1);
}

#[test]
fn the_session_after_a_lost_one_has_nothing_of_its_notes() {
    let daemon = FakeDaemon::new(MORTAL);
    let clumsy = FakeDaemon::new(Behaviour {
        refuses: Some(FrontendReq::SET_VRING_NUM),
        consumes_nothing: true,
        ..MORTAL
    });
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("fs.sock");
    let link = |daemon: &FakeDaemon| {
        let _ = std::fs::remove_file(&socket);
        std::os::unix::fs::symlink(&daemon.path, &socket).unwrap();
    };
    link(&daemon);
    let mut guest = FakeGuest::connect_returning(&socket, None, Some(LIMIT));
    guest.set_up();
    guest.offer_one(1, 0);
    // The next one takes a ring, and then refuses it.
    link(&clumsy);
    guest.kill_daemon();
    guest.wait_until(|status| status.contains("lost"));
    link(&daemon);
    guest.offer(INIT, 2, 1);
    guest.wait_until(|status| status.contains("served by"));
    guest.hang_up().unwrap();
    assert_eq!(payloads(&daemon, FrontendReq::GET_INFLIGHT_FD).len(), 2);
}

#[test]
fn the_daemon_that_a_guest_is_switched_to_notes_its_requests_too() {
    let behaviour = Behaviour {
        has_inflight: true,
        consumes_nothing: true,
        ..Behaviour::default()
    };
    let (old, new) = (FakeDaemon::new(behaviour), FakeDaemon::new(behaviour));
    let mut guest = FakeGuest::connect_returning(&old.path, None, Some(LIMIT));
    guest.set_up();
    let switched = guest.command(Command::Switch {
        socket: new.path.clone(),
        files: Files::Kept,
    });
    assert!(switched.is_ok(), "{switched:?}");
    guest.hang_up().unwrap();
    assert_eq!(payloads(&new, FrontendReq::SET_INFLIGHT_FD).len(), 1);
}
