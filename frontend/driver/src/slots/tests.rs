use proptest::prelude::*;

use super::*;
use crate::fake_device::FakeDevice;

const SIZE: u16 = 16;

struct Fixture {
    memory: Arc<Memory>,
    slots: Slots,
    device: FakeDevice,
}

impl Fixture {
    fn new(indirect: bool) -> Self {
        let memory = Arc::new(Memory::new(4 << 20).unwrap());
        let ring = Ring::new(&memory, 1, SIZE, true).unwrap();
        let device = FakeDevice::new(&memory, ring.addresses(), SIZE);
        let slots = Slots::new(&memory, 1, ring, indirect).unwrap();
        Self {
            memory,
            slots,
            device,
        }
    }

    fn submit(&mut self, request: &[u8], reply_room: usize, receive: usize) -> Option<u16> {
        let buffer = |len: usize| {
            let buffer = Buffer::new(&self.memory, len).unwrap();
            (buffer, u32::try_from(len).unwrap())
        };
        let buffers = RequestBuffers {
            request: request.to_vec(),
            send: None,
            reply_room,
            receive: (receive != 0).then(|| buffer(receive)),
        };
        let overflow = Slots::overflow(&self.memory, &buffers).unwrap();
        let mut buffers = Some((buffers, overflow));
        self.slots.submit(&mut buffers).map(|(slot, _)| slot)
    }
}

#[test]
fn answers_reach_their_own_requests_in_whatever_order() {
    for indirect in [false, true] {
        let mut fixture = Fixture::new(indirect);
        let first = fixture.submit(b"first", 32, 0).unwrap();
        let second = fixture.submit(b"second", 32, 0).unwrap();
        let chains = [
            fixture.device.take().unwrap(),
            fixture.device.take().unwrap(),
        ];
        for (head, segments) in chains.iter().rev() {
            let request = fixture.device.request(segments);
            fixture.device.answer(segments, &request);
            let len = u32::try_from(request.len()).unwrap();
            fixture.device.give_back(u32::from(*head), len);
        }
        assert_eq!(fixture.slots.collect(), Ok(2));
        assert_eq!(fixture.slots.take_answer(first).unwrap().reply, b"first");
        assert_eq!(fixture.slots.take_answer(second).unwrap().reply, b"second");
        assert!(fixture.slots.take_answer(second).is_none(), "taken once");
    }
}

#[test]
fn what_a_slot_cannot_hold_goes_through_buffers() {
    let mut fixture = Fixture::new(true);
    let request = vec![7; 20_000];
    let slot = fixture.submit(&request, 10_000, 30_000).unwrap();
    let (head, segments) = fixture.device.take().unwrap();
    assert_eq!(fixture.device.request(&segments), request);
    let answer: Vec<u8> = (0..40_000_u32).map(|at| at.to_le_bytes()[0]).collect();
    fixture.device.answer(&segments, &answer);
    fixture.device.give_back(u32::from(head), 39_000);
    fixture.slots.collect().unwrap();
    let finished = fixture.slots.take_answer(slot).unwrap();
    assert_eq!(finished.reply, answer[..10_000]);
    let (buffer, len) = finished.received.unwrap();
    let mut data = vec![0; 29_000];
    buffer.bytes().copy_to(&mut data);
    assert_eq!((len, &data[..]), (29_000, &answer[10_000..39_000]));
}

#[test]
fn a_full_queue_takes_no_more_until_one_is_answered() {
    for indirect in [false, true] {
        let mut fixture = Fixture::new(indirect);
        let depth = fixture.slots.depth();
        assert_eq!(depth, if indirect { 16 } else { 4 });
        for _ in 0..depth {
            fixture.submit(b"x", 16, 0).unwrap();
        }
        assert_eq!(fixture.submit(b"x", 16, 0), None);
        let (head, _) = fixture.device.take().unwrap();
        fixture.device.give_back(u32::from(head), 0);
        fixture.slots.collect().unwrap();
        assert_eq!(
            fixture.submit(b"x", 16, 0),
            None,
            "the answer is not taken yet"
        );
        fixture.slots.take_answer(0).unwrap();
        assert!(fixture.submit(b"x", 16, 0).is_some());
    }
}

#[test]
fn abandoned_requests_keep_their_memory_until_the_device_is_done() {
    let mut fixture = Fixture::new(true);
    let slot = fixture.submit(b"x", 16, 4096).unwrap();
    let (head, segments) = fixture.device.take().unwrap();
    fixture.slots.abandon(slot);
    let other = Buffer::new(&fixture.memory, 4096).unwrap();
    assert_ne!(other.address(), segments.last().unwrap().address);
    fixture.device.give_back(u32::from(head), 16);
    fixture.slots.collect().unwrap();
    let mut freed: Vec<_> = (0..2)
        .map(|_| Buffer::new(&fixture.memory, 4096).unwrap())
        .collect();
    freed.retain(|buffer| buffer.address() == segments.last().unwrap().address);
    assert_eq!(freed.len(), 1);
}

#[test]
fn lies_of_the_used_ring_are_faults() {
    for indirect in [false, true] {
        for head in [5, 8, 16, 17, 65_536, u32::MAX] {
            let mut fixture = Fixture::new(indirect);
            fixture.submit(b"x", 16, 0).unwrap();
            fixture.device.give_back(head, 0);
            let fault = Fault::UsedHead { queue: 1, head };
            assert_eq!(fixture.slots.collect(), Err(fault));
        }
        let mut fixture = Fixture::new(indirect);
        fixture.submit(b"x", 16, 100).unwrap();
        fixture.device.give_back(0, 117);
        let (len, room) = (117, 116);
        assert_eq!(
            fixture.slots.collect(),
            Err(Fault::UsedLength {
                queue: 1,
                len,
                room
            })
        );
    }
}

#[test]
fn the_same_chain_twice_is_a_fault() {
    let mut fixture = Fixture::new(true);
    fixture.submit(b"x", 16, 0).unwrap();
    fixture.submit(b"x", 16, 0).unwrap();
    fixture.device.give_back(0, 0);
    fixture.device.give_back(0, 0);
    let fault = Fault::UsedHead { queue: 1, head: 0 };
    assert_eq!(fixture.slots.collect(), Err(fault));
}

/// What driver and device do in a random run.
#[derive(Clone, Copy, Debug)]
enum Step {
    Submit { reply: usize, data: usize },
    Answer { which: usize, len: u32 },
    Abandon { which: usize },
    Lie { head: u32, len: u32 },
    Jump { by: u16 },
}

fn steps(lies: bool) -> impl Strategy<Value = Vec<Step>> {
    let submit =
        (0..6000_usize, 0..9000_usize).prop_map(|(reply, data)| Step::Submit { reply, data });
    let answer =
        (any::<usize>(), any::<u32>()).prop_map(|(which, len)| Step::Answer { which, len });
    let abandon = any::<usize>().prop_map(|which| Step::Abandon { which });
    let lie = (0..40_u32, any::<u32>()).prop_map(|(head, len)| Step::Lie { head, len });
    let jump = any::<u16>().prop_map(|by| Step::Jump { by });
    let weight = u32::from(lies);
    let step = prop_oneof![6 => submit, 6 => answer, 1 => abandon, weight => lie, weight => jump];
    proptest::collection::vec(step, 1..120)
}

/// Runs the steps; returns whether the device was caught breaking a rule.
fn play(indirect: bool, steps: &[Step]) -> bool {
    let mut fixture = Fixture::new(indirect);
    let mut waiting: Vec<(u16, usize)> = Vec::new();
    let mut in_flight: Vec<(u16, Vec<Segment>)> = Vec::new();
    for step in steps {
        match *step {
            Step::Submit { reply, data } => {
                if let Some(slot) = fixture.submit(b"request", reply, data) {
                    assert!(!waiting.iter().any(|(other, _)| *other == slot));
                    waiting.push((slot, reply + data));
                }
                while let Some(chain) = fixture.device.take() {
                    in_flight.push(chain);
                }
            }
            Step::Answer { which, len } if !in_flight.is_empty() => {
                let (head, segments) = in_flight.swap_remove(which % in_flight.len());
                let writable = segments.iter().filter(|segment| segment.writable);
                let room: u32 = writable.map(|segment| segment.len).sum();
                fixture.device.give_back(head.into(), len % (room + 1));
            }
            Step::Abandon { which } if !waiting.is_empty() => {
                let (slot, _) = waiting.swap_remove(which % waiting.len());
                fixture.slots.abandon(slot);
            }
            Step::Lie { head, len } => fixture.device.give_back(head, len),
            Step::Jump { by } => fixture.device.claim(by),
            Step::Answer { .. } | Step::Abandon { .. } => {}
        }
        if fixture.slots.collect().is_err() {
            return true;
        }
        waiting.retain(|(slot, room)| match fixture.slots.take_answer(*slot) {
            Some(finished) => {
                let received = finished.received.map_or(0, |(_, len)| len as usize);
                assert_eq!(finished.reply.len() + received, finished.written as usize);
                assert!(finished.written as usize <= *room);
                false
            }
            None => true,
        });
    }
    false
}

proptest! {
    #[test]
    fn an_honest_device_is_never_accused(steps in steps(false), indirect: bool) {
        prop_assert!(!play(indirect, &steps));
    }

    #[test]
    fn a_lying_device_never_gets_beyond_a_fault(steps in steps(true), indirect: bool) {
        // No step panics, no reply is longer than its room, no slot is given out twice: `play`
        // asserts that.
        play(indirect, &steps);
    }
}
