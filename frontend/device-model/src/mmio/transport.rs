//! The registers of one device, and the effect of reading and writing them.

use std::sync::Arc;

use gangplank_service::error_chain;
use gangplank_service::rate_limit::RateLimit;
use log::{debug, info, warn};

use super::device::{Activation, Device};
use super::eventfds::EventFds;
use super::features::FeatureBits;
use super::queue::{QueueError, QueueRegisters};
use super::register::Register;
use super::registers::RegisterLog;
use super::status::{Action, Status};
use super::{CONFIG_SPACE, MAGIC, VENDOR, VERSION};
use crate::hypervisor::{Access, GuestRange, Operation};

/// The value of a shared memory register whose region does not exist (virtio 1.2, 4.2.2, `SHMLen`).
const NO_REGION: u32 = u32::MAX;

/// One device as the guest sees it.
#[derive(Debug)]
pub struct Transport<D> {
    pub(super) device: D,
    pub(super) eventfds: Arc<EventFds>,
    pub(super) window: GuestRange,
    pub(super) memory: GuestRange,
    pub(super) driver: Driver,
    /// Interrupts that were raised here, for changes of the configuration and not for used buffers.
    pub(super) own_calls: u64,
    /// Interrupts and kicks that passed through here, for the report.
    pub(super) counts: Counts,
    /// Survives a reset: it must differ whenever the content does.
    pub(super) config_generation: u32,
    /// Limits on what the guest can have logged: a queue that does not fit, a driver that is ready,
    /// a device that does not start.
    pub(super) queue_error: RateLimit,
    pub(super) ready: RateLimit,
    pub(super) failed: RateLimit,
    /// Where the registers are saved, if anywhere.
    pub(super) register_log: Option<Box<dyn RegisterLog>>,
}

/// Interrupts and kicks that passed through the registers. Most do not.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Interrupts that were raised for a change of the configuration or of the status.
    pub own_interrupts: u64,
    /// Kicks that came as an access and were passed on to the backend.
    pub kicks: u64,
}

/// Everything that a driver has written and a reset forgets.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Driver {
    pub(super) status: Status,
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) features: u64,
    pub(super) queue_sel: u32,
    /// One for each queue of the device; empty from a reset until a queue register is written.
    pub(super) queues: Vec<QueueRegisters>,
    pub(super) interrupt_status: u32,
    /// Whether the device was activated since the last reset.
    pub(super) activated: bool,
}

impl<D: Device> Transport<D> {
    /// A device after a reset. `window` is the range of its registers, `memory` the guest's shared
    /// memory. `eventfds` is connected and has a kick for each queue of `device`.
    pub fn new(device: D, eventfds: Arc<EventFds>, window: GuestRange, memory: GuestRange) -> Self {
        Self {
            device,
            eventfds,
            window,
            memory,
            driver: Driver::default(),
            own_calls: 0,
            counts: Counts::default(),
            config_generation: 0,
            queue_error: RateLimit::once(),
            ready: RateLimit::once(),
            failed: RateLimit::once(),
            register_log: None,
        }
    }

    /// The device type behind the registers.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device type behind the registers, for changes that do not come from the guest.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Its eventfds.
    pub fn eventfds(&self) -> Arc<EventFds> {
        Arc::clone(&self.eventfds)
    }

    /// Whether both have the same state, as far as a reset forgets it.
    #[cfg(test)]
    pub(super) fn is_as(&self, other: &Self) -> bool {
        self.driver == other.driver && self.own_calls == other.own_calls
    }

    /// Interrupts and kicks that passed through here so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// `Status`, as the guest reads it.
    pub fn status(&self) -> Status {
        self.driver.status
    }

    /// Handles one access of the guest. Returns the answer to a read, and 0 otherwise. An invalid
    /// read returns 0, an invalid write does nothing.
    pub fn handle(&mut self, access: &Access) -> u64 {
        let Some(offset) = self.window.offset_of(access.address) else {
            debug!(
                "an access to {:#x}, outside the window {}",
                access.address, self.window
            );
            return 0;
        };
        let answer = match access.operation {
            Operation::Read => self.read(offset, access.width),
            Operation::Write(value) => {
                self.write(offset, access.width, value);
                0
            }
            Operation::Unknown(_) => 0,
        };
        self.log_registers();
        answer
    }

    /// Reads `width` bytes at `offset` of the window, zero-extended.
    pub fn read(&mut self, offset: u64, width: u64) -> u64 {
        if let Some(offset) = offset.checked_sub(CONFIG_SPACE) {
            return self.read_config(offset, width);
        }
        match Register::at(offset) {
            Some(register) if width == 4 => u64::from(self.read_register(register)),
            _ => 0,
        }
    }

    /// Writes the lower `width` bytes of `value` at `offset` of the window.
    pub fn write(&mut self, offset: u64, width: u64, value: u64) {
        if let Some(offset) = offset.checked_sub(CONFIG_SPACE) {
            return self.write_config(offset, width, value);
        }
        if let (Some(register), 4) = (Register::at(offset), width) {
            self.write_register(register, low_word(value));
        }
    }

    fn read_register(&mut self, register: Register) -> u32 {
        let driver = &self.driver;
        match register {
            Register::MagicValue => MAGIC,
            Register::Version => VERSION,
            Register::DeviceId => self.device.device_id(),
            Register::VendorId => VENDOR,
            Register::DeviceFeatures => word(self.offered(), driver.device_features_sel),
            Register::QueueNumMax => self.selected_max().map_or(0, u32::from),
            Register::QueueReady => u32::from(self.selected().is_some_and(|queue| queue.ready)),
            Register::InterruptStatus => self.read_interrupt_status(),
            Register::Status => driver.status.bits(),
            Register::ShmLenLow
            | Register::ShmLenHigh
            | Register::ShmBaseLow
            | Register::ShmBaseHigh => NO_REGION,
            Register::ConfigGeneration => self.config_generation,
            Register::DeviceFeaturesSel
            | Register::DriverFeatures
            | Register::DriverFeaturesSel
            | Register::QueueSel
            | Register::QueueNum
            | Register::QueueNotify
            | Register::InterruptAck
            | Register::QueueDescLow
            | Register::QueueDescHigh
            | Register::QueueDriverLow
            | Register::QueueDriverHigh
            | Register::QueueDeviceLow
            | Register::QueueDeviceHigh
            | Register::ShmSel => 0,
        }
    }

    fn write_register(&mut self, register: Register, value: u32) {
        let driver = &mut self.driver;
        match register {
            Register::DeviceFeaturesSel => driver.device_features_sel = value,
            Register::DriverFeaturesSel => driver.driver_features_sel = value,
            Register::DriverFeatures => self.write_features(value),
            Register::QueueSel => driver.queue_sel = value,
            Register::QueueNum => self.set_up(|queue| queue.size = value),
            Register::QueueReady => self.write_ready(value),
            Register::QueueNotify => self.notify(value),
            Register::InterruptAck => driver.interrupt_status &= !value,
            Register::Status => self.write_status(value),
            Register::QueueDescLow => self.set_up(|queue| set_low(&mut queue.descriptors, value)),
            Register::QueueDescHigh => self.set_up(|queue| set_high(&mut queue.descriptors, value)),
            Register::QueueDriverLow => self.set_up(|queue| set_low(&mut queue.available, value)),
            Register::QueueDriverHigh => self.set_up(|queue| set_high(&mut queue.available, value)),
            Register::QueueDeviceLow => self.set_up(|queue| set_low(&mut queue.used, value)),
            Register::QueueDeviceHigh => self.set_up(|queue| set_high(&mut queue.used, value)),
            Register::MagicValue
            | Register::Version
            | Register::DeviceId
            | Register::VendorId
            | Register::DeviceFeatures
            | Register::QueueNumMax
            | Register::InterruptStatus
            | Register::ShmSel
            | Register::ShmLenLow
            | Register::ShmLenHigh
            | Register::ShmBaseLow
            | Register::ShmBaseHigh
            | Register::ConfigGeneration => {}
        }
    }

    fn offered(&self) -> u64 {
        FeatureBits::offered(self.device.features())
    }

    /// Replaces one half. A driver that writes a half again replaces its first value.
    fn write_features(&mut self, value: u32) {
        let driver = &mut self.driver;
        if !driver.status.contains(Status::DRIVER)
            || driver
                .status
                .intersects(Status::FEATURES_OK | Status::FAILED)
        {
            return;
        }
        match driver.driver_features_sel {
            0 => set_low(&mut driver.features, value),
            1 => set_high(&mut driver.features, value),
            _ => {}
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        for step in self.driver.status.steps(value) {
            if step.possible(self.driver.status) && self.take(step.action) {
                self.driver.status |= step.sets;
                if step.action == Action::Start && self.driver.status.contains(Status::NEEDS_RESET)
                {
                    self.interrupt_for_config();
                }
            }
        }
    }

    /// Takes one step. Returns whether to set its bit.
    fn take(&mut self, action: Action) -> bool {
        match action {
            Action::Note => true,
            Action::Negotiate => {
                let (driver, offered) = (self.driver.features, self.offered());
                let acceptable = FeatureBits::acceptable(driver, offered);
                if !acceptable {
                    debug!(
                        "the driver's features {driver:#x} are refused: {offered:#x} are offered"
                    );
                }
                acceptable
            }
            Action::Start => {
                // Linux takes the refused queues for ready: it does not read `QueueReady` back.
                if self.driver.queues.iter().any(|queue| queue.refused) {
                    self.driver.status |= Status::NEEDS_RESET;
                }
                if !self.driver.status.contains(Status::NEEDS_RESET) {
                    self.activate();
                }
                true
            }
            Action::Stop => {
                debug!("the driver has given up");
                self.driver.status |= Status::FAILED;
                self.stop();
                true
            }
        }
    }

    fn activate(&mut self) {
        let queues: Vec<_> = (0..)
            .zip(&self.driver.queues)
            .zip(self.device.queue_sizes())
            .filter(|((_, queue), _)| queue.ready)
            // Each queue was valid when it was made ready, and has not changed since.
            .filter_map(|((index, queue), &max)| queue.validate(index, max, self.memory).ok())
            .collect();
        self.driver.activated = true;
        let features = self.driver.features;
        let count = queues.len();
        match self.device.activate(Activation { features, queues }) {
            Ok(()) if self.ready.admit().is_some() => {
                info!("the driver is ready, with features {features:#x} and {count} queues");
            }
            Ok(()) => debug!("the driver is ready again, with {count} queues"),
            Err(error) => {
                if self.failed.admit().is_some() {
                    warn!("the device cannot be started: {}", error_chain(&error));
                }
                self.driver.status |= Status::NEEDS_RESET;
            }
        }
    }

    /// Stops the device. Saves the registers first: a successor that found the old registers and no
    /// running queue would take the queues for never started.
    fn stop(&mut self) {
        let activated = std::mem::take(&mut self.driver.activated);
        self.log_registers();
        if activated {
            self.device.reset();
        }
    }

    fn reset(&mut self) {
        let activated = self.driver.activated;
        self.driver = Driver {
            activated,
            ..Driver::default()
        };
        self.own_calls = 0;
        self.stop();
        self.eventfds.drain();
    }

    fn selected_max(&self) -> Option<u16> {
        let index = usize::try_from(self.driver.queue_sel).ok()?;
        self.device.queue_sizes().get(index).copied()
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        let index = usize::try_from(self.driver.queue_sel).ok()?;
        self.driver.queues.get(index)
    }

    fn selected_mut(&mut self) -> Option<&mut QueueRegisters> {
        let index = usize::try_from(self.driver.queue_sel).ok()?;
        let count = self.device.queue_sizes().len();
        self.driver.queues.resize(count, QueueRegisters::default());
        self.driver.queues.get_mut(index)
    }

    /// Changes the selected queue, if it exists and is not ready.
    fn set_up(&mut self, change: impl FnOnce(&mut QueueRegisters)) {
        if let Some(queue) = self.selected_mut()
            && !queue.ready
        {
            change(queue);
        }
    }

    fn write_ready(&mut self, value: u32) {
        let (status, memory) = (self.driver.status, self.memory);
        let Some((max, index)) = self
            .selected_max()
            .zip(u16::try_from(self.driver.queue_sel).ok())
        else {
            return;
        };
        let activated = self.driver.activated;
        let Some(queue) = self.selected_mut() else {
            return;
        };
        match (value, queue.ready) {
            (0, true) => {
                queue.ready = false;
                if activated {
                    self.log_registers();
                    self.device.stop_queue(index);
                }
            }
            (1, false)
                if status.contains(Status::FEATURES_OK)
                    && !status.intersects(Status::DRIVER_OK | Status::FAILED) =>
            {
                match queue.validate(index, max, memory) {
                    Ok(_) => {
                        queue.ready = true;
                        queue.refused = false;
                    }
                    Err(queue_error) => {
                        queue.refused = true;
                        self.warn_of_queue(index, queue_error);
                    }
                }
            }
            (0, false) => queue.refused = false,
            _ => {}
        }
    }

    /// Logs that the guest's memory is not set up as it must be.
    fn warn_of_queue(&mut self, index: u16, queue_error: QueueError) {
        if self.queue_error.admit().is_some() {
            warn!(
                "queue {index} is not made ready: {queue_error}{}",
                queue_error.hint()
            );
        }
    }

    /// A kick that came as an access: the hypervisor does not signal the eventfd for an access
    /// wider than 32 bits.
    fn notify(&mut self, value: u32) {
        let running = self.driver.status.contains(Status::DRIVER_OK);
        if let Ok(index) = u16::try_from(value)
            && running
            && let Some(queue) = self.driver.queues.get(usize::from(index))
            && queue.ready
        {
            self.counts.kicks = self.counts.kicks.saturating_add(1);
            self.eventfds.signal_kick(index);
        }
    }

    fn read_config(&self, offset: u64, width: u64) -> u64 {
        let mut value = [0; 8];
        let wanted = usize::try_from(offset)
            .ok()
            .filter(|_| is_aligned(offset, width))
            .and_then(|offset| self.device.config().get(offset..))
            .zip(usize::try_from(width).ok());
        if let Some((config, width)) = wanted {
            // At the end of the space fewer bytes exist than asked for: the rest reads 0.
            for (to, from) in value.iter_mut().zip(config).take(width) {
                *to = *from;
            }
        }
        u64::from_le_bytes(value)
    }

    fn write_config(&mut self, offset: u64, width: u64, value: u64) {
        let bytes = value.to_le_bytes();
        let written = usize::try_from(width)
            .ok()
            .filter(|_| is_aligned(offset, width))
            .and_then(|width| bytes.get(..width));
        if let Some(bytes) = written {
            self.device.write_config(offset, bytes);
        }
    }
}

/// Whether a CPU can make an access of `width` bytes at `offset` of a configuration space.
fn is_aligned(offset: u64, width: u64) -> bool {
    matches!(width, 1 | 2 | 4 | 8) && offset.is_multiple_of(width)
}

/// The 32 bits of `bits` that a selector register selects; 0 for selectors above 1.
fn word(bits: u64, selector: u32) -> u32 {
    match selector {
        0 => low_word(bits),
        1 => low_word(bits >> 32),
        _ => 0,
    }
}

#[allow(clippy::cast_possible_truncation)] // the lower half is what is asked for
fn low_word(value: u64) -> u32 {
    value as u32
}

fn set_low(register: &mut u64, value: u32) {
    *register = *register >> 32 << 32 | u64::from(value);
}

fn set_high(register: &mut u64, value: u32) {
    *register = u64::from(low_word(*register)) | u64::from(value) << 32;
}
