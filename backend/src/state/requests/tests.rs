//! A small driver and device, killed after each store in turn.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::super::arena::Limits;
use super::*;

/// Heads of the ring.
const RING: u16 = 4;

/// Requests that the driver sends, with each head used more than once.
const REQUESTS: usize = 9;

thread_local! {
    /// Stores until the worker is killed.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

struct Killed;

/// Comes before each store, of the device and of the ring in guest memory.
pub(super) fn kill_point() {
    let left = LEFT.get();
    if left == 0 {
        resume_unwind(Box::new(Killed));
    }
    LEFT.set(left.saturating_sub(usize::from(left != usize::MAX)));
}

/// How a device completes the requests of a batch.
#[derive(Clone, Copy, Debug)]
enum Order {
    /// Each when it has run.
    AtOnce,
    /// All have run before the first is returned.
    Withheld,
    /// The last is returned first.
    Reversed,
    /// The first waits, and the others are returned before it.
    FirstWaits,
}

/// Guest memory and the driver.
#[derive(Default)]
struct Guest {
    /// The available ring: all that was ever made available.
    available: Vec<u16>,
    /// The used ring: its entries, and its index.
    used: [u16; RING as usize],
    used_index: u16,
    /// What the driver has seen of the used ring.
    seen: u16,
    free: Vec<u16>,
    /// The request that each head carries.
    carries: [Option<usize>; RING as usize],
    sent: usize,
    replies: [usize; REQUESTS],
}

impl Guest {
    fn step(&mut self) {
        while self.seen != self.used_index {
            let head = self.used[usize::from(self.seen % RING)];
            let request = self.carries[usize::from(head)].take();
            self.replies[request.expect("the driver has not got this chain back")] += 1;
            self.free.push(head);
            self.seen += 1;
        }
        while self.sent < REQUESTS
            && let Some(head) = self.free.pop()
        {
            self.carries[usize::from(head)] = Some(self.sent);
            self.available.push(head);
            self.sent += 1;
        }
    }
}

/// What the file system has done.
#[derive(Default)]
struct Done {
    runs: [usize; REQUESTS],
    /// The reply was complete.
    complete: [bool; REQUESTS],
}

struct Device<'a> {
    requests: &'a Arc<RingRequests>,
    guest: &'a mut Guest,
    done: &'a mut Done,
}

impl Device<'_> {
    fn request(&self, head: u16) -> usize {
        self.guest.carries[usize::from(head)].expect("a request")
    }

    fn run(&mut self, head: u16) {
        let request = self.request(head);
        assert!(!self.done.complete[request], "run after its reply");
        self.requests.start(head);
        kill_point();
        self.done.runs[request] += 1;
        self.requests.done(head, 80);
        self.done.complete[request] = true;
    }

    fn publish(&mut self, head: u16) {
        let used = self.guest.used_index;
        self.requests.publish(head, used, 80);
        kill_point();
        self.guest.used[usize::from(used % RING)] = head;
        kill_point();
        self.guest.used_index += 1;
        self.requests.free(head);
        self.guest.step();
    }

    fn run_batch(&mut self, heads: &[u16], order: Order) {
        let ready: Vec<u16> = match (order, heads) {
            (Order::AtOnce, _) => {
                for head in heads {
                    self.run(*head);
                    self.publish(*head);
                }
                return;
            }
            (Order::FirstWaits, [first, rest @ ..]) => {
                self.requests.start(*first);
                self.requests.park(*first);
                rest.iter().for_each(|head| self.run(*head));
                rest.iter().for_each(|head| self.publish(*head));
                vec![*first]
            }
            (Order::Reversed, _) => heads.iter().rev().copied().collect(),
            _ => heads.to_vec(),
        };
        ready.iter().for_each(|head| self.run(*head));
        ready.iter().for_each(|head| self.publish(*head));
    }

    /// A worker, from its start until the driver has all replies.
    fn serve(&mut self, order: Order) {
        for (head, pending) in self.requests.recover(self.guest.used_index, Blame::Killed) {
            if !matches!(pending, Pending::Done(_)) {
                self.run(head);
            }
            self.publish(head);
        }
        self.guest.step();
        loop {
            let next = self.requests.next_available();
            let heads = self.guest.available[usize::from(next)..].to_vec();
            if heads.is_empty() {
                break;
            }
            self.requests
                .take(heads.iter().copied())
                .expect("a correct driver");
            self.run_batch(&heads, order);
        }
    }
}

fn arena(ring_size: usize) -> Arc<Arena> {
    let limits = Limits {
        rings: 1,
        ring_size,
        ..Limits::SMALL
    };
    Arena::new(limits).expect("an arena")
}

/// Serves the requests with workers that are killed before their stores of these numbers. Returns
/// whether the last of them was killed.
fn serve(requests: &Arc<RingRequests>, order: Order, kills: &[usize]) -> bool {
    requests.set_up(0);
    let mut guest = Guest {
        free: (0..RING).collect(),
        ..Guest::default()
    };
    let mut done = Done::default();
    guest.step();
    let mut was_killed = false;
    for kill in kills.iter().chain(&[usize::MAX]) {
        LEFT.set(*kill);
        let mut device = Device {
            requests,
            guest: &mut guest,
            done: &mut done,
        };
        let served = catch_unwind(AssertUnwindSafe(|| device.serve(order)));
        LEFT.set(usize::MAX);
        match served {
            Ok(()) if *kill == usize::MAX => {}
            Ok(()) => was_killed = false,
            Err(killed) if killed.is::<Killed>() => was_killed = true,
            Err(panic) => resume_unwind(panic),
        }
    }
    assert_eq!(guest.replies, [1; REQUESTS], "{order:?} {kills:?}");
    assert!(done.runs.iter().all(|runs| *runs >= 1));
    was_killed
}

const ORDERS: [Order; 4] = [
    Order::AtOnce,
    Order::Withheld,
    Order::Reversed,
    Order::FirstWaits,
];

#[test]
fn every_request_is_answered_once_wherever_two_workers_are_killed() {
    let arena = arena(RING.into());
    let requests = RingRequests::new(&arena, 0).expect("a ring");
    for order in ORDERS {
        let mut first = 0;
        while serve(&requests, order, &[first]) {
            let mut second = 0;
            while serve(&requests, order, &[first, second]) {
                second += 1;
            }
            first += 1;
        }
        // Each request is stored to at least 8 times.
        assert!(first > 8 * REQUESTS, "{order:?} was killed {first} times");
    }
}

#[test]
fn a_request_is_poisoned_by_two_failures_or_six_kills() {
    let arena = arena(4);
    let requests = RingRequests::new(&arena, 0).expect("a ring");
    for (blame, limit) in [(Blame::Failed, 2), (Blame::Killed, 6)] {
        requests.set_up(0);
        requests.take([1]).expect("free");
        for death in 1..=limit {
            requests.start(1);
            let found = requests.recover(0, blame);
            let expected = Interrupted {
                is_poisoned: death == limit,
                ..Interrupted::default()
            };
            assert_eq!(found, [(1, Pending::Interrupted(expected))], "{blame:?}");
            // A death before it runs again counts nothing.
            assert_eq!(requests.recover(0, blame), found);
        }
    }
}

#[test]
fn what_a_handler_notes_is_known_after_a_death_and_gone_with_the_next_request() {
    let arena = arena(4);
    let requests = RingRequests::new(&arena, 0).expect("a ring");
    let interrupted = |requests: &RingRequests| match requests.recover(0, Blame::Killed)[..] {
        [(3, Pending::Interrupted(interrupted))] => interrupted,
        ref other => panic!("{other:?}"),
    };
    requests.take([3]).expect("free");
    requests.start(3);
    {
        let _current = Current::enter(&requests, 3);
        note_operation(35, true);
        note_auxiliary(7);
    }
    note_operation(1, false);
    let noted = interrupted(&requests);
    assert_eq!((noted.opcode, noted.auxiliary), (35, 7));
    assert!(noted.time > Duration::from_secs(1));
    requests.free(3);
    requests.take([3]).expect("free");
    requests.start(3);
    assert_eq!(interrupted(&requests), Interrupted::default());
}

#[test]
fn a_chain_in_flight_is_not_taken_again() {
    let arena = arena(4);
    let requests = RingRequests::new(&arena, 0).expect("a ring");
    requests.set_up(0xffff);
    assert_eq!(requests.take([0, 1, 0, 2]), Err(InFlight { taken: 2 }));
    assert_eq!(requests.next_available(), 1);
    // A head outside the ring has no slot.
    requests.take([9]).expect("counted");
    let found = requests.recover(0, Blame::Killed);
    assert_eq!(found, [(0, Pending::Taken), (1, Pending::Taken)]);
    assert!(RingRequests::new(&arena, 1).is_none());
}

#[test]
fn the_words_of_a_slot_come_back() {
    for state in 0..6 {
        let bits = 0x1234_5678_9abc_de00 | state;
        assert_eq!(Word::from_bits(bits).to_bits(), bits);
    }
    assert_eq!(Word::from_bits(0xff).state, State::Free);
}
