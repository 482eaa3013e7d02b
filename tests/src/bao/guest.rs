//! A guest behind a device of the emulated driver: register accesses in the order of Linux 6.1, and
//! requests through its shared memory.
//!
//! The order follows `drivers/virtio/virtio_mmio.c` and `fs/fuse/virtio_fs.c`: probe, negotiation,
//! the tag byte by byte, queues, ready. At run time there are only kicks and the two interrupt
//! registers.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::abi::{READ, WRITE};
use super::device::Device;
use crate::driver::memory::Memory;
use crate::driver::ring::{CallKind, Layout, Ring};
use crate::driver::{self, Driver, Error, Notifier};

/// Guest physical address of the device's registers.
pub const WINDOW: u64 = 0xa00_3e00;

/// Limit for an access without faults, and for bringing up a device.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Registers, by their offset (virtio 1.2, 4.2.2).
pub mod register {
    #![allow(missing_docs)] // the specification's names
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const SHM_SEL: u64 = 0x0ac;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
    pub const NUM_REQUEST_QUEUES: u64 = 0x124;
}

/// `Status`: the driver is ready, and all before.
pub const READY: u32 = 0xf;

/// `Status`: the device is broken.
pub const NEEDS_RESET: u32 = 0x40;

/// Features of rings that this guest's driver knows.
const INDIRECT: u32 = 1 << 28;
const EVENT_IDX: u32 = 1 << 29;

/// The upper features that the driver requires: VERSION_1 and ACCESS_PLATFORM.
const REQUIRED_HIGH: u32 = 0b11;

/// A configuration change, in `InterruptStatus`.
const CONFIG_CHANGE: u32 = 2;

/// A CPU of the guest of one device. Clones are other CPUs of it.
#[derive(Clone)]
pub struct Cpu {
    device: Arc<Device>,
    limit: Duration,
}

/// A guest that has probed its device.
pub type Guest = Driver<Cpu>;

/// The result of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// The name of the share.
    pub tag: String,
    /// Request queues.
    pub queues: u32,
    /// The lower features in use.
    pub features: u32,
    /// Entries of each ring.
    pub size: u32,
}

impl Cpu {
    /// A CPU of the guest that has `device`.
    #[must_use]
    pub const fn new(device: Arc<Device>) -> Self {
        Self {
            device,
            limit: LIMIT,
        }
    }

    /// The same CPU with another limit for each access.
    #[must_use]
    pub fn within(&self, limit: Duration) -> Self {
        Self {
            limit,
            ..self.clone()
        }
    }

    /// The device of the CPU.
    #[must_use]
    pub const fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Loads `width` bytes at `offset` of the window. Returns the whole register, with the bits
    /// beyond the width.
    ///
    /// # Errors
    /// The access is not completed.
    pub fn load(&self, offset: u64, width: u64) -> Result<u64> {
        self.device
            .access(WINDOW.wrapping_add(offset), width, READ, 0, self.limit)
    }

    /// Stores the lower `width` bytes of `value` at `offset` of the window.
    ///
    /// # Errors
    /// The access is not completed.
    pub fn store(&self, offset: u64, width: u64, value: u64) -> Result<()> {
        self.device
            .access(WINDOW.wrapping_add(offset), width, WRITE, value, self.limit)
            .map(drop)
    }

    /// Reads a register.
    ///
    /// # Errors
    /// The access is not completed, or with more than 32 bits.
    pub fn get(&self, register: u64) -> Result<u32> {
        let value = self.load(register, 4)?;
        u32::try_from(value).with_context(|| format!("{value:#x} in the 32 bits at {register:#x}"))
    }

    /// Writes a register. The upper half of the source register has an arbitrary value.
    ///
    /// # Errors
    /// The access is not completed.
    pub fn set(&self, register: u64, value: u32) -> Result<()> {
        self.store(register, 4, 0xdead_beef << 32 | u64::from(value))
    }

    fn expect(&self, register: u64, value: u32) -> Result<()> {
        let read = self.get(register)?;
        ensure!(
            read == value,
            "register {register:#x} reads {read:#x} where {value:#x} was expected"
        );
        Ok(())
    }

    /// Finds the device, as `virtio_mmio_probe` and `register_virtio_device` do.
    ///
    /// # Errors
    /// It is no file system.
    pub fn find(&self) -> Result<()> {
        self.expect(register::MAGIC_VALUE, 0x7472_6976)?;
        self.expect(register::VERSION, 2)?;
        self.expect(register::DEVICE_ID, 26)?;
        self.get(register::VENDOR_ID)?;
        self.set(register::STATUS, 0)?;
        self.add_status(0, 1)
    }

    /// `virtio_add_status`: reads the status and writes it.
    fn add_status(&self, before: u32, added: u32) -> Result<()> {
        self.expect(register::STATUS, before)?;
        self.set(register::STATUS, before | added)
    }

    /// Binds the driver to the device, as `virtio_dev_probe` and `virtio_fs_probe` do. It brings up
    /// `request_queues` queues, or all if there are fewer.
    ///
    /// # Errors
    /// The device does not do what the driver expects of it.
    pub fn bind(&self) -> Result<(Guest, Probed)> {
        self.add_status(1, 2)?;
        let [high, low] = [1, 0].map(|half| {
            self.set(register::DEVICE_FEATURES_SEL, half)?;
            self.get(register::DEVICE_FEATURES)
        });
        let (high, features) = (high?, low? & (INDIRECT | EVENT_IDX));
        ensure!(
            high & REQUIRED_HIGH == REQUIRED_HIGH,
            "features {high:#x} in the upper half"
        );
        for (half, bits) in [(1, REQUIRED_HIGH), (0, features)] {
            self.set(register::DRIVER_FEATURES_SEL, half)?;
            self.set(register::DRIVER_FEATURES, bits)?;
        }
        self.add_status(3, 8)?;
        self.expect(register::STATUS, 0xb)?;

        let tag = self.tag()?;
        let queues = self.get(register::NUM_REQUEST_QUEUES)?;
        ensure!(queues > 0, "no queue for requests");
        let len = self.device.memory().metadata()?.len();
        let mut memory = Memory::of(self.device.memory().try_clone()?, len)?;
        let rings = (0..=queues)
            .map(|index| self.ring(&mut memory, index, features))
            .collect::<Result<Vec<_>>>()?;
        let size = rings.first().map_or(0, |ring| ring.layout().size.into());
        self.set(register::SHM_SEL, 0)?;
        self.expect(register::SHM_LEN_LOW, u32::MAX)?;
        self.expect(register::SHM_LEN_LOW + 4, u32::MAX)?;
        ensure!(
            !self.device.eventfds.interrupted(Duration::ZERO)?,
            "interrupted before the driver is ready"
        );
        self.add_status(0xb, 4)?;
        let probed = Probed {
            tag,
            queues,
            features,
            size,
        };
        Ok((Driver::over(self.clone(), memory, rings), probed))
    }

    /// Finds the device and binds the driver to it.
    ///
    /// # Errors
    /// As [`Cpu::bind`], or the device is broken at once.
    pub fn probe(&self) -> Result<(Guest, Probed)> {
        self.find()?;
        let probed = self.bind()?;
        self.expect(register::STATUS, READY)?;
        Ok(probed)
    }

    /// `virtio_fs_read_tag`: reads byte by byte between two reads of the generation.
    fn tag(&self) -> Result<String> {
        let before = self.get(register::CONFIG_GENERATION)?;
        let mut bytes = Vec::new();
        for at in 0..36 {
            let byte = self.load(register::CONFIG + at, 1)?;
            bytes.push(u8::try_from(byte).with_context(|| format!("{byte:#x} in a byte"))?);
        }
        self.expect(register::CONFIG_GENERATION, before)?;
        let tag = String::from_utf8(bytes)?;
        Ok(tag.trim_end_matches('\0').to_owned())
    }

    /// `vm_setup_vq`.
    fn ring(&self, memory: &mut Memory, index: u32, features: u32) -> Result<Ring> {
        self.set(register::QUEUE_SEL, index)?;
        self.expect(register::QUEUE_READY, 0)?;
        let size = self.get(register::QUEUE_NUM_MAX)?;
        ensure!(size > 0, "queue {index} is not there");
        let layout = Layout {
            index,
            size: u16::try_from(size)?,
            indirect: features & INDIRECT != 0,
            event_idx: features & EVENT_IDX != 0,
            call: CallKind::Event,
        };
        let ring = Ring::new(memory, layout)?;
        self.set(register::QUEUE_NUM, size)?;
        for (register, address) in [
            (register::QUEUE_DESC_LOW, ring.descriptors),
            (register::QUEUE_DRIVER_LOW, ring.available),
            (register::QUEUE_DEVICE_LOW, ring.used),
        ] {
            self.set(register, u32::try_from(address & 0xffff_ffff)?)?;
            self.set(register + 4, u32::try_from(address >> 32)?)?;
        }
        self.set(register::QUEUE_READY, 1)?;
        Ok(ring)
    }

    /// Unbinds the driver while the device may still work, as `virtio_reset_device`, `vm_del_vqs`
    /// and `virtio_dev_remove` do. `queues` is the number of request queues.
    ///
    /// # Errors
    /// Something is left of what was before.
    pub fn unbind(&self, queues: u32) -> Result<()> {
        self.set(register::STATUS, 0)?;
        for index in 0..=queues {
            self.set(register::QUEUE_SEL, index)?;
            self.set(register::QUEUE_READY, 0)?;
            self.expect(register::QUEUE_READY, 0)?;
        }
        self.expect(register::STATUS, 0)?;
        self.expect(register::INTERRUPT_STATUS, 0)?;
        self.set(register::STATUS, 1)?;
        // An interrupt from before the reset has no receiver any more.
        self.device.eventfds.interrupted(Duration::ZERO)?;
        Ok(())
    }

    /// Waits for an interrupt as `vm_interrupt` handles it. Returns its cause.
    fn interrupt(&self, deadline: Instant) -> Result<u32, Error> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.device.eventfds.interrupted(left).map_err(failed)? {
                let what = "an interrupt was awaited";
                return Err(Error::Late { what, limit: LIMIT });
            }
            let status = self.get(register::INTERRUPT_STATUS).map_err(failed)?;
            if status != 0 {
                self.set(register::INTERRUPT_ACK, status).map_err(failed)?;
                return Ok(status);
            }
        }
    }

    /// Waits until the device reports that it is broken.
    ///
    /// # Errors
    /// It does not in time, or says so without having told of a change.
    pub fn until_broken(&self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while self.interrupt(deadline)? & CONFIG_CHANGE == 0 {}
        self.expect(register::STATUS, READY | NEEDS_RESET)
    }
}

/// Kicks are stores to a register. Used buffers are reported by the interrupt line and two
/// registers.
impl Notifier for Cpu {
    fn kick(&self, ring: &Ring) -> driver::Result<()> {
        // Only the lower half of the register has the number, and compilers clear the rest: the
        // driver compares 64 bits.
        self.store(register::QUEUE_NOTIFY, 4, ring.layout().index.into())
            .map_err(failed)
    }

    fn wait(&self, ring: &Ring, memory: &Memory, limit: Duration) -> driver::Result<()> {
        let deadline = Instant::now() + limit;
        // The guest reads the ring only after an interrupt, as Linux does.
        while !ring.ask_for_notice(memory) {
            if self.interrupt(deadline)? & CONFIG_CHANGE != 0
                && self.get(register::STATUS).map_err(failed)? & NEEDS_RESET != 0
            {
                return Err(Error::NeedsReset);
            }
        }
        Ok(())
    }
}

fn failed(error: anyhow::Error) -> Error {
    Error::System {
        what: "using the device",
        source: io::Error::other(format!("{error:#}")),
    }
}
