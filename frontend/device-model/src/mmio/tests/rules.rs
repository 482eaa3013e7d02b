//! One rule of the interface in each test.

use super::recorder::{FEATURES, MEMORY, MEMORY_LEN, Told, WINDOW, transport};
use crate::hypervisor::{Access, Operation, Token};
use crate::mmio::{FeatureBits, Register, Status};

fn access(address: u64, operation: Operation) -> Access {
    Access {
        address,
        width: 4,
        operation,
        token: Token([0; 8]),
    }
}

#[test]
fn accesses_outside_the_window_read_as_zero_and_do_nothing() {
    let mut device = transport();
    for address in [0, WINDOW - 4, WINDOW + 0x200, u64::MAX] {
        assert_eq!(device.handle(&access(address, Operation::Read)), 0);
        assert_eq!(device.handle(&access(address, Operation::Write(1))), 0);
    }
    assert_eq!(device.handle(&access(WINDOW, Operation::Read)), 0x7472_6976);
    assert_eq!(device.handle(&access(WINDOW, Operation::Unknown(7))), 0);
    assert!(device.told().is_empty());
}

#[test]
fn control_registers_are_32_bits_wide_and_aligned() {
    let mut device = transport();
    for (offset, width) in [
        (0, 1),
        (0, 2),
        (0, 8),
        (1, 4),
        (2, 4),
        (0, 3),
        (0, 0),
        (0, u64::MAX),
    ] {
        assert_eq!(device.read(offset, width), 0, "{width} bytes at {offset}");
    }
    device.write(Register::Status.offset(), 8, 1);
    device.write(Register::Status.offset(), 1, 1);
    assert_eq!(device.status(), Status::empty());
}

#[test]
fn written_values_are_cut_to_their_width() {
    let mut device = transport();
    device.write(Register::Status.offset(), 4, 0xffff_ffff_0000_0001);
    assert_eq!(device.status(), Status::ACKNOWLEDGE);
    device.write(0x124, 2, 0xaaaa_bbbb_cccc_dddd);
    assert_eq!(device.told(), [Told::Config(0x24, vec![0xdd, 0xdd])]);
}

#[test]
fn config_space_is_read_at_every_width_and_zero_behind_its_end() {
    let mut device = transport();
    assert_eq!(device.read(0x100, 1), u64::from(b'm'));
    assert_eq!(device.read(0x102, 2), u64::from(u16::from_le_bytes(*b"fs")));
    assert_eq!(
        device.read(0x100, 4),
        u64::from(u32::from_le_bytes(*b"myfs"))
    );
    assert_eq!(
        device.read(0x100, 8),
        u64::from(u32::from_le_bytes(*b"myfs"))
    );
    assert_eq!(device.read(0x124, 4), 1);
    assert_eq!(device.read(0x120, 8), 1 << 32);
    assert_eq!(device.read(0x128, 4), 0);
    assert_eq!(device.read(0x1ff, 1), 0);
    for (offset, width) in [(0x101, 2), (0x102, 4), (0x104, 3), (0x100, 16)] {
        assert_eq!(
            device.read(offset, width),
            0,
            "{width} bytes at {offset:#x}"
        );
    }
}

#[test]
fn reserved_and_write_only_registers_read_as_zero() {
    let mut device = transport();
    for offset in (0..0x100).step_by(4) {
        let read_only = [0x00, 0x04, 0x08, 0x0c, 0x10, 0x34, 0xb0, 0xb4, 0xb8, 0xbc];
        if !read_only.contains(&offset) {
            assert_eq!(device.read(offset, 4), 0, "{offset:#x}");
        }
    }
}

#[test]
fn every_shared_memory_region_is_absent() {
    let mut device = transport();
    for id in [0, 1, u32::MAX] {
        device.set(Register::ShmSel, id);
        for register in [
            Register::ShmLenLow,
            Register::ShmLenHigh,
            Register::ShmBaseLow,
            Register::ShmBaseHigh,
        ] {
            assert_eq!(device.get(register), u32::MAX);
        }
    }
}

#[test]
fn offered_features_are_read_by_words() {
    let mut device = transport();
    let offered = FeatureBits::offered(FEATURES);
    for (selector, word) in [(0, offered & 0xffff_ffff), (1, offered >> 32), (2, 0)] {
        device.set(Register::DeviceFeaturesSel, selector);
        assert_eq!(u64::from(device.get(Register::DeviceFeatures)), word);
    }
}

#[test]
fn rewritten_feature_words_replace_what_was_there() {
    let mut device = transport();
    device.set(Register::Status, 3);
    for word in [1 << 28 | 1 << 29, 1 << 29] {
        device.set(Register::DriverFeaturesSel, 0);
        device.set(Register::DriverFeatures, word);
        device.set(Register::DriverFeaturesSel, 1);
        device.set(Register::DriverFeatures, 3);
    }
    // Writes to missing words do not change existing ones.
    device.set(Register::DriverFeaturesSel, 2);
    device.set(Register::DriverFeatures, u32::MAX);
    device.set(Register::Status, 0xf);
    let [Told::Activate(activation)] = &device.told()[..] else {
        panic!("not activated");
    };
    assert_eq!(activation.features, 1 << 29 | FeatureBits::REQUIRED);
}

#[test]
fn features_that_will_not_do_leave_features_ok_clear_and_the_device_unstarted() {
    for features in [0, 1 << 32, 1 << 33, 1 << 26 | 3 << 32, 1 << 40 | 3 << 32] {
        let mut device = transport();
        device.negotiate(features);
        assert_eq!(device.get(Register::Status), 3, "{features:#x}");
        device.set(Register::Status, 0xf);
        assert_eq!(device.get(Register::Status), 3, "{features:#x}");
        assert!(device.told().is_empty());
    }
}

#[test]
fn features_cannot_be_changed_before_driver_nor_after_features_ok() {
    let mut device = transport();
    device.set(Register::DriverFeatures, 1 << 28);
    device.negotiate(3 << 32);
    device.set(Register::DriverFeaturesSel, 0);
    device.set(Register::DriverFeatures, 1 << 29);
    device.set(Register::Status, 0xf);
    let [Told::Activate(activation)] = &device.told()[..] else {
        panic!("not activated");
    };
    assert_eq!(activation.features, 3 << 32);
}

#[test]
fn queues_out_of_range_are_absent() {
    let mut device = transport();
    device.negotiate(3 << 32);
    for (selector, max) in [(0, 1024), (1, 512), (2, 0), (u32::MAX, 0)] {
        device.set(Register::QueueSel, selector);
        assert_eq!(device.get(Register::QueueNumMax), max);
    }
    device.set_up_queue(2, 16);
    assert_eq!(device.get(Register::QueueReady), 0);
}

#[test]
fn queues_that_do_not_fit_are_not_made_ready() {
    let mut device = transport();
    device.negotiate(3 << 32);
    device.set_up_queue(1, 1024); // larger than its largest size
    assert_eq!(device.get(Register::QueueReady), 0);
    device.set_up_queue(1, 512);
    assert_eq!(device.get(Register::QueueReady), 1);
    device.set(Register::QueueSel, 0);
    device.set(Register::QueueNum, 1024);
    let beyond = u32::try_from(MEMORY + MEMORY_LEN).unwrap();
    device.set(Register::QueueDescLow, beyond - 16 * 1024 + 16);
    device.set(Register::QueueDriverLow, beyond - 0x8000);
    device.set(Register::QueueDeviceLow, beyond - 0x8000);
    device.set(Register::QueueReady, 1);
    assert_eq!(device.get(Register::QueueReady), 0);
    device.set(Register::QueueDescLow, beyond - 16 * 1024);
    device.set(Register::QueueReady, 1);
    assert_eq!(device.get(Register::QueueReady), 1);
    device.set(Register::Status, 0xf);
    let [Told::Activate(activation)] = &device.told()[..] else {
        panic!("not activated");
    };
    assert_eq!(activation.queues.len(), 2);
    assert_eq!(activation.queues[1].size, 512);
}

#[test]
fn driver_that_takes_a_refused_queue_for_ready_is_told_that_the_device_is_broken() {
    let mut device = transport();
    device.negotiate(3 << 32);
    device.set_up_queue(0, 1024);
    device.set_up_queue(1, 1024); // larger than its largest size
    device.set(Register::Status, 0xf);
    assert_eq!(device.get(Register::Status), 0x4f);
    assert_eq!(device.get(Register::InterruptStatus), 2);
    assert!(device.told().is_empty());
    device.set(Register::Status, 0);
    device.negotiate(3 << 32);
    device.set_up_queue(1, 1024);
    device.set(Register::QueueReady, 0);
    device.set_up_queue(0, 1024);
    device.set(Register::Status, 0xf);
    assert_eq!(device.get(Register::Status), 0xf);
}

#[test]
fn ready_queues_cannot_be_changed() {
    let mut device = transport();
    device.negotiate(3 << 32);
    device.set_up_queue(0, 1024);
    device.set(Register::QueueNum, 2);
    device.set(Register::QueueDescLow, 0);
    device.set(Register::Status, 0xf);
    let [Told::Activate(activation)] = &device.told()[..] else {
        panic!("not activated");
    };
    assert_eq!(activation.queues[0].size, 1024);
    assert_eq!(activation.queues[0].descriptors, MEMORY);
}

#[test]
fn queues_are_made_ready_between_features_ok_and_driver_ok_only() {
    let mut device = transport();
    device.set(Register::Status, 3);
    device.set_up_queue(0, 16);
    assert_eq!(device.get(Register::QueueReady), 0);
    device.negotiate(3 << 32);
    device.set(Register::Status, 0xf);
    device.set_up_queue(0, 16);
    assert_eq!(device.get(Register::QueueReady), 0);
}

#[test]
fn running_queue_reads_as_not_ready_only_once_stopped() {
    let mut device = transport();
    device.start();
    device.told();
    device.set(Register::QueueSel, 1);
    device.set(Register::QueueReady, 0);
    assert_eq!(device.told(), [Told::StopQueue(1)]);
    assert_eq!(device.get(Register::QueueReady), 0);
    device.set(Register::QueueReady, 0);
    assert!(device.told().is_empty());
}

#[test]
fn failed_start_needs_a_reset_and_says_so() {
    let mut device = transport();
    device.device_mut().fails = true;
    device.start();
    assert_eq!(device.get(Register::Status), 0x4f);
    // Only the bit of a configuration change: no buffer was used.
    assert_eq!(device.get(Register::InterruptStatus), 2);
    device.set(Register::InterruptAck, 2);
    assert_eq!(device.get(Register::InterruptStatus), 0);
    device.told();
    device.set(Register::Status, 0);
    assert_eq!(device.told(), [Told::Reset]);
    device.device_mut().fails = false;
    device.start();
    assert_eq!(device.get(Register::Status), 0xf);
}

#[test]
fn device_that_broke_before_it_was_started_is_not_started() {
    let mut device = transport();
    device.negotiate(3 << 32);
    device.needs_reset();
    assert_eq!(device.get(Register::InterruptStatus), 0);
    device.set(Register::Status, 0xf);
    assert_eq!(device.get(Register::Status), 0x4f);
    assert_eq!(device.get(Register::InterruptStatus), 2);
    assert!(device.told().is_empty());
}

#[test]
fn device_that_breaks_interrupts_once() {
    let mut device = transport();
    device.start();
    device.needs_reset();
    assert_eq!(device.get(Register::InterruptStatus), 2);
    device.set(Register::InterruptAck, 2);
    device.needs_reset();
    assert_eq!(device.get(Register::InterruptStatus), 0);
}

#[test]
fn used_buffers_and_changes_of_configuration_are_told_apart() {
    let mut device = transport();
    device.start();
    let eventfds = device.eventfds();
    assert_eq!(device.get(Register::InterruptStatus), 0);
    eventfds.signal_call();
    eventfds.signal_call();
    assert_eq!(device.get(Register::InterruptStatus), 1);
    assert_eq!(device.get(Register::InterruptStatus), 1);
    device.set(Register::InterruptAck, 1);
    assert_eq!(device.get(Register::InterruptStatus), 0);
    device.config_changed();
    eventfds.signal_call();
    assert_eq!(device.get(Register::InterruptStatus), 3);
    device.set(Register::InterruptAck, 1);
    assert_eq!(device.get(Register::InterruptStatus), 2);
}

#[test]
fn changed_configuration_has_a_new_generation_and_interrupts_a_running_driver_only() {
    let mut device = transport();
    let before = device.get(Register::ConfigGeneration);
    device.config_changed();
    let changed = device.get(Register::ConfigGeneration);
    assert_ne!(changed, before);
    assert_eq!(device.get(Register::InterruptStatus), 0);
    device.start();
    device.config_changed();
    assert_ne!(device.get(Register::ConfigGeneration), changed);
    assert_eq!(device.get(Register::InterruptStatus), 2);
}

#[test]
fn reset_forgets_everything_before_the_access_ends() {
    let mut device = transport();
    device.start();
    device.config_changed();
    let eventfds = device.eventfds();
    eventfds.signal_kick(1);
    eventfds.signal_call();
    device.told();
    device.set(Register::Status, 0);
    assert_eq!(device.told(), [Told::Reset]);
    assert_eq!(device.get(Register::Status), 0);
    assert_eq!(device.get(Register::InterruptStatus), 0);
    assert_eq!(eventfds.take_kicks(1), 0);
    for queue in [0, 1] {
        device.set(Register::QueueSel, queue);
        assert_eq!(device.get(Register::QueueReady), 0);
    }
    // The features are gone as well: the driver must write them again.
    device.set(Register::Status, 0xb);
    assert_eq!(device.get(Register::Status), 3);
}

#[test]
fn reset_of_a_device_that_never_ran_does_not_reach_it() {
    let mut device = transport();
    device.negotiate(3 << 32);
    device.set(Register::Status, 0);
    device.set(Register::Status, 0);
    assert!(device.told().is_empty());
}

#[test]
fn driver_that_gives_up_stops_the_device_and_can_only_reset() {
    let mut device = transport();
    device.start();
    device.told();
    device.set(Register::Status, 0x8f);
    assert_eq!(device.told(), [Told::Reset]);
    assert_eq!(device.get(Register::Status), 0x8f);
    device.set(Register::Status, 0xf);
    assert_eq!(device.get(Register::Status), 0x8f);
    device.set(Register::Status, 0);
    assert!(device.told().is_empty());
    device.start();
    assert_eq!(device.get(Register::Status), 0xf);
}

#[test]
fn clearing_a_status_bit_alone_is_ignored() {
    let mut device = transport();
    device.start();
    device.set(Register::Status, 3);
    assert_eq!(device.get(Register::Status), 0xf);
}

#[test]
fn kick_that_comes_as_an_access_reaches_a_running_queue_only() {
    let mut device = transport();
    let eventfds = device.eventfds();
    device.set(Register::QueueNotify, 0);
    assert_eq!(eventfds.take_kicks(0), 0);
    device.start();
    for index in [0, 2, 0x1_0000, u32::MAX] {
        device.set(Register::QueueNotify, index);
    }
    assert_eq!(eventfds.take_kicks(0), 1);
    assert_eq!(eventfds.take_kicks(1), 0);
}
