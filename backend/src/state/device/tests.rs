//! Tests of what a frontend has set up.

use super::*;

fn large() -> DeviceState {
    let ring = RingState {
        size: 1024,
        addresses: Some([0, 1, 2, 3, u64::MAX]),
        kick: Some(9),
        call: Some(10),
        error: None,
        is_enabled: false,
        is_draining: true,
    };
    let region = RegionState {
        guest_address: 1 << 40,
        len: 2,
        user_address: 3,
        file_offset: 4,
        file: 11,
    };
    DeviceState {
        is_owned: true,
        has_asked_features: false,
        features: Some(0),
        protocol_features: None,
        backend_channel: Some(12),
        inflight: Some(InflightState {
            file: 14,
            offset: 1 << 33,
            rings: 9,
            ring_size: 1024,
        }),
        log: Some(LogState {
            size: 1 << 20,
            offset: 0,
            file: 15,
        }),
        regions: vec![region; 509],
        rings: vec![ring; 64],
        pending: Some(PendingMessage {
            request: 5,
            flags: 9,
            payload: vec![7; 4095],
            descriptors: vec![13; 32],
        }),
        arriving: Some(vec![8; 4108]),
    }
}

#[test]
fn the_largest_state_fits_and_comes_back() {
    let arena = Arena::small();
    assert_eq!(DeviceState::load(&arena), Some(DeviceState::default()));
    for state in [large(), DeviceState::default(), large()] {
        assert!(state.store(&arena));
        assert_eq!(DeviceState::load(&arena), Some(state));
    }
    assert_eq!(large().descriptors().len(), 2 * 64 + 3 + 509 + 32);
    let mut larger = large();
    while larger.fits() {
        assert!(larger.store(&arena));
        larger.regions.extend_from_slice(&large().regions[..1]);
    }
    assert!(!larger.store(&arena));
}

#[test]
fn files_of_a_message_without_a_reply_yet_are_memory_as_well() {
    let memory_of = |request: FrontendReq| {
        let mut state = large();
        state.pending.as_mut().expect("a message").request = request as u32;
        state.memory_files()
    };
    for request in [
        FrontendReq::SET_MEM_TABLE,
        FrontendReq::ADD_MEM_REG,
        FrontendReq::SET_INFLIGHT_FD,
        FrontendReq::SET_LOG_BASE,
    ] {
        assert!(memory_of(request).contains(&13), "{request:?}");
    }
    assert!(!memory_of(FrontendReq::SET_VRING_KICK).contains(&13));
}

#[test]
fn each_descriptor_gets_another_number_or_there_is_no_state() {
    let renumbered = large().renumbered(|number| Some(number + 100)).unwrap();
    let expected = large().descriptors().into_iter().map(|number| number + 100);
    assert!(renumbered.descriptors().into_iter().eq(expected));
    for missing in large().descriptors() {
        let number = |number| (number != missing).then_some(number);
        assert_eq!(large().renumbered(number), None, "{missing}");
    }
}

#[test]
fn a_state_that_is_half_written_is_not_the_state() {
    let arena = Arena::small();
    assert!(large().store(&arena));
    // The next copy.
    for word in &arena.device(1)[..] {
        word.store(u64::MAX, Ordering::Relaxed);
    }
    assert_eq!(DeviceState::load(&arena), Some(large()));
    for word in &arena.device(0)[..] {
        word.store(u64::MAX, Ordering::Relaxed);
    }
    assert_eq!(DeviceState::load(&arena), None);
}

#[test]
fn a_kill_before_any_store_leaves_the_state_before_or_after() {
    use crate::state::change::killing;

    let after = DeviceState {
        is_owned: true,
        regions: large().regions[..2].to_vec(),
        rings: large().rings[..2].to_vec(),
        ..DeviceState::default()
    };
    let before = DeviceState {
        features: Some(1),
        ..after.clone()
    };
    for kill_at in 0.. {
        let arena = Arena::small();
        assert!(before.store(&arena));
        let finished = killing::until(kill_at, || after.store(&arena));
        let expected = match finished {
            None => &before,
            Some(_) => &after,
        };
        assert_eq!(DeviceState::load(&arena).as_ref(), Some(expected));
        if finished.is_some() {
            assert!(kill_at > 20, "{kill_at} stores");
            break;
        }
    }
}
