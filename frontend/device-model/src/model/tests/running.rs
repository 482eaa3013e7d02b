//! A device's threads, from start to end.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gangplank_vhost_user::client::Deadlines;

use super::backend::{Connection, Daemon};
use super::{LIMIT, MEMORY, config};
use crate::fake::{FakeGuest, FakePort, fake};
use crate::hypervisor::{GuestRange, Operation};
use crate::mmio::{Register, Status};
use crate::model::{RunningDevice, SocketConnector};

const SOON: Duration = Duration::from_millis(100);

fn run(tag: Option<&str>, daemon: &Daemon) -> (RunningDevice<FakePort, Connection>, FakeGuest) {
    let config = config(tag);
    let memory = GuestRange::new(MEMORY, 0x10_0000).unwrap();
    let (port, guest) = fake(config.window, memory).unwrap();
    let running = RunningDevice::start(&config, Arc::new(port), daemon.clone()).unwrap();
    (running, guest)
}

fn write(guest: &FakeGuest, register: Register, value: u64, limit: Duration) -> bool {
    let written = guest.access(register.offset(), 4, Operation::Write(value), limit);
    written.is_ok()
}

/// A driver without queues, which is enough to be running.
fn start_driver(guest: &FakeGuest) {
    for (register, value) in [
        (Register::Status, 1),
        (Register::Status, 3),
        (Register::DriverFeaturesSel, 1),
        (Register::DriverFeatures, 3),
        (Register::Status, 0xf),
    ] {
        assert!(write(guest, register, value, LIMIT));
    }
}

#[test]
fn guest_whose_tag_nobody_knows_waits_for_the_daemon() {
    let daemon = Daemon::default();
    daemon.die();
    let (running, guest) = run(None, &daemon);
    let magic = |limit| guest.access(0, 4, Operation::Read, limit);
    assert!(magic(SOON).is_err());
    assert!(!running.report().daemon);
    daemon.come_back();
    assert_eq!(magic(LIMIT), Ok(0x7472_6976));
    let report = running.report();
    assert!(report.daemon);
    assert_eq!((report.connections, report.faults), (1, 0));
    running.end();
    assert_eq!(guest.faults(), [""; 0]);
}

#[test]
fn device_that_ends_before_a_daemon_came_leaves_its_guest_to_the_next() {
    let daemon = Daemon::default();
    daemon.die();
    let (running, guest) = run(None, &daemon);
    assert!(!write(&guest, Register::Status, 1, SOON));
    running.end();
    assert_eq!(guest.unanswered(), (1, 0));
}

#[test]
fn device_that_ends_tells_its_driver_and_leaves_kicks_to_the_next() {
    let daemon = Daemon::default();
    let (running, guest) = run(None, &daemon);
    start_driver(&guest);
    assert_eq!(running.report().status.bits(), 0xf);
    let transport = Arc::clone(&running.transport);
    running.end();
    assert!(daemon.is_cut());
    let status = transport.lock().status();
    assert!(status.contains(Status::NEEDS_RESET));
    // The thread that waits for the guest may take one more access; further ones wait.
    let taken = write(&guest, Register::QueueNotify, 0, SOON);
    assert!(!write(&guest, Register::QueueNotify, 0, SOON));
    assert_eq!(guest.unanswered(), (2 - usize::from(taken), 0));
    assert_eq!(guest.faults(), [""; 0]);
}

#[test]
fn port_that_is_taken_away_is_noticed() {
    let (running, guest) = run(Some("myfs"), &Daemon::default());
    assert!(!running.has_ended());
    guest.take_away();
    let deadline = Instant::now() + LIMIT;
    while !running.has_ended() && Instant::now() < deadline {
        thread::yield_now();
    }
    assert!(running.has_ended());
    running.end();
}

#[test]
fn report_is_one_line() {
    let (running, guest) = run(Some("myfs"), &Daemon::default());
    start_driver(&guest);
    let line = running.report().to_string();
    assert!(line.starts_with("device 0: status 0xf ("), "{line}");
    assert!(line.contains("accesses 5, faults 0"), "{line}");
    running.end();
}

#[test]
fn socket_that_nobody_listens_on_leaves_the_guest_alone() {
    let config = config(Some("myfs"));
    let memory = GuestRange::new(MEMORY, 0x10_0000).unwrap();
    let (port, guest) = fake(config.window, memory).unwrap();
    let connector = SocketConnector {
        path: config.socket.clone(),
        deadlines: Deadlines::default(),
        absence_limit: Duration::from_secs(30),
    };
    let running = RunningDevice::start(&config, Arc::new(port), connector).unwrap();
    start_driver(&guest);
    assert_eq!(running.report().status.bits(), 0xf);
    assert!(!running.report().daemon);
    running.end();
}
