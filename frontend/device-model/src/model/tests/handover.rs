//! A device model that ends, and its successor.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::backend::{Connection, Daemon};
use super::{LIMIT, MEMORY, config};
use crate::config::DeviceConfig;
use crate::fake::{FakeGuest, FakePort, fake};
use crate::fd_store::Slot;
use crate::fd_store::tests::{TestFdStore, claim_when_free};
use crate::hypervisor::{GuestRange, Operation};
use crate::journal::Journal;
use crate::mmio::{Register, Registers};
use crate::model::{Handover, RunningDevice};

/// A guest and a backend that see several device models.
struct Fixture {
    held: TestFdStore,
    port: Arc<FakePort>,
    guest: FakeGuest,
    daemon: Daemon,
    config: DeviceConfig,
}

impl Fixture {
    fn new(name: &str, tag: Option<&str>) -> Self {
        let config = config(tag);
        let memory = GuestRange::new(MEMORY, 0x10_0000).unwrap();
        let (port, guest) = fake(config.window, memory).unwrap();
        Self {
            held: TestFdStore::start(name),
            port: Arc::new(port),
            guest,
            daemon: Daemon::default(),
            config,
        }
    }

    /// The next device model, started as the program starts one, after `change` was made to the
    /// journal.
    fn next_after(&self, change: impl FnOnce(&Journal)) -> RunningDevice<FakePort, Connection> {
        let entry = Arc::new(claim_when_free(&self.held, 0));
        let (journal, readable) = match entry.get(Slot::Journal).unwrap() {
            Some(left) => Journal::open(left, 0).unwrap(),
            None => {
                let journal = Journal::new(0).unwrap();
                entry.put(Slot::Journal, journal.descriptor()).unwrap();
                (journal, true)
            }
        };
        change(&journal);
        let handover = Handover::new(entry, Arc::new(journal), readable);
        let port = Arc::clone(&self.port);
        RunningDevice::take_over(&self.config, port, self.daemon.clone(), handover).unwrap()
    }

    fn next(&self) -> RunningDevice<FakePort, Connection> {
        self.next_after(|_| {})
    }

    fn end(&self, running: RunningDevice<FakePort, Connection>) {
        let ended = running.ended().try_clone_to_owned().unwrap();
        running.end();
        // The thread that waits for the guest ends with its process, or when it is interrupted.
        self.guest.interrupt_wait();
        let mut awaited = [PollFd::new(&ended, PollFlags::IN)];
        poll(&mut awaited, None).unwrap();
    }

    fn get(&self, register: Register) -> u64 {
        let read = self
            .guest
            .access(register.offset(), 4, Operation::Read, LIMIT);
        read.unwrap()
    }

    fn read_tag(&self) -> u64 {
        self.guest.access(0x100, 4, Operation::Read, LIMIT).unwrap()
    }

    fn set_to(&self, register: Register, value: u64) {
        let write = Operation::Write(value);
        self.guest
            .access(register.offset(), 4, write, LIMIT)
            .unwrap();
    }

    /// A driver with one queue of 128 entries.
    fn drive(&self) {
        for (register, value) in [
            (Register::Status, 0),
            (Register::Status, 1),
            (Register::Status, 3),
            (Register::DriverFeaturesSel, 1),
            (Register::DriverFeatures, 3),
            (Register::Status, 0xb),
            (Register::QueueSel, 1),
            (Register::QueueNum, 128),
            (Register::QueueDescLow, MEMORY),
            (Register::QueueDriverLow, MEMORY + 0x4000),
            (Register::QueueDeviceLow, MEMORY + 0x8000),
            (Register::QueueReady, 1),
            (Register::Status, 0xf),
        ] {
            self.set_to(register, value);
        }
        assert_eq!(self.get(Register::Status), 0xf);
    }

    fn until_daemon(&self, running: &RunningDevice<FakePort, Connection>) {
        let deadline = Instant::now() + LIMIT;
        while !running.report().daemon {
            assert!(Instant::now() < deadline, "no daemon");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn rings(told: &[String]) -> usize {
    told.iter().filter(|word| word.contains("VRING")).count()
}

#[test]
fn successor_goes_on_and_neither_guest_nor_daemon_notices() {
    let fixture = Fixture::new("goes on", None);
    let mut running = fixture.next();
    fixture.until_daemon(&running);
    fixture.drive();
    assert!(rings(&fixture.daemon.told()) > 0);
    for _ in 0..3 {
        fixture.end(running);
        running = fixture.next();
        assert!(running.report().daemon);
        assert_eq!(fixture.get(Register::Status), 0xf);
        assert_eq!(fixture.get(Register::QueueReady), 1);
        assert_eq!(fixture.read_tag(), u64::from(u32::from_le_bytes(*b"myfs")));
        // An interrupt may have been lost, so the guest gets one.
        assert!(fixture.guest.interrupted(LIMIT).unwrap());
        assert_eq!(fixture.get(Register::InterruptStatus), 1);
        fixture.set_to(Register::InterruptAck, 1);
        assert_eq!(fixture.daemon.told(), [""; 0]);
    }
    assert_eq!(fixture.daemon.state().connections, 1);
    fixture.set_to(Register::Status, 0);
    let stopped = [
        "SET_VRING_ENABLE 1 false",
        "GET_VRING_BASE 1",
        "RESET_DEVICE",
    ];
    assert_eq!(fixture.daemon.told(), stopped);
    fixture.drive();
    fixture.end(running);
    assert!(!fixture.daemon.is_cut());
    assert_eq!(fixture.guest.faults(), [""; 0]);
}

#[test]
fn daemon_that_may_still_work_on_the_rings_is_given_up_and_the_guest_is_told() {
    let fixture = Fixture::new("told", Some("myfs"));
    let first = fixture.next();
    fixture.until_daemon(&first);
    fixture.drive();
    fixture.end(first);
    let second = fixture.next_after(Journal::invalidate_backend);
    assert_eq!(fixture.get(Register::Status), 0x4f);
    assert_eq!(fixture.get(Register::InterruptStatus), 3);
    // The daemon may still write to the memory of its requests.
    assert!(second.transport.lock().device().lost_queues().is_none());
    fixture.end(second);
    // The next one knows no more.
    let third = fixture.next();
    assert_eq!(fixture.get(Register::Status), 0x4f);
    assert!(third.transport.lock().device().lost_queues().is_none());
    fixture.set_to(Register::Status, 0);
    fixture.until_daemon(&third);
    fixture.drive();
    fixture.end(third);
    assert_eq!(fixture.guest.faults(), [""; 0]);
}

#[test]
fn successor_takes_the_rings_over_from_a_daemon_that_died_meanwhile() {
    let fixture = Fixture::new("died", Some("myfs"));
    let mut running = fixture.next();
    fixture.until_daemon(&running);
    fixture.drive();
    fixture.end(running);
    fixture.daemon.die();
    fixture.daemon.come_back();
    fixture.daemon.told();
    // So does each further one.
    for _ in 0..2 {
        running = fixture.next();
        assert_eq!(fixture.get(Register::Status), 0xf);
        assert!(running.transport.lock().device().lost_queues().is_some());
        assert_eq!(fixture.daemon.told(), [""; 0]);
        fixture.end(running);
    }
    running = fixture.next();
    fixture.set_to(Register::Status, 0);
    fixture.until_daemon(&running);
    fixture.drive();
    fixture.end(running);
    assert_eq!(fixture.guest.faults(), [""; 0]);
}

#[test]
fn driver_that_waits_for_a_daemon_is_started_by_the_successor() {
    let fixture = Fixture::new("waits", Some("myfs"));
    fixture.daemon.die();
    let first = fixture.next();
    fixture.drive();
    fixture.end(first);
    fixture.daemon.come_back();
    let second = fixture.next();
    fixture.until_daemon(&second);
    assert_eq!(fixture.get(Register::Status), 0xf);
    assert!(rings(&fixture.daemon.told()) > 0);
    fixture.end(second);
    assert_eq!(fixture.guest.faults(), [""; 0]);
}

#[test]
fn driver_whose_queues_do_not_fit_the_device_any_more_has_to_reset() {
    let mut fixture = Fixture::new("smaller", Some("myfs"));
    let first = fixture.next();
    fixture.until_daemon(&first);
    fixture.drive();
    fixture.end(first);
    fixture.daemon.told();
    fixture.config.queue_size = 64;
    let second = fixture.next();
    assert_eq!(fixture.get(Register::Status), 0x4f);
    assert_eq!(fixture.get(Register::InterruptStatus), 2);
    let told = fixture.daemon.told();
    assert!(told.contains(&"GET_VRING_BASE 1".to_owned()), "{told:?}");
    fixture.set_to(Register::Status, 0);
    assert_eq!(fixture.get(Register::Status), 0);
    fixture.end(second);
}

#[test]
fn device_model_that_ends_within_a_reset_is_succeeded_by_one_that_has_reset() {
    let fixture = Fixture::new("within a reset", Some("myfs"));
    let first = fixture.next();
    fixture.until_daemon(&first);
    fixture.drive();
    fixture.end(first);
    fixture.daemon.told();
    // The registers were saved, and the backend was not told yet.
    let reset = Registers {
        config: vec![0; 40],
        ..Registers::default()
    };
    let second = fixture.next_after(|journal| journal.save(&reset));
    let told = fixture.daemon.told();
    assert!(told.contains(&"RESET_DEVICE".to_owned()), "{told:?}");
    assert_eq!(fixture.get(Register::Status), 0);
    fixture.drive();
    fixture.end(second);
    assert_eq!(fixture.guest.faults(), [""; 0]);
}

#[test]
fn registers_of_another_version_are_told_as_a_broken_device() {
    let fixture = Fixture::new("another version", Some("myfs"));
    let first = fixture.next();
    fixture.until_daemon(&first);
    fixture.drive();
    fixture.end(first);
    let entry = Arc::new(claim_when_free(&fixture.held, 0));
    let left = entry.get(Slot::Journal).unwrap().unwrap();
    let (journal, _) = Journal::open(left, 0).unwrap();
    let handover = Handover::new(entry, Arc::new(journal), false);
    let port = Arc::clone(&fixture.port);
    let daemon = fixture.daemon.clone();
    let second = RunningDevice::take_over(&fixture.config, port, daemon, handover).unwrap();
    assert_eq!(fixture.get(Register::Status), 0x40);
    fixture.drive();
    fixture.end(second);
}

#[test]
fn wait_that_must_not_be_cut_short_is_ended_by_the_guest_itself() {
    let mut fixture = Fixture::new("fragile", Some("myfs"));
    let memory = GuestRange::new(MEMORY, 0x10_0000).unwrap();
    let (port, guest) = fake(fixture.config.window, memory).unwrap();
    fixture.port = Arc::new(port.fragile());
    fixture.guest = guest;
    let running = fixture.next();
    fixture.drive();
    let ended = running.ended().try_clone_to_owned().unwrap();
    let cpu = fixture.guest.clone();
    let handler = std::thread::spawn(move || {
        assert!(cpu.interrupted(LIMIT).unwrap());
        cpu.access(
            Register::InterruptStatus.offset(),
            4,
            Operation::Read,
            LIMIT,
        )
    });
    while !fixture.guest.is_awaited() {
        std::thread::yield_now();
    }
    running.end();
    let mut awaited = [PollFd::new(&ended, PollFlags::IN)];
    assert_eq!(poll(&mut awaited, Some(&Timespec::default())).unwrap(), 1);
    // The guest has been told nothing, and so makes no further access.
    assert_eq!(handler.join().unwrap(), Ok(0));
    assert_eq!(fixture.guest.unanswered(), (0, 0));
    assert_eq!(fixture.guest.faults(), [""; 0]);
}
