use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use gangplank_fuse::{InHeader, Opcode, OutHeader};
use gangplank_vhost_backend::Signal;
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::{FromBytes, IntoBytes};

use super::taking::MAX_PIECES;
use super::*;
use crate::endpoint::RemoteMemory;
use crate::tunnel::wire::MAX_REPLY;

/// Where the parts of request ring 1 are in the guest's memory. Request `n` and its room for a
/// reply follow at [`BUFFERS`].
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFERS: u64 = 0x4000;
const SIZE: u32 = 8;

/// A guest with one request ring.
struct Guest {
    memory: File,
    offered: u16,
}

impl Guest {
    fn new(limit: Duration) -> (Self, State) {
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(0x1_0000).unwrap();
        let guest = Self { memory, offered: 0 };
        let state = guest.state(limit);
        (guest, state)
    }

    /// A tunnel that the guest's frontend has set up.
    fn state(&self, limit: Duration) -> State {
        let table: Vec<u8> = [1, 0, 0x1_0000, 0, 0]
            .into_iter()
            .flat_map(u64::to_le_bytes)
            .collect();
        let shared = OwnedFd::from(self.memory.try_clone().unwrap());
        let mut state = State::new(limit);
        let decoded = Memory::decode(&table, vec![shared]).unwrap();
        let mut ring = Ring::default();
        assert!(ring.set_size(SIZE));
        let mut addresses = 0u32.to_le_bytes().to_vec();
        for word in [DESCRIPTORS, USED, AVAILABLE, 0] {
            addresses.extend_from_slice(&word.to_le_bytes());
        }
        assert!(ring.set_addresses(&addresses, &decoded));
        let kick = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        ring.set_signal(Signal::Kick, Some(kick));
        ring.is_started = true;
        state.memory = Some(Arc::new(decoded));
        state.features = Some(0);
        state.rings = vec![Ring::default(), ring];
        state.in_flight = vec![0, 0];
        state
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, at).unwrap();
    }

    /// Offers a request with `room` bytes for its reply.
    fn offer(&mut self, opcode: Opcode, room: u32) {
        let number = u64::from(self.offered);
        let header = InHeader {
            len: 40,
            opcode: opcode as u32,
            unique: number,
            ..InHeader::default()
        };
        let at = BUFFERS + number * 0x100;
        self.write(at, header.as_bytes());
        let first = self.offered * 2;
        for (index, address, len, flags, next) in [
            (first, at, 40, 1_u16, first + 1),
            (first + 1, at + 0x80, room, 2, 0),
        ] {
            let mut descriptor = address.to_le_bytes().to_vec();
            descriptor.extend_from_slice(&u32::to_le_bytes(len));
            descriptor.extend_from_slice(&flags.to_le_bytes());
            descriptor.extend_from_slice(&next.to_le_bytes());
            self.write(DESCRIPTORS + u64::from(index) * 16, &descriptor);
        }
        self.write(AVAILABLE + 4 + number * 2, &first.to_le_bytes());
        self.offered += 1;
        self.write(AVAILABLE + 2, &self.offered.to_le_bytes());
    }

    /// How many requests have come back.
    fn used(&self) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read_exact_at(&mut bytes, USED + 2).unwrap();
        u16::from_le_bytes(bytes)
    }

    /// The errno in the reply to request `number`.
    fn error(&self, number: u64) -> i32 {
        let mut bytes = [0; 16];
        let at = BUFFERS + number * 0x100 + 0x80;
        self.memory.read_exact_at(&mut bytes, at).unwrap();
        OutHeader::read_from_bytes(&bytes).unwrap().error
    }
}

fn sent(state: &mut State) -> Option<(Job, Place)> {
    match state.next(1) {
        Next::Send(job, place, _) => Some((job, place)),
        Next::Wait(_) | Next::End => None,
    }
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_request_that_is_not_finished_is_asked_for_in_its_place_and_others_go_on() {
    let (mut guest, mut state) = Guest::new(LONG);
    state.opened((7, 0, false), 4, 1);
    guest.offer(Opcode::Setlkw, 16);
    guest.offer(Opcode::Lookup, 16);
    state.take_requests();
    let (first, place) = sent(&mut state).unwrap();
    state.finish(first, place, Outcome::Pending);
    let (second, other) = sent(&mut state).unwrap();
    assert_ne!(place.slot, other.slot);
    state.finish(second, other, Outcome::Done(16));
    assert_eq!((guest.used(), state.counters.replied), (1, 1));
    std::thread::sleep(FIRST_PAUSE);
    let (_, again) = sent(&mut state).unwrap();
    assert_eq!((again.slot, again.number), (place.slot, place.number));
}

#[test]
fn a_slot_is_used_again_with_the_next_number() {
    let (mut guest, mut state) = Guest::new(LONG);
    state.opened((7, 0, false), 2, 1);
    guest.offer(Opcode::Lookup, 16);
    guest.offer(Opcode::Lookup, 16);
    state.take_requests();
    let (job, place) = sent(&mut state).unwrap();
    assert!(sent(&mut state).is_none(), "the only slot is in use");
    state.finish(job, place, Outcome::Done(16));
    let (_, next) = sent(&mut state).unwrap();
    assert_eq!((next.slot, next.number), (place.slot, place.number + 1));
}

#[test]
fn a_request_that_does_not_reach_the_server_fails_after_the_limit() {
    let limit = Duration::from_secs(1);
    let (mut guest, mut state) = Guest::new(limit);
    state.opened((7, 0, false), 4, 1);
    guest.offer(Opcode::Lookup, 16);
    state.take_requests();
    let (job, place) = sent(&mut state).unwrap();
    state.finish(job, place, Outcome::Unreached);
    assert!(sent(&mut state).is_none() && guest.used() == 0, "it waits");
    std::thread::sleep(limit);
    assert!(sent(&mut state).is_none());
    assert_eq!((guest.used(), guest.error(0)), (1, -libc::ENOTCONN));
    assert_eq!(state.in_flight, [0, 0]);
}

#[test]
fn a_lost_session_refuses_all_until_the_guest_opens_another() {
    let (mut guest, mut state) = Guest::new(LONG);
    state.opened((7, 0, false), 4, 1);
    for opcode in [Opcode::Lookup, Opcode::Read] {
        guest.offer(opcode, 16);
    }
    state.take_requests();
    let (job, place) = sent(&mut state).unwrap();
    state.finish(job, place, Outcome::Lost);
    assert_eq!((guest.used(), state.session), (2, Session::Lost));
    guest.offer(Opcode::Getattr, 16);
    state.take_requests();
    assert_eq!((guest.used(), guest.error(2)), (3, -libc::ENOTCONN));
    guest.offer(Opcode::Init, 16);
    state.take_requests();
    assert_eq!((guest.used(), state.session), (3, Session::Closed));
    state.opened((8, 0, false), 4, 1);
    let (_, place) = sent(&mut state).unwrap();
    assert_eq!(place.session, 8);
}

#[test]
fn a_request_of_a_stopped_ring_fails_although_it_is_being_exchanged_and_is_copied_to_no_more() {
    let (mut guest, mut state) = Guest::new(LONG);
    state.opened((7, 0, false), 2, 1);
    guest.offer(Opcode::Lookup, 16);
    guest.offer(Opcode::Getattr, 16);
    state.take_requests();
    let Next::Send(job, place, bytes) = state.next(1) else {
        panic!("nothing to send");
    };
    let reply = bytes.address() + job.readable;
    bytes.write(reply, &[7; 8]).unwrap();
    state.give_up(1);
    assert_eq!((guest.used(), state.in_flight[1]), (2, 0));
    assert_eq!([guest.error(0), guest.error(1)], [-libc::ENOTCONN; 2]);
    assert!(bytes.write(reply, &[9; 16]).is_err());
    assert!(bytes.read(bytes.address(), &mut [0; 8]).is_err());
    assert!(!bytes.is_fault());
    state.finish(job, place, Outcome::Done(16));
    assert_eq!((guest.used(), guest.error(0)), (2, -libc::ENOTCONN));
    assert_eq!(state.counters.replied, 0);
    // Its slot can be used again.
    guest.offer(Opcode::Lookup, 16);
    state.take_requests();
    let (_, next) = sent(&mut state).unwrap();
    assert_eq!((next.slot, next.number), (place.slot, place.number + 1));
}

#[test]
fn a_request_that_is_sent_again_counts() {
    let (mut guest, mut state) = Guest::new(LONG);
    state.opened((7, 0, false), 2, 1);
    guest.offer(Opcode::Lookup, 16);
    state.take_requests();
    let (job, place) = sent(&mut state).unwrap();
    state.finish(job, place, Outcome::Unreached);
    std::thread::sleep(RETRY_PAUSE);
    let (job, again) = sent(&mut state).unwrap();
    assert_eq!((place, state.counters.resent), (again, 1));
    state.finish(job, place, Outcome::Pending);
    std::thread::sleep(FIRST_PAUSE);
    let (job, place) = sent(&mut state).unwrap();
    state.finish(job, place, Outcome::Done(16));
    assert_eq!(state.counters.resent, 1);
}

#[test]
fn a_request_longer_than_a_copy_is_fatal() {
    let (mut guest, mut state) = Guest::new(LONG);
    guest.offer(Opcode::Read, MAX_REPLY + 1);
    state.take_requests();
    assert!(matches!(state.fatal, Some(Fatal::Lengths { .. })));
    assert!(matches!(state.next(1), Next::End));
}

#[test]
fn a_request_that_waits_for_a_slot_fails_only_when_the_server_is_silent() {
    let (mut guest, mut state) = Guest::new(LONG);
    state.opened((7, 0, false), 2, 1);
    guest.offer(Opcode::Setlkw, 16);
    guest.offer(Opcode::Lookup, 16);
    state.take_requests();
    let (lock, place) = sent(&mut state).unwrap();
    let now = Instant::now();
    state.waiting[0].deadline = now;
    state.heard = now.checked_sub(LONG).unwrap();
    state.finish(lock, place, Outcome::Pending);
    assert!(sent(&mut state).is_none(), "the only slot is in use");
    assert_eq!(state.counters.refused, 0);
    state.heard = now.checked_sub(LONG).unwrap();
    assert!(sent(&mut state).is_none());
    assert_eq!(state.counters.refused, 1);
    assert_eq!(guest.error(1), -libc::ENOTCONN);
}

#[test]
fn a_ring_whose_driver_offers_more_than_it_holds_is_stopped() {
    let (mut guest, mut state) = Guest::new(LONG);
    for _ in 0..4 {
        guest.offer(Opcode::Lookup, 16);
    }
    for offered in [4, 8] {
        guest.write(AVAILABLE + 2, &u16::to_le_bytes(offered));
        state.take_requests();
        assert!(!state.rings[1].broken);
    }
    // The first of them comes a third time.
    guest.write(AVAILABLE + 2, &9_u16.to_le_bytes());
    state.take_requests();
    assert!(state.rings[1].broken);
    assert_eq!(state.in_flight[1], 8);
}

#[test]
fn a_ring_with_a_chain_of_very_many_pieces_is_stopped() {
    let (mut guest, mut state) = Guest::new(LONG);
    guest.offer(Opcode::Lookup, 16);
    let pieces = u16::try_from(MAX_PIECES + 1).unwrap();
    let table = 0x8000_u64;
    let descriptor = |address: u64, len: u32, flags: u16, next: u16| {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes.extend_from_slice(&next.to_le_bytes());
        bytes
    };
    for index in 0..pieces {
        let flags = u16::from(index + 1 < pieces);
        let at = table + u64::from(index) * 16;
        guest.write(at, &descriptor(BUFFERS, 1, flags, index + 1));
    }
    guest.write(
        DESCRIPTORS,
        &descriptor(table, u32::from(pieces) * 16, 4, 0),
    );
    state.take_requests();
    assert!(state.rings[1].broken);
    assert_eq!(state.waiting(), 0);
}

mod take_over;
