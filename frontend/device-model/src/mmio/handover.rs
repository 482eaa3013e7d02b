//! Saving the registers, and restoring them in a successor.

use super::device::{Activation, Device, ReadyQueue};
use super::interrupts::USED_BUFFERS;
use super::registers::{RegisterLog, Registers};
use super::status::Status;
use super::transport::{Driver, Transport};

/// Why a device cannot continue as its predecessor.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RestoreError {
    /// It has fewer queues or another configuration space.
    #[error("the device had more queues or another configuration space")]
    Shape,
    /// A queue in use does not fit the device.
    #[error("the driver's queue {index} does not fit the device as it is configured now")]
    Queue {
        /// Its index.
        index: u16,
    },
}

impl<D: Device> Transport<D> {
    /// Saves the registers in `register_log` from now on, before the guest or the backend sees a
    /// change.
    pub fn set_register_log(&mut self, register_log: Box<dyn RegisterLog>) {
        self.register_log = Some(register_log);
        self.log_registers();
    }

    /// Continues with a predecessor's registers, and tells the device. Interrupts on their way to
    /// the guest may have been lost, so one is raised.
    ///
    /// # Errors
    /// [`RestoreError`] if the device is configured differently now. The device is broken then, and
    /// the driver is told.
    pub fn restore(&mut self, saved: Registers) -> Result<(), RestoreError> {
        let queues = self.ready_queues(&saved);
        if let Ok(queues) = &queues {
            let has_driver = saved.activated && !saved.status.contains(Status::FAILED);
            let driver = has_driver.then(|| Activation {
                features: saved.features,
                queues: queues.clone(),
            });
            let is_broken = saved.status.contains(Status::NEEDS_RESET);
            let (broken, running) = match is_broken {
                true => (driver, None),
                false => (None, driver),
            };
            self.device.resume(&saved.config, running);
            if let Some(driver) = broken {
                self.device.resume_broken(driver);
            }
        }
        self.config_generation = saved.config_generation;
        self.driver = Driver {
            status: saved.status,
            device_features_sel: saved.device_features_sel,
            driver_features_sel: saved.driver_features_sel,
            features: saved.features,
            queue_sel: saved.queue_sel,
            queues: if queues.is_ok() {
                saved.queues
            } else {
                Vec::new()
            },
            interrupt_status: saved.interrupt_status,
            activated: saved.activated,
        };
        if queues.is_err() {
            self.needs_reset();
        } else if self.driver.status.contains(Status::DRIVER_OK) {
            self.driver.interrupt_status |= USED_BUFFERS;
            self.raise_own();
        }
        self.log_registers();
        queues.map(|_| ())
    }

    /// The queues that are ready, if they still fit the device.
    fn ready_queues(&self, saved: &Registers) -> Result<Vec<ReadyQueue>, RestoreError> {
        let sizes = self.device.queue_sizes();
        if saved.queues.len() > sizes.len() || saved.config.len() != self.device.config().len() {
            return Err(RestoreError::Shape);
        }
        let queues = (0..).zip(&saved.queues).zip(sizes);
        queues
            .filter(|((_, queue), _)| queue.ready)
            .map(|((index, queue), &max)| {
                let valid = queue.validate(index, max, self.memory);
                valid.map_err(|_| RestoreError::Queue { index })
            })
            .collect()
    }

    /// Marks the device as broken, because a predecessor's registers are unknown. The driver gets
    /// no interrupt: it may not be ready for one.
    pub fn restore_broken(&mut self) {
        self.driver.status |= Status::NEEDS_RESET;
        self.log_registers();
    }

    pub(super) fn log_registers(&self) {
        if let Some(register_log) = &self.register_log {
            let driver = &self.driver;
            register_log.save(&Registers {
                status: driver.status,
                device_features_sel: driver.device_features_sel,
                driver_features_sel: driver.driver_features_sel,
                features: driver.features,
                queue_sel: driver.queue_sel,
                interrupt_status: driver.interrupt_status,
                config_generation: self.config_generation,
                activated: driver.activated,
                queues: driver.queues.clone(),
                config: self.device.config().to_vec(),
            });
        }
    }
}
