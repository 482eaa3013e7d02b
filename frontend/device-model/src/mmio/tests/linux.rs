//! Linux 6.1, access by access: `drivers/virtio/virtio_mmio.c` and `fs/fuse/virtio_fs.c` as they
//! probe, run and remove.

use super::recorder::{MEMORY, Told, transport};
use crate::mmio::{FeatureBits, ReadyQueue, Register, Transport};

use Do::{Read, Write};

/// One access of the script: a register, and the value that is written to it or must be read from
/// it.
#[derive(Clone, Copy, Debug)]
enum Do {
    Read(Register, u32),
    Write(Register, u32),
}

fn play(device: &mut Transport<super::recorder::Recorder>, script: &[Do]) {
    for (step, access) in script.iter().enumerate() {
        match *access {
            Read(register, expected) => {
                let read = device.get(register);
                assert_eq!(read, expected, "step {step}, {access:?}: {read:#x}");
            }
            Write(register, value) => device.set(register, value),
        }
    }
}

/// The device is found: `virtio_mmio_probe` and `register_virtio_device`.
const FOUND: &[Do] = &[
    Read(Register::MagicValue, 0x7472_6976),
    Read(Register::Version, 2),
    Read(Register::DeviceId, 26),
    Read(Register::VendorId, 0x4b4c_5047),
    Write(Register::Status, 0),
    Read(Register::Status, 0),
    Write(Register::Status, 1),
];

/// `virtio_dev_probe` up to the driver's own probe: EVENT_IDX, INDIRECT_DESC, VERSION_1,
/// ACCESS_PLATFORM.
const NEGOTIATED: &[Do] = &[
    Read(Register::Status, 1),
    Write(Register::Status, 3),
    Write(Register::DeviceFeaturesSel, 1),
    Read(Register::DeviceFeatures, 3),
    Write(Register::DeviceFeaturesSel, 0),
    Read(Register::DeviceFeatures, 0x3000_0000),
    Write(Register::DriverFeaturesSel, 1),
    Write(Register::DriverFeatures, 3),
    Write(Register::DriverFeaturesSel, 0),
    Write(Register::DriverFeatures, 0x3000_0000),
    Read(Register::Status, 3),
    Write(Register::Status, 0xb),
    Read(Register::Status, 0xb),
];

/// `virtio_fs_setup_vqs` for one queue: `vm_setup_vq`.
fn queue(index: u32, size: u32) -> Vec<Do> {
    let base = u32::try_from(MEMORY).unwrap() + index * 0x10000;
    vec![
        Write(Register::QueueSel, index),
        Read(Register::QueueReady, 0),
        Read(Register::QueueNumMax, size),
        Write(Register::QueueNum, size),
        Write(Register::QueueDescLow, base),
        Write(Register::QueueDescHigh, 0),
        Write(Register::QueueDriverLow, base + 0x4000),
        Write(Register::QueueDriverHigh, 0),
        Write(Register::QueueDeviceLow, base + 0x8000),
        Write(Register::QueueDeviceHigh, 0),
        Write(Register::QueueReady, 1),
    ]
}

/// Built with FUSE_DAX: `virtio_fs_setup_dax`. Then `virtio_device_ready`.
const READY: &[Do] = &[
    Write(Register::ShmSel, 0),
    Read(Register::ShmLenLow, u32::MAX),
    Read(Register::ShmLenHigh, u32::MAX),
    Read(Register::Status, 0xb),
    Write(Register::Status, 0xf),
    Read(Register::Status, 0xf),
];

/// `virtio_fs_remove`: reset, then `vm_del_vqs`, then the end of `virtio_dev_remove`.
const UNBOUND: &[Do] = &[
    Write(Register::Status, 0),
    Write(Register::QueueSel, 0),
    Write(Register::QueueReady, 0),
    Read(Register::QueueReady, 0),
    Write(Register::QueueSel, 1),
    Write(Register::QueueReady, 0),
    Read(Register::QueueReady, 0),
    Read(Register::Status, 0),
    Write(Register::Status, 1),
];

fn read_tag(device: &mut Transport<super::recorder::Recorder>) -> String {
    let before = device.get(Register::ConfigGeneration);
    let bytes: Vec<u8> = (0..36)
        .map(|at| u8::try_from(device.read(0x100 + at, 1)).unwrap())
        .collect();
    assert_eq!(device.get(Register::ConfigGeneration), before);
    let tag = String::from_utf8(bytes).unwrap();
    tag.trim_end_matches('\0').to_owned()
}

fn probe(device: &mut Transport<super::recorder::Recorder>) {
    play(device, NEGOTIATED);
    assert_eq!(read_tag(device), "myfs");
    assert_eq!(device.read(0x124, 4), 1, "number of request queues");
    play(device, &queue(0, 1024));
    play(device, &queue(1, 512));
    assert!(device.told().is_empty(), "started before it was told to");
    play(device, READY);
    let [Told::Activate(activation)] = &device.told()[..] else {
        panic!("not started once");
    };
    assert_eq!(
        activation.features,
        0x3000_0000 | FeatureBits::REQUIRED,
        "{:#x}",
        activation.features
    );
    let areas = |index: u16, size| ReadyQueue {
        index,
        size,
        descriptors: MEMORY + u64::from(index) * 0x10000,
        available: MEMORY + u64::from(index) * 0x10000 + 0x4000,
        used: MEMORY + u64::from(index) * 0x10000 + 0x8000,
    };
    assert_eq!(activation.queues, [areas(0, 1024), areas(1, 512)]);
}

#[test]
fn linux_probes_runs_unbinds_and_probes_again() {
    let mut device = transport();
    play(&mut device, FOUND);
    for _ in 0..2 {
        probe(&mut device);
        // vm_interrupt: read, acknowledge, then act.
        device.eventfds().signal_call();
        play(
            &mut device,
            &[
                Read(Register::InterruptStatus, 1),
                Write(Register::InterruptAck, 1),
                Read(Register::InterruptStatus, 0),
            ],
        );
        play(&mut device, UNBOUND);
        assert_eq!(device.told(), [Told::Reset]);
    }
}

#[test]
fn linux_that_is_restarted_without_a_word_finds_a_device_as_new() {
    let mut device = transport();
    play(&mut device, FOUND);
    probe(&mut device);
    // kexec: the next kernel finds the device running and resets it first.
    play(&mut device, FOUND);
    assert_eq!(device.told(), [Told::Reset]);
    probe(&mut device);
}
