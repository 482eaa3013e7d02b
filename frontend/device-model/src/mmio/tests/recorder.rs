//! A device that records every call.

use std::sync::Arc;

use crate::hypervisor::GuestRange;
use crate::mmio::{Activation, Device, EventFds, Register, Transport};

pub(super) const WINDOW: u64 = 0xa00_3e00;
pub(super) const MEMORY: u64 = 0x1000_0000;
pub(super) const MEMORY_LEN: u64 = 0x100_0000;

/// The features of a virtio-fs daemon, with vhost's own bits.
pub(super) const FEATURES: u64 = 1 << 26 | 1 << 28 | 1 << 29 | 1 << 30 | 1 << 32;

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Told {
    Activate(Activation),
    StopQueue(u16),
    Reset,
    Config(u64, Vec<u8>),
    ResumeBroken(Activation),
    Resume(Vec<u8>, Option<Activation>),
}

#[derive(Debug, thiserror::Error)]
#[error("told to fail")]
pub(super) struct ToldToFail;

#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) told: Vec<Told>,
    pub(super) fails: bool,
    config: Vec<u8>,
}

impl Device for Recorder {
    type Error = ToldToFail;

    fn device_id(&self) -> u32 {
        26
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &[1024, 512]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn write_config(&mut self, offset: u64, bytes: &[u8]) {
        self.told.push(Told::Config(offset, bytes.to_vec()));
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ToldToFail> {
        self.told.push(Told::Activate(activation));
        if self.fails { Err(ToldToFail) } else { Ok(()) }
    }

    fn resume(&mut self, config: &[u8], running: Option<Activation>) {
        self.told.push(Told::Resume(config.to_vec(), running));
    }

    fn resume_broken(&mut self, driver: Activation) {
        self.told.push(Told::ResumeBroken(driver));
    }

    fn stop_queue(&mut self, index: u16) {
        self.told.push(Told::StopQueue(index));
    }

    fn reset(&mut self) {
        self.told.push(Told::Reset);
    }
}

/// A device named `myfs` with one request queue, and untouched registers.
pub(super) fn transport() -> Transport<Recorder> {
    let mut config = b"myfs".to_vec();
    config.resize(36, 0);
    config.extend(1u32.to_le_bytes());
    let device = Recorder {
        told: Vec::new(),
        fails: false,
        config,
    };
    Transport::new(
        device,
        Arc::new(EventFds::new(2).unwrap()),
        GuestRange::new(WINDOW, 0x200).unwrap(),
        GuestRange::new(MEMORY, MEMORY_LEN).unwrap(),
    )
}

/// A driver that reads and writes the registers.
impl Transport<Recorder> {
    pub(super) fn get(&mut self, register: Register) -> u32 {
        u32::try_from(self.read(register.offset(), 4)).unwrap()
    }

    pub(super) fn set(&mut self, register: Register, value: u32) {
        self.write(register.offset(), 4, u64::from(value));
    }

    pub(super) fn told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.device_mut().told)
    }

    /// Goes through every step up to FEATURES_OK, and accepts `features`.
    pub(super) fn negotiate(&mut self, features: u64) {
        for status in [1, 3] {
            self.set(Register::Status, status);
        }
        for (selector, word) in [(1, features >> 32), (0, features & 0xffff_ffff)] {
            self.set(Register::DriverFeaturesSel, selector);
            self.set(Register::DriverFeatures, u32::try_from(word).unwrap());
        }
        self.set(Register::Status, 0xb);
    }

    /// Sets queue `index` up with `size` entries at addresses of its own.
    pub(super) fn set_up_queue(&mut self, index: u32, size: u32) {
        let base = u32::try_from(MEMORY).unwrap() + index * 0x10000;
        self.set(Register::QueueSel, index);
        self.set(Register::QueueNum, size);
        for (low, high, address) in [
            (Register::QueueDescLow, Register::QueueDescHigh, base),
            (
                Register::QueueDriverLow,
                Register::QueueDriverHigh,
                base + 0x8000,
            ),
            (
                Register::QueueDeviceLow,
                Register::QueueDeviceHigh,
                base + 0xa000,
            ),
        ] {
            self.set(low, address);
            self.set(high, 0);
        }
        self.set(Register::QueueReady, 1);
    }

    /// Sets the device up until it runs with both queues.
    pub(super) fn start(&mut self) {
        self.negotiate(1 << 29 | 1 << 32 | 1 << 33);
        self.set_up_queue(0, 1024);
        self.set_up_queue(1, 256);
        self.set(Register::Status, 0xf);
    }
}
