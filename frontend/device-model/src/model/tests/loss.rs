//! What becomes of a guest's requests when its daemon is lost.

use std::fs::File;
use std::os::unix::fs::FileExt;

use gangplank_fuse::{InHeader, Opcode, OutHeader};
use zerocopy::{FromBytes, IntoBytes};

use super::*;

/// Offsets in the memory of each ring's parts, as [`Fixture::go`] sets them up.
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
const BUFFERS: u64 = 0x8_0000;

/// `-ENOTCONN`.
const NOT_CONNECTED: i32 = -107;

/// The guest's end of one ring: each request has descriptors of its own, a pair per request.
struct Driver {
    queue: u64,
    memory: File,
    made: u16,
}

impl Driver {
    fn new(fixture: &Fixture, queue: u64) -> Self {
        let transport = fixture.transport.lock();
        let memory = transport.device().memory.try_clone().unwrap();
        Self {
            queue,
            memory: memory.descriptor.into(),
            made: 0,
        }
    }

    fn at(&self, offset: u64) -> u64 {
        self.queue * 0x10000 + offset
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, at).unwrap();
    }

    fn buffer(&self, request: u16) -> u64 {
        BUFFERS + self.queue * 0x1_0000 + u64::from(request) * 0x100
    }

    /// Makes a request available, numbered from 100 on. It does not kick.
    fn submit(&mut self, opcode: Opcode) {
        let request = self.made;
        let header = InHeader {
            len: 40,
            opcode: opcode as u32,
            unique: 100 + u64::from(request),
            ..InHeader::default()
        };
        let buffer = self.buffer(request);
        self.write(buffer, header.as_bytes());
        let has_reply = opcode != Opcode::Forget;
        for (at, address, len, flags) in [
            (0, buffer, 40u32, u16::from(has_reply)),
            (1, buffer + 0x80, 16, 2),
        ] {
            let mut descriptor = (MEMORY + address).to_le_bytes().to_vec();
            descriptor.extend(len.to_le_bytes());
            descriptor.extend(flags.to_le_bytes());
            descriptor.extend((request * 2 + 1).to_le_bytes());
            self.write(self.at(u64::from(request * 2 + at) * 16), &descriptor);
        }
        let slot = self.at(AVAILABLE + 4 + u64::from(request) * 2);
        self.write(slot, &(request * 2).to_le_bytes());
        self.made += 1;
        self.write(self.at(AVAILABLE + 2), &self.made.to_le_bytes());
    }

    fn used(&self) -> u16 {
        let mut index = [0; 2];
        self.memory
            .read_exact_at(&mut index, self.at(USED + 2))
            .unwrap();
        u16::from_le_bytes(index)
    }

    /// The error in the reply to a request, and the length in its used element.
    fn reply(&self, request: u16) -> (i32, u32) {
        let mut reply = [0; 16];
        let at = self.buffer(request) + 0x80;
        self.memory.read_exact_at(&mut reply, at).unwrap();
        let reply = OutHeader::read_from_bytes(&reply).unwrap();
        if reply.len != 0 {
            assert_eq!(reply.unique, 100 + u64::from(request));
        }
        let mut element = [0; 8];
        let slot = self.at(USED + 4 + u64::from(request) * 8);
        self.memory.read_exact_at(&mut element, slot).unwrap();
        let [a, b, c, d, len @ ..] = element;
        assert_eq!(u32::from_le_bytes([a, b, c, d]), u32::from(request) * 2);
        (reply.error, u32::from_le_bytes(len))
    }

    fn until_used(&self, count: u16) {
        let deadline = Instant::now() + LIMIT;
        while self.used() != count {
            assert!(Instant::now() < deadline, "{} used", self.used());
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn kick(fixture: &Fixture, queue: u64) {
    fixture.set_to(Register::QueueNotify, queue);
}

#[test]
fn requests_fail_from_the_loss_of_a_daemon_on_until_the_guest_mounts_anew() {
    let fixture = Fixture::new(Daemon::default(), Some("myfs"));
    fixture.until_attached();
    fixture.negotiate();
    assert_eq!(fixture.go(), 0xf);
    let (mut high, mut low) = (Driver::new(&fixture, 0), Driver::new(&fixture, 1));
    // The daemon never replies.
    low.submit(Opcode::Getattr);
    low.submit(Opcode::Release);
    fixture.daemon.told();
    fixture.daemon.die();
    low.until_used(2);
    assert_eq!(low.reply(0), (NOT_CONNECTED, 16));
    assert_eq!(low.reply(1), (NOT_CONNECTED, 16));
    assert!(fixture.guest.interrupted(LIMIT).unwrap());
    assert_eq!(fixture.get(Register::InterruptStatus), 1);
    fixture.set_to(Register::InterruptAck, 1);

    // So do later requests, also beside a daemon that is back.
    fixture.daemon.come_back();
    high.submit(Opcode::Forget);
    kick(&fixture, 0);
    high.until_used(1);
    assert_eq!(high.reply(0), (0, 0));
    low.submit(Opcode::Getattr);
    kick(&fixture, 1);
    low.until_used(3);
    assert_eq!(low.reply(2), (NOT_CONNECTED, 16));
    assert_eq!(fixture.daemon.told(), [""; 0]);

    // Whoever unmounts is told that it worked.
    low.submit(Opcode::Destroy);
    kick(&fixture, 1);
    low.until_used(4);
    assert_eq!(low.reply(3), (0, 16));

    // The next session is the next daemon's, which goes on where the rings are.
    low.submit(Opcode::Init);
    kick(&fixture, 1);
    fixture.until_attached();
    assert_eq!(fixture.daemon.told(), started(USUAL, [1, 4]));
    assert_eq!(low.used(), 4);
    assert_eq!(fixture.get(Register::Status), 0xf);
    assert_eq!(fixture.transport.lock().device().error_replies(), 5);
    fixture.end();
}

#[test]
fn device_is_broken_by_a_request_that_may_have_its_reply_already_and_all_get_errors() {
    let fixture = Fixture::new(Daemon::default(), Some("myfs"));
    fixture.until_attached();
    fixture.negotiate();
    assert_eq!(fixture.go(), 0xf);
    let mut low = Driver::new(&fixture, 1);
    low.submit(Opcode::Getattr);
    let reply = OutHeader {
        len: 16,
        error: 0,
        unique: 100,
    };
    low.write(low.buffer(0) + 0x80, reply.as_bytes());
    fixture.daemon.die();
    fixture.until_broken();
    low.until_used(1);
    assert_eq!(low.reply(0), (NOT_CONNECTED, 16));

    // So do later ones, and one that opens a session, until the driver is unbound.
    for opcode in [Opcode::Read, Opcode::Init] {
        low.submit(opcode);
        kick(&fixture, 1);
        low.until_used(low.made);
        assert_eq!(low.reply(low.made - 1), (NOT_CONNECTED, 16));
    }
    fixture.daemon.come_back();
    low.submit(Opcode::Getattr);
    kick(&fixture, 1);
    low.until_used(4);
    fixture.set_to(Register::Status, 0);
    fixture.until_attached();
    fixture.negotiate();
    assert_eq!(fixture.go(), 0xf);
    assert_eq!(fixture.transport.lock().device().error_replies(), 4);
    fixture.end();
}

#[test]
fn requests_fail_that_have_waited_for_a_daemon_for_too_long() {
    let daemon = Daemon::default();
    daemon.die();
    daemon.state().absence_limit = Duration::from_millis(300);
    let fixture = Fixture::new(daemon, Some("myfs"));
    fixture.negotiate();
    assert_eq!(fixture.go(), 0xf);
    // Time without a request does not count.
    thread::sleep(Duration::from_millis(700));
    let mut low = Driver::new(&fixture, 1);
    let begun = Instant::now();
    low.submit(Opcode::Init);
    kick(&fixture, 1);
    low.until_used(1);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_eq!(low.reply(0), (NOT_CONNECTED, 16));
    assert_eq!(fixture.get(Register::Status), 0xf);

    // The next request waits as long, and a daemon that comes meanwhile gets it.
    fixture.daemon.state().absence_limit = Duration::from_secs(30);
    low.submit(Opcode::Init);
    kick(&fixture, 1);
    fixture.daemon.come_back();
    fixture.until_attached();
    assert_eq!(fixture.daemon.told(), started(USUAL, [0, 1]));
    assert_eq!(low.used(), 1);
    fixture.end();
}

#[test]
fn time_of_waiting_counts_anew_after_a_daemon_that_came() {
    const WAIT: Duration = Duration::from_millis(600);
    let daemon = Daemon::default();
    daemon.die();
    let fixture = Fixture::new(daemon, Some("myfs"));
    fixture.negotiate();
    assert_eq!(fixture.go(), 0xf);
    let mut low = Driver::new(&fixture, 1);
    low.submit(Opcode::Getattr);
    kick(&fixture, 1);
    let deadline = Instant::now() + LIMIT;
    while fixture.transport.lock().device().waiting_since.is_none() {
        assert!(Instant::now() < deadline, "nothing waits");
        thread::sleep(Duration::from_millis(1));
    }
    fixture.daemon.come_back();
    fixture.until_attached();
    fixture.daemon.die();
    low.until_used(1);

    thread::sleep(WAIT);
    fixture.daemon.state().absence_limit = WAIT;
    let begun = Instant::now();
    low.submit(Opcode::Init);
    kick(&fixture, 1);
    low.until_used(2);
    assert!(begun.elapsed() >= WAIT, "{:?}", begun.elapsed());
    fixture.end();
}

#[test]
fn driver_that_a_daemon_refuses_gets_errors() {
    let fixture = Fixture::before_refusal();
    let mut low = Driver::new(&fixture, 1);
    low.submit(Opcode::Init);
    kick(&fixture, 1);
    fixture.daemon.come_back();
    fixture.until_broken();
    low.until_used(1);
    assert_eq!(low.reply(0), (NOT_CONNECTED, 16));
    fixture.end();
}

#[test]
fn driver_that_breaks_its_rings_while_the_daemon_is_lost_breaks_its_device() {
    let fixture = Fixture::new(Daemon::default(), Some("myfs"));
    fixture.until_attached();
    fixture.negotiate();
    assert_eq!(fixture.go(), 0xf);
    fixture.daemon.die();
    fixture.until_lost();
    // The daemon may have died between a reply and its interrupt, so the guest gets one.
    assert!(fixture.guest.interrupted(LIMIT).unwrap());
    assert_eq!(fixture.get(Register::InterruptStatus), 1);
    fixture.set_to(Register::InterruptAck, 1);
    let low = Driver::new(&fixture, 1);
    low.write(low.at(AVAILABLE + 2), &1000u16.to_le_bytes());
    kick(&fixture, 1);
    fixture.until_broken();
    fixture.daemon.come_back();
    fixture.set_to(Register::Status, 0);
    fixture.negotiate();
    fixture.end();
}
