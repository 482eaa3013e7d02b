//! Which requests get error replies, and which rings are taken over.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::split_queue::tests::Driver;

fn request(opcode: Opcode, unique: u64) -> Vec<u8> {
    let header = InHeader {
        len: 40,
        opcode: opcode as u32,
        unique,
        ..InHeader::default()
    };
    header.as_bytes().to_vec()
}

fn reply_of(driver: &Driver, head: u16) -> (i32, u64) {
    let reply = OutHeader::read_from_bytes(&driver.reply(head)).unwrap();
    assert_eq!(reply.len, 16);
    (reply.error, reply.unique)
}

fn reply_errors_to_all(driver: &Driver, base: &mut u16) -> Progress {
    let queue = driver.queue(true);
    reply_errors(&queue, base, &mut 0, SessionOpening::Stays).unwrap()
}

#[test]
fn every_request_is_told_that_nothing_is_connected_and_init_is_left() {
    let mut driver = Driver::new(8);
    for (head, opcode, has_room) in [
        (0, Opcode::Lookup, true),
        (1, Opcode::Forget, false),
        (2, Opcode::Destroy, true),
        (3, Opcode::Init, true),
    ] {
        driver.request(head, &request(opcode, 100 + u64::from(head)), has_room);
        driver.offer(head);
    }
    let mut base = 0;
    assert_eq!(reply_errors_to_all(&driver, &mut base), Progress::UpToInit);
    assert_eq!(base, 3);
    assert_eq!(reply_of(&driver, 0), (-107, 100));
    assert_eq!(reply_of(&driver, 2), (0, 102));
    assert_eq!(
        [driver.used(0), driver.used(1), driver.used(2)],
        [(0, 16), (1, 0), (2, 16)]
    );
    assert_eq!(driver.queue(true).used_index().unwrap(), 3);
}

#[test]
fn init_is_refused_where_no_daemon_is_expected() {
    let mut driver = Driver::new(8);
    for (head, opcode) in [(0, Opcode::Init), (1, Opcode::Lookup)] {
        driver.request(head, &request(opcode, 100 + u64::from(head)), true);
        driver.offer(head);
    }
    let (mut base, mut count) = (0, 0);
    let progress = reply_errors(
        &driver.queue(true),
        &mut base,
        &mut count,
        SessionOpening::Refused,
    );
    assert_eq!(progress.unwrap(), Progress::All);
    assert_eq!((base, count), (2, 2));
    assert_eq!(reply_of(&driver, 0), (-107, 100));
    assert_eq!(reply_of(&driver, 1), (-107, 101));
}

#[test]
fn rubbish_comes_back_unanswered() {
    let mut driver = Driver::new(8);
    driver.request(5, b"short", true);
    driver.offer(5);
    let mut base = 0;
    assert_eq!(reply_errors_to_all(&driver, &mut base), Progress::All);
    assert_eq!((base, driver.used(0)), (1, (5, 0)));
}

#[test]
fn what_was_in_flight_in_order_is_answered_from_there() {
    let mut driver = Driver::new(8);
    for head in [0, 1, 2] {
        driver.request(head, &request(Opcode::Read, u64::from(head)), true);
        driver.offer(head);
    }
    driver.queue(true).complete(0, 16).unwrap();
    let reclaimed = reclaim_inflight(&driver.queue(true)).unwrap();
    assert_eq!(
        reclaimed,
        Reclaimed::At {
            base: 1,
            refused: 0
        }
    );
}

#[test]
fn requests_left_behind_are_answered_at_once() {
    let mut driver = Driver::new(8);
    for head in [4, 1, 2] {
        driver.request(head, &request(Opcode::Read, 7 + u64::from(head)), true);
        driver.offer(head);
    }
    driver.queue(true).complete(2, 16).unwrap();
    let reclaimed = reclaim_inflight(&driver.queue(true)).unwrap();
    assert_eq!(
        reclaimed,
        Reclaimed::At {
            base: 3,
            refused: 2
        }
    );
    assert_eq!(reply_of(&driver, 4), (-107, 11));
    assert_eq!(reply_of(&driver, 1), (-107, 8));
    assert_eq!(driver.queue(true).used_index().unwrap(), 3);
}

#[test]
fn a_request_that_waits_for_ever_behind_one_head_is_never_guessed() {
    let mut driver = Driver::new(8);
    // Request 1 waits for a lock. Request 0 comes and goes until the ring shows no other.
    driver.request(1, &request(Opcode::Setlkw, 5), true);
    driver.offer(1);
    driver.request(0, &request(Opcode::Read, 6), true);
    for _ in 0..20 {
        driver.offer(0);
        driver.queue(true).complete(0, 16).unwrap();
    }
    let done = OutHeader::ok(Unique::new(6), 0);
    driver.set_reply(0, done.as_bytes().try_into().unwrap());
    let reclaimed = reclaim_inflight(&driver.queue(true)).unwrap();
    assert_eq!(reclaimed, Reclaimed::Undecidable);
    // As many come back as are in flight.
    assert_eq!(
        refuse_likely_inflight(&driver.queue(true)).unwrap(),
        (21, 1)
    );
    assert_eq!(
        refuse_likely_inflight(&driver.queue(true)).unwrap(),
        (21, 0)
    );
}

#[test]
fn likely_requests_in_flight_are_refused_whether_they_look_answered_or_not() {
    let mut driver = Driver::new(8);
    for head in [4, 1, 2] {
        driver.request(head, &request(Opcode::Read, 7 + u64::from(head)), true);
        driver.offer(head);
    }
    driver.queue(true).complete(1, 16).unwrap();
    let done = OutHeader::ok(Unique::new(11), 0);
    driver.set_reply(4, done.as_bytes().try_into().unwrap());
    assert_eq!(refuse_likely_inflight(&driver.queue(true)).unwrap(), (3, 2));
    assert_eq!(reply_of(&driver, 4), (-107, 11));
    assert_eq!(reply_of(&driver, 2), (-107, 9));
    assert_eq!([driver.used(1), driver.used(2)], [(4, 16), (2, 16)]);
}

#[test]
fn draining_is_waited_for_within_a_limit() {
    let mut driver = Driver::new(8);
    driver.offer(0);
    let short = Duration::from_millis(20);
    assert!(is_drained(&driver.queue(true), 0, short).unwrap());
    assert!(!is_drained(&driver.queue(true), 1, short).unwrap());
    driver.queue(true).complete(0, 0).unwrap();
    assert!(is_drained(&driver.queue(true), 1, short).unwrap());
}

/// A driver and a daemon that work on one ring, step by step.
struct Simulation {
    driver: Driver,
    /// Chains that the driver may use. It takes the last freed one first, as Linux does.
    free: Vec<u16>,
    /// Chains the daemon has, oldest first, with the number of each one's request.
    in_flight: Vec<(u16, u64)>,
    requests: u64,
}

impl Simulation {
    fn new(size: u16) -> Self {
        Self {
            driver: Driver::new(size),
            free: (0..size).rev().collect(),
            in_flight: Vec::new(),
            requests: 0,
        }
    }

    fn ask(&mut self) {
        if let Some(head) = self.free.pop() {
            self.requests += 1;
            let request = request(Opcode::Getattr, self.requests);
            self.driver.request(head, &request, true);
            self.driver.offer(head);
            self.in_flight.push((head, self.requests));
        }
    }

    fn write_reply(&self, which: usize) -> Option<u16> {
        let (head, unique) = *self.in_flight.get(which)?;
        let reply = OutHeader::ok(Unique::new(unique), 0);
        self.driver
            .set_reply(head, reply.as_bytes().try_into().unwrap());
        Some(head)
    }

    fn give_back(&mut self, which: usize) {
        if let Some(head) = self.write_reply(which) {
            self.driver.queue(true).complete(head, 16).unwrap();
            self.in_flight.remove(which);
            self.free.push(head);
        }
    }

    /// The daemon dies. Returns whether the relay knew the requests in flight; if so, each got
    /// one reply, and no other request did.
    fn die(&mut self) -> bool {
        let queue = self.driver.queue(true);
        let before = queue.used_index().unwrap();
        let Reclaimed::At { mut base, .. } = reclaim_inflight(&queue).unwrap() else {
            return false;
        };
        reply_errors(&queue, &mut base, &mut 0, SessionOpening::Stays).unwrap();
        let after = queue.used_index().unwrap();
        let answered: Vec<u16> = (0..after.wrapping_sub(before))
            .map(|offset| queue.used_head(before.wrapping_add(offset)).unwrap())
            .collect();
        let unique: BTreeSet<u16> = answered.iter().copied().collect();
        let expected: BTreeSet<u16> = self.in_flight.iter().map(|(head, _)| *head).collect();
        assert_eq!(unique, expected);
        assert_eq!(answered.len(), expected.len());
        assert_eq!(base, after);
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn requests_of_a_daemon_that_answers_in_order_are_known(
        steps in prop::collection::vec(any::<bool>(), 0..300),
        size in prop::sample::select(&[8u16, 64][..]),
        is_half_answered: bool,
    ) {
        let mut simulation = Simulation::new(size);
        // Several chains are in flight, so that entries differ.
        for _ in 0..3 {
            simulation.ask();
        }
        for step in steps {
            match step {
                true => simulation.ask(),
                false if simulation.in_flight.len() > 2 => simulation.give_back(0),
                false => {}
            }
        }
        if is_half_answered {
            simulation.write_reply(0);
        }
        // Only a daemon that died between a reply and its used entry leaves a doubt.
        let is_known = simulation.die();
        prop_assert!(is_known || is_half_answered);
    }

    #[test]
    fn requests_of_a_daemon_that_answers_in_any_order_are_known_or_not_guessed(
        steps in prop::collection::vec((any::<bool>(), 0usize..8), 0..300),
    ) {
        let mut simulation = Simulation::new(8);
        for (asks, which) in steps {
            match asks {
                true => simulation.ask(),
                false => simulation.give_back(which),
            }
        }
        simulation.die();
    }
}
