//! Properties that hold whatever a guest does.

use proptest::prelude::*;

use super::recorder::{FEATURES, MEMORY, MEMORY_LEN, Told, transport};
use crate::hypervisor::GuestRange;
use crate::mmio::{FeatureBits, Register, Status};

/// One step of a guest or of the backend.
#[derive(Clone, Debug)]
enum Step {
    Read { offset: u64, width: u64 },
    Write { offset: u64, width: u64, value: u64 },
    Start,
    BuffersUsed,
    ConfigChanged,
    Broken,
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => proptest::sample::select(Register::ALL.to_vec()).prop_map(Register::offset),
        2 => 0x0u64..0x210,
        1 => any::<u64>(),
    ]
}

fn width() -> impl Strategy<Value = u64> {
    prop_oneof![10 => Just(4u64), 2 => prop_oneof![Just(1), Just(2), Just(8)], 1 => any::<u64>()]
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0u64..16,
        2 => proptest::sample::select(vec![0xbu64, 0x8f, 0x3000_0000, 512, 1024]),
        2 => (0..MEMORY_LEN / 4096).prop_map(|page| MEMORY + page * 4096),
        1 => any::<u64>(),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (offset(), width()).prop_map(|(offset, width)| Step::Read { offset, width }),
        12 => (offset(), width(), value())
            .prop_map(|(offset, width, value)| Step::Write { offset, width, value }),
        2 => Just(Step::Start),
        1 => Just(Step::BuffersUsed),
        1 => Just(Step::ConfigChanged),
        1 => Just(Step::Broken),
    ]
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_breaks_what_must_hold(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut device = transport();
        let memory = GuestRange::new(MEMORY, MEMORY_LEN).unwrap();
        let mut running = false;
        for step in steps {
            match step {
                Step::Read { offset, width } => {
                    let value = device.read(offset, width);
                    let bits = width.saturating_mul(8);
                    let fits = bits >= 64 || value >> bits == 0;
                    prop_assert!(fits, "{value:#x} is not {width} bytes");
                }
                Step::Write { offset, width, value } => device.write(offset, width, value),
                Step::Start => device.start(),
                Step::BuffersUsed => device.eventfds().signal_call(),
                Step::ConfigChanged => device.config_changed(),
                Step::Broken => device.needs_reset(),
            }
            for told in device.told() {
                match told {
                    Told::Resume(..) | Told::ResumeBroken(_) => {
                        prop_assert!(false, "resumed without a predecessor");
                    }
                    Told::Activate(activation) => {
                        prop_assert!(!running, "started twice");
                        running = true;
                        let offered = FeatureBits::offered(FEATURES);
                        prop_assert!(FeatureBits::acceptable(activation.features, offered));
                        prop_assert!(activation.queues.is_sorted_by_key(|queue| queue.index));
                        for queue in activation.queues {
                            let size = u64::from(queue.size);
                            prop_assert!(queue.index < 2 && size.is_power_of_two() && size <= 1024);
                            prop_assert!(memory.contains(queue.descriptors, 16 * size));
                            prop_assert!(memory.contains(queue.available, 6 + 2 * size));
                            prop_assert!(memory.contains(queue.used, 6 + 8 * size));
                        }
                    }
                    Told::StopQueue(index) => prop_assert!(running && index < 2),
                    Told::Reset => {
                        prop_assert!(running, "reset though it does not run");
                        running = false;
                    }
                    Told::Config(..) => {}
                }
            }
            if running {
                prop_assert!(device.status().contains(Status::DRIVER_OK | Status::FEATURES_OK));
                prop_assert!(!device.status().contains(Status::FAILED));
            }
        }

        // A reset leads back to the initial state from any state.
        device.set(Register::Status, 0);
        prop_assert_eq!(device.told() == [Told::Reset], running);
        let mut new = transport();
        prop_assert!(device.is_as(&new), "{:?}", device);
        for offset in (0..0xfc).chain(0x100..0x200) {
            prop_assert_eq!(device.read(offset, 4), new.read(offset, 4), "at {:#x}", offset);
        }
        prop_assert_eq!(device.eventfds().take_kicks(0) + device.eventfds().take_kicks(1), 0);
        device.start();
        new.start();
        prop_assert_eq!(device.told(), new.told());
        prop_assert_eq!(device.status(), new.status());
    }

    #[test]
    fn interrupt_status_is_exact(events in prop::collection::vec(0u8..4, 0..40)) {
        let mut device = transport();
        device.start();
        let (mut used, mut changed) = (false, false);
        for event in events {
            match event {
                0 => {
                    device.eventfds().signal_call();
                    used = true;
                }
                1 => {
                    device.config_changed();
                    changed = true;
                }
                _ => {
                    let expected = u32::from(used) | u32::from(changed) << 1;
                    prop_assert_eq!(device.get(Register::InterruptStatus), expected);
                    device.set(Register::InterruptAck, expected);
                    (used, changed) = (false, false);
                }
            }
        }
    }
}
