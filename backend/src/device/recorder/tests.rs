use gangplank_vhost_user::message::payload::{encode, from_u64, memory_table, ring_state};

use super::*;

fn file() -> OwnedFd {
    std::fs::File::open("/dev/null").expect("a file").into()
}

fn message(request: FrontendReq, payload: Vec<u8>, files: usize) -> Message {
    let mut message = Message::new(request, payload);
    message.descriptors.extend((0..files).map(|_| file()));
    message
}

/// Records a message without a reply.
fn record(recorder: &mut Recorder, request: FrontendReq, payload: Vec<u8>, files: usize) {
    recorder.begin(&mut message(request, payload, files), None);
    assert!(!recorder.is_pending(), "{request:?}");
    recorder.close_unused();
}

#[test]
fn what_is_set_up_is_in_the_arena_and_keeps_its_descriptors() {
    let arena = Arena::small();
    let mut recorder = Recorder::load(&arena, 2).expect("a record");
    record(&mut recorder, FrontendReq::SET_OWNER, vec![], 0);
    record(&mut recorder, FrontendReq::SET_FEATURES, from_u64(7), 0);
    let regions = [MemoryRegion::new(0, 4096, 1 << 20, 0); 2];
    record(
        &mut recorder,
        FrontendReq::SET_MEM_TABLE,
        memory_table(&regions),
        2,
    );
    record(
        &mut recorder,
        FrontendReq::SET_VRING_NUM,
        ring_state(1, 8),
        0,
    );
    record(
        &mut recorder,
        FrontendReq::SET_VRING_BASE,
        ring_state(1, 5),
        0,
    );
    let addresses = VringAddr {
        index: 1,
        descriptor: 16,
        ..VringAddr::default()
    };
    record(
        &mut recorder,
        FrontendReq::SET_VRING_ADDR,
        encode(&addresses),
        0,
    );
    for request in [FrontendReq::SET_VRING_KICK, FrontendReq::SET_VRING_CALL] {
        // The second replaces the first.
        record(&mut recorder, request, from_u64(1), 1);
        record(&mut recorder, request, from_u64(1), 1);
    }
    record(
        &mut recorder,
        FrontendReq::SET_VRING_ENABLE,
        ring_state(1, 1),
        0,
    );
    // No such ring.
    record(&mut recorder, FrontendReq::SET_VRING_KICK, from_u64(2), 1);

    let state = DeviceState::load(&arena).expect("a state");
    assert_eq!(&state, recorder.state());
    assert!(state.is_owned);
    assert_eq!(state.regions.len(), 2);
    let ring = &state.rings[1];
    assert_eq!((ring.size, ring.is_enabled), (8, true));
    assert_eq!(ring.addresses, Some([0, 16, 0, 0, 0]));
    let requests = RingRequests::new(&arena, 1).expect("a ring");
    assert_eq!(requests.next_available(), 5);
    assert_eq!(recorder.descriptors.len(), 4, "the others are closed");
    // The ring runs, so its next index is the device's business.
    record(
        &mut recorder,
        FrontendReq::SET_VRING_BASE,
        ring_state(1, 0),
        0,
    );
    assert_eq!(requests.next_available(), 5);
}

#[test]
fn a_message_with_a_reply_takes_effect_when_it_was_handled() {
    let arena = Arena::small();
    let mut recorder = Recorder::load(&arena, 2).expect("a record");
    let ack = ProtocolFeatures::REPLY_ACK.bits();
    let ask = message(FrontendReq::GET_FEATURES, vec![], 0);
    recorder.begin(&mut message(FrontendReq::GET_FEATURES, vec![], 0), None);
    assert!(recorder.is_pending());
    recorder.end(&ask.reply(from_u64(1)), Author::Device);
    record(
        &mut recorder,
        FrontendReq::SET_PROTOCOL_FEATURES,
        from_u64(ack),
        0,
    );

    let mut kick = message(FrontendReq::SET_VRING_KICK, from_u64(0), 1).with_need_reply();
    for (answer, is_set) in [(1, false), (0, true)] {
        kick.descriptors = vec![file()];
        let numbers = recorder.begin(&mut kick, None);
        let state = DeviceState::load(&arena).expect("a state");
        assert_eq!(state.pending.expect("pending").descriptors, numbers);
        assert!(recorder.descriptor(numbers[0]).is_some());
        recorder.end(&kick.reply(from_u64(answer)), Author::Device);
        recorder.close_unused();
        let state = DeviceState::load(&arena).expect("a state");
        assert!(state.pending.is_none());
        assert_eq!(
            state.rings.first().is_some_and(|ring| ring.kick.is_some()),
            is_set
        );
        assert_eq!(recorder.descriptors.len(), usize::from(is_set));
    }
    let mut stop = message(FrontendReq::GET_VRING_BASE, ring_state(0, 0), 0);
    recorder.begin(&mut stop, None);
    assert!(recorder.state().rings[0].kick.is_some());
    recorder.end(&stop.reply(ring_state(0, 9)), Author::Device);
    recorder.close_unused();
    assert!(recorder.state().rings[0].kick.is_none());
    assert!(recorder.descriptors.is_empty());
}

#[test]
fn a_ring_that_is_disabled_without_a_reply_drains_until_the_device_has_replied() {
    let arena = Arena::small();
    let mut recorder = Recorder::load(&arena, 2).expect("a record");
    let enable = |recorder: &mut Recorder, index: u32, enabled: u32| {
        let payload = ring_state(index, enabled);
        record(recorder, FrontendReq::SET_VRING_ENABLE, payload, 0);
    };
    let draining = || -> Vec<bool> {
        let state = DeviceState::load(&arena).expect("a state");
        state.rings.iter().map(|ring| ring.is_draining).collect()
    };
    record(&mut recorder, FrontendReq::SET_VRING_KICK, from_u64(1), 1);
    for ring in [0, 1] {
        enable(&mut recorder, ring, 1);
        enable(&mut recorder, ring, 0);
        // Once more says nothing new.
        enable(&mut recorder, ring, 0);
    }
    assert_eq!(draining(), [false, true], "the first ring has never run");
    enable(&mut recorder, 1, 1);
    assert_eq!(draining(), [false, false]);
    enable(&mut recorder, 1, 0);
    let ask = message(FrontendReq::GET_FEATURES, vec![], 0);
    for (author, is_draining) in [(Author::Forwarder, true), (Author::Device, false)] {
        recorder.begin(&mut message(FrontendReq::GET_FEATURES, vec![], 0), None);
        recorder.end(&ask.reply(from_u64(1)), author);
        assert_eq!(draining(), [false, is_draining], "{author:?}");
    }
}
