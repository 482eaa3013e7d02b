//! Guest, device and backend in every order of coming and going.

mod backend;
mod handover;
mod loss;
mod running;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::*;
use crate::config::DeviceConfig;
use crate::fake::{FakeGuest, fake};
use crate::hypervisor::{GuestRange, Operation, Port};
use crate::mmio::{EventFds, Register, Transport};
use backend::{Connection, Daemon};
use gangplank_vhost_user::feature;

const LIMIT: Duration = Duration::from_secs(10);
const MEMORY: u64 = 0x1000_0000;

/// Bits that a guest needs.
/// What every daemon has.
const USUAL: u64 = feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX;

/// What the guest is offered.
const OFFERED: u64 = USUAL | feature::ACCESS_PLATFORM;

/// A device that is served, with its guest and backend.
struct Fixture {
    guest: FakeGuest,
    daemon: Daemon,
    transport: Arc<Mutex<Transport<FsDevice<Connection>>>>,
    connections: Arc<AtomicU64>,
    attached: mpsc::Receiver<()>,
    stop: Arc<StopEvent>,
    threads: Vec<thread::JoinHandle<()>>,
}

fn config(tag: Option<&str>) -> DeviceConfig {
    DeviceConfig {
        id: 0,
        window: GuestRange::new(0xa00_3e00, 0x200).unwrap(),
        memory: None,
        socket: "/nonexistent".into(),
        tag: tag.map(str::to_owned),
        num_request_queues: 1,
        queue_size: 256,
    }
}

impl Fixture {
    fn new(daemon: Daemon, tag: Option<&str>) -> Self {
        let config = config(tag);
        let memory = GuestRange::new(MEMORY, 0x10_0000).unwrap();
        let (port, guest) = fake(config.window, memory).unwrap();
        let eventfds = Arc::new(EventFds::connect(&port, 2).unwrap());
        let device = FsDevice::new(
            &config,
            port.memory().try_clone().unwrap(),
            Arc::clone(&eventfds),
        );
        let transport = Transport::new(device, eventfds, config.window, memory);
        let transport = Arc::new(Mutex::new(transport));
        let stop = Arc::new(StopEvent::new().unwrap());
        let connections = Arc::new(AtomicU64::new(0));
        let (attaches, attached) = mpsc::channel();
        let serving = Arc::clone(&transport);
        let keeping = (
            Arc::clone(&transport),
            Arc::clone(&stop),
            Arc::clone(&connections),
            daemon.clone(),
        );
        let threads = vec![
            thread::spawn(move || {
                let served = serve(
                    &port,
                    &serving,
                    &Counters::default(),
                    &AtomicBool::new(false),
                );
                assert!(served.is_err());
            }),
            thread::spawn(move || {
                let (transport, stop, connections, daemon) = keeping;
                maintain(&daemon, None, &transport, &stop, &connections, || {
                    attaches.send(()).unwrap();
                });
            }),
        ];
        Self {
            guest,
            daemon,
            transport,
            connections,
            attached,
            stop,
            threads,
        }
    }

    fn until_attached(&self) {
        self.attached.recv_timeout(LIMIT).unwrap();
    }

    fn get(&self, register: Register) -> u64 {
        self.read(register.offset(), 4)
    }

    fn read(&self, offset: u64, width: u64) -> u64 {
        self.guest
            .access(offset, width, Operation::Read, LIMIT)
            .unwrap()
    }

    fn set_to(&self, register: Register, value: u64) {
        let write = Operation::Write(value);
        self.guest
            .access(register.offset(), 4, write, LIMIT)
            .unwrap();
    }

    fn offered(&self) -> u64 {
        let words = [0, 1].map(|selector| {
            self.set_to(Register::DeviceFeaturesSel, selector);
            self.get(Register::DeviceFeatures)
        });
        words[0] | words[1] << 32
    }

    /// Goes up to FEATURES_OK, and accepts every feature that is offered.
    fn negotiate(&self) -> u64 {
        self.set_to(Register::Status, 0);
        self.set_to(Register::Status, 1);
        self.set_to(Register::Status, 3);
        let features = self.offered();
        for (selector, word) in [(1, features >> 32), (0, features & 0xffff_ffff)] {
            self.set_to(Register::DriverFeaturesSel, selector);
            self.set_to(Register::DriverFeatures, word);
        }
        self.set_to(Register::Status, 0xb);
        assert_eq!(self.get(Register::Status), 0xb);
        features
    }

    /// Sets the queues up and goes to DRIVER_OK. Returns the status after that.
    fn go(&self) -> u64 {
        for queue in [0, 1] {
            let base = MEMORY + queue * 0x10000;
            self.set_to(Register::QueueSel, queue);
            self.set_to(Register::QueueNum, 128);
            self.set_to(Register::QueueDescLow, base);
            self.set_to(Register::QueueDriverLow, base + 0x4000);
            self.set_to(Register::QueueDeviceLow, base + 0x8000);
            self.set_to(Register::QueueReady, 1);
        }
        self.set_to(Register::Status, 0xf);
        self.get(Register::Status)
    }

    /// A driver is ready, and the daemon that comes will refuse it.
    fn before_refusal() -> Self {
        let daemon = Daemon::default();
        daemon.die();
        daemon.state().refuses = Some("SET_MEM_TABLE");
        let fixture = Self::new(daemon, Some("myfs"));
        fixture.negotiate();
        assert_eq!(fixture.go(), 0xf);
        fixture
    }

    /// Waits until the device has taken the rings over from a daemon that is gone.
    fn until_lost(&self) {
        let deadline = Instant::now() + LIMIT;
        while self.transport.lock().device().lost_queues().is_none() {
            assert!(Instant::now() < deadline, "the daemon is not lost");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for the status that comes with an interrupt when the device is broken. Requests may
    /// have error replies already, with an interrupt of their own.
    fn until_broken(&self) {
        assert!(self.guest.interrupted(LIMIT).unwrap());
        assert_eq!(self.get(Register::Status), 0x4f);
        assert_eq!(self.get(Register::InterruptStatus) & 2, 2);
    }

    /// Ends all threads. No access is left unanswered.
    fn end(self) {
        self.stop.set();
        self.guest.take_away();
        for thread in self.threads {
            thread.join().unwrap();
        }
        assert_eq!(self.guest.faults(), [""; 0]);
        assert_eq!(self.guest.unanswered(), (0, 0));
    }
}

/// All messages to the backend when both queues start from `bases`.
fn started(features: u64, bases: [u16; 2]) -> Vec<String> {
    let mut told = vec![
        format!("SET_FEATURES {:#x}", features | feature::PROTOCOL_FEATURES),
        "SET_MEM_TABLE 0x10000000 0x100000".to_owned(),
    ];
    for (ring, base) in bases.into_iter().enumerate() {
        told.push(format!("SET_VRING_NUM {ring} 128"));
        told.push(format!("SET_VRING_ADDR {ring} 0x100{ring}0000"));
        told.push(format!("SET_VRING_BASE {ring} {base}"));
        told.push(format!("SET_VRING_CALL {ring}"));
        told.push(format!("SET_VRING_KICK {ring}"));
    }
    for ring in 0..bases.len() {
        told.push(format!("SET_VRING_ENABLE {ring} true"));
    }
    told
}

const STOPPED: [&str; 5] = [
    "SET_VRING_ENABLE 0 false",
    "SET_VRING_ENABLE 1 false",
    "GET_VRING_BASE 0",
    "GET_VRING_BASE 1",
    "RESET_DEVICE",
];

#[test]
fn daemon_first_starts_and_resets_and_starts_again() {
    let fixture = Fixture::new(Daemon::default(), None);
    fixture.until_attached();
    for _ in 0..3 {
        let features = fixture.negotiate();
        assert_eq!(features, OFFERED);
        assert_eq!(fixture.daemon.told(), [""; 0]);
        assert_eq!(fixture.go(), 0xf);
        let told = started(USUAL, [0, 0]);
        assert_eq!(fixture.daemon.told(), told);
        fixture.set_to(Register::Status, 0);
        assert_eq!(fixture.daemon.told(), STOPPED);
    }
    assert_eq!(fixture.daemon.state().connections, 1);
    fixture.end();
}

#[test]
fn guest_first_waits_in_its_queues_until_a_daemon_comes() {
    let daemon = Daemon::default();
    daemon.die();
    let fixture = Fixture::new(daemon, Some("myfs"));
    // The features of every backend, and the configured tag.
    assert_eq!(fixture.negotiate(), OFFERED);
    assert_eq!(
        fixture.read(0x100, 4),
        u64::from(u32::from_le_bytes(*b"myfs"))
    );
    assert_eq!(fixture.read(0x124, 4), 1);
    assert_eq!(fixture.go(), 0xf);
    fixture.daemon.come_back();
    fixture.until_attached();
    assert_eq!(fixture.daemon.told(), started(USUAL, [0, 0]));
    assert_eq!(fixture.get(Register::Status), 0xf);
    assert_eq!(fixture.get(Register::InterruptStatus), 0);
    fixture.end();
}

#[test]
fn guest_that_resets_before_a_daemon_came_leaves_nothing_to_start() {
    let daemon = Daemon::default();
    daemon.die();
    let fixture = Fixture::new(daemon, Some("myfs"));
    fixture.negotiate();
    assert_eq!(fixture.go(), 0xf);
    fixture.set_to(Register::Status, 0);
    fixture.daemon.come_back();
    fixture.until_attached();
    assert_eq!(fixture.daemon.told(), [""; 0]);
    fixture.end();
}

#[test]
fn daemon_that_comes_back_gets_the_driver_after_a_reset() {
    let fixture = Fixture::new(Daemon::default(), None);
    fixture.until_attached();
    for round in 0..2 {
        fixture.negotiate();
        assert_eq!(fixture.go(), 0xf);
        fixture.daemon.told();
        fixture.daemon.die();
        fixture.until_lost();
        fixture.daemon.come_back();
        // The new backend does not get the rings of a backend that knew the guest's files.
        assert_eq!(fixture.get(Register::Status), 0xf);
        assert_eq!(fixture.daemon.told(), [""; 0]);
        assert_eq!(fixture.daemon.state().connections, round + 1);
        let begun = Instant::now();
        fixture.set_to(Register::Status, 0);
        assert!(begun.elapsed() < LIMIT);
        assert_eq!(fixture.get(Register::Status), 0);
        fixture.until_attached();
    }
    fixture.negotiate();
    assert_eq!(fixture.go(), 0xf);
    assert_eq!(fixture.connections.load(Ordering::Relaxed), 3);
    fixture.end();
}

#[test]
fn daemon_that_is_replaced_before_the_driver_is_ready_is_not_noticed() {
    let fixture = Fixture::new(Daemon::default(), Some("myfs"));
    fixture.until_attached();
    fixture.negotiate();
    fixture.daemon.die();
    fixture.daemon.come_back();
    fixture.until_attached();
    assert_eq!(fixture.go(), 0xf);
    let told = started(USUAL, [0, 0]);
    assert_eq!(fixture.daemon.told(), told);
    fixture.end();
}

#[test]
fn daemon_with_less_than_was_negotiated_is_not_given_the_driver() {
    let fixture = Fixture::new(Daemon::default(), Some("myfs"));
    fixture.until_attached();
    assert_eq!(fixture.negotiate() & feature::EVENT_IDX, feature::EVENT_IDX);
    fixture.daemon.die();
    fixture.daemon.state().features &= !feature::EVENT_IDX;
    let before = fixture.daemon.state().connections;
    fixture.daemon.come_back();
    while fixture.daemon.state().connections == before {
        std::thread::yield_now();
    }
    // It is refused, and the guest waits for another.
    assert_eq!(fixture.go(), 0xf);
    let told = fixture.daemon.told();
    assert!(!told.iter().any(|word| word.contains("VRING")), "{told:?}");
    fixture.daemon.state().features |= feature::EVENT_IDX;
    fixture.until_attached();
    assert_eq!(fixture.daemon.told(), started(USUAL, [0, 0]));
    assert_eq!(fixture.get(Register::Status), 0xf);
    fixture.end();
}

#[test]
fn guest_is_offered_what_the_last_daemon_had_while_the_next_is_awaited() {
    let fixture = Fixture::new(Daemon::default(), Some("myfs"));
    fixture.until_attached();
    fixture.negotiate();
    assert_eq!(fixture.go(), 0xf);
    fixture.daemon.die();
    fixture.until_lost();
    assert_eq!(fixture.negotiate(), OFFERED);
    assert_eq!(fixture.go(), 0xf);
    fixture.daemon.told();
    fixture.daemon.come_back();
    fixture.until_attached();
    let told = started(USUAL, [0, 0]);
    assert_eq!(fixture.daemon.told(), told);
    fixture.end();
}

#[test]
fn daemon_that_refuses_to_start_breaks_the_device_and_is_cut() {
    let daemon = Daemon::default();
    daemon.state().refuses = Some("SET_VRING_KICK 1");
    let fixture = Fixture::new(daemon, None);
    fixture.until_attached();
    fixture.negotiate();
    assert_eq!(fixture.go(), 0x4f);
    assert_eq!(fixture.get(Register::InterruptStatus), 2);
    fixture.daemon.state().refuses = None;
    fixture.set_to(Register::Status, 0);
    fixture.until_attached();
    fixture.negotiate();
    assert_eq!(fixture.go(), 0xf);
    fixture.end();
}

#[test]
fn daemon_that_comes_late_and_refuses_breaks_the_device() {
    let fixture = Fixture::before_refusal();
    fixture.daemon.come_back();
    fixture.until_broken();
    fixture.end();
}

#[test]
fn reset_is_complete_though_the_daemon_does_not_take_part() {
    let fixture = Fixture::new(Daemon::default(), None);
    fixture.until_attached();
    fixture.negotiate();
    assert_eq!(fixture.go(), 0xf);
    fixture.daemon.state().refuses = Some("GET_VRING_BASE");
    fixture.set_to(Register::Status, 0);
    assert_eq!(fixture.get(Register::Status), 0);
    // A backend that may still use the rings is disconnected.
    fixture.until_attached();
    fixture.daemon.state().refuses = None;
    fixture.negotiate();
    assert_eq!(fixture.go(), 0xf);
    assert_eq!(fixture.daemon.state().connections, 2);
    fixture.end();
}

#[test]
fn stopped_queue_stays_stopped_and_the_other_goes_on_where_it_was() {
    let fixture = Fixture::new(Daemon::default(), None);
    fixture.until_attached();
    fixture.negotiate();
    assert_eq!(fixture.go(), 0xf);
    fixture.daemon.told();
    fixture.set_to(Register::QueueSel, 0);
    fixture.set_to(Register::QueueReady, 0);
    assert_eq!(fixture.get(Register::QueueReady), 0);
    let told = fixture.daemon.told();
    assert_eq!(told[..4], STOPPED[..4]);
    let again: Vec<&String> = told[4..]
        .iter()
        .filter(|word| word.contains("VRING"))
        .collect();
    assert!(again.iter().all(|word| word.contains(" 1")), "{told:?}");
    assert!(told.contains(&"SET_VRING_BASE 1 41".to_owned()), "{told:?}");
    assert!(told.contains(&"SET_VRING_ENABLE 1 true".to_owned()));
    fixture.end();
}

#[test]
fn daemons_tag_is_shown_and_its_change_is_told() {
    let fixture = Fixture::new(Daemon::default(), None);
    fixture.until_attached();
    assert_eq!(
        fixture.read(0x100, 4),
        u64::from(u32::from_le_bytes(*b"myfs"))
    );
    // The configured number of queues, whatever the backend says.
    assert_eq!(fixture.read(0x124, 4), 1);
    let generation = fixture.get(Register::ConfigGeneration);
    fixture.daemon.die();
    fixture.daemon.state().tag = b"next";
    fixture.daemon.come_back();
    fixture.until_attached();
    assert_eq!(
        fixture.read(0x100, 4),
        u64::from(u32::from_le_bytes(*b"next"))
    );
    assert_ne!(fixture.get(Register::ConfigGeneration), generation);
    fixture.end();
}

#[test]
fn daemon_without_enough_queues_or_a_tag_is_tried_again_and_not_used() {
    let daemon = Daemon::default();
    daemon.state().queues = 1;
    let fixture = Fixture::new(daemon, None);
    let deadline = Instant::now() + LIMIT;
    while fixture.daemon.state().connections < 2 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    assert!(!fixture.transport.lock().device().is_attached());
    fixture.daemon.state().queues = 2;
    fixture.daemon.state().tag = b"";
    let tried = fixture.daemon.state().connections;
    while fixture.daemon.state().connections < tried + 2 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(fixture.connections.load(Ordering::Relaxed), 0);
    fixture.daemon.state().tag = b"myfs";
    fixture.until_attached();
    fixture.end();
}

#[test]
fn cut_connection_is_seen_by_the_daemon() {
    let daemon = Daemon::default();
    let (session, line) = daemon.connect().unwrap();
    let memory = GuestRange::new(MEMORY, 0x10_0000).unwrap();
    let config = config(Some("myfs"));
    let (port, _guest) = fake(config.window, memory).unwrap();
    let eventfds = Arc::new(EventFds::new(2).unwrap());
    let mut device = FsDevice::new(&config, port.memory().try_clone().unwrap(), eventfds);
    assert_eq!(
        device.attach(session, Arc::new(line)).unwrap(),
        Change::None
    );
    assert!(!daemon.is_cut());
    assert_eq!(device.detach(), Change::None);
    assert!(daemon.is_cut());
}
