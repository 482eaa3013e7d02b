//! Registers that are written down, and had back by a successor.

use super::device::{Activation, Device};
use super::interrupts::USED_BUFFERS;
use super::registers::{Ledger, Registers};
use super::status::Status;
use super::transport::{Driver, Transport};

/// Why a device cannot go on where its predecessor left off.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Misfit {
    /// It has fewer queues or another configuration space.
    #[error("the device had more queues or another configuration space")]
    Shape,
    /// A queue that is in use cannot be had.
    #[error("the driver's queue {index} does not fit the device as it is configured now")]
    Queue {
        /// Which one.
        index: u16,
    },
}

impl<D: Device> Transport<D> {
    /// Has the registers written down from now on, before whoever changed them learns of it.
    pub fn write_down(&mut self, ledger: Box<dyn Ledger>) {
        self.ledger = Some(ledger);
        self.note();
    }

    /// Goes on where a predecessor left off, whose registers were `left`; the device is told. Interrupts that were on their way
    /// to the guest may have been lost, so it is made to look once.
    ///
    /// # Errors
    /// [`Misfit`], if the device is another by now. It is as it was made then.
    pub fn restore(&mut self, left: Registers) -> Result<(), Misfit> {
        let sizes = self.device.queue_sizes();
        if left.queues.len() > sizes.len() || left.config.len() != self.device.config().len() {
            return Err(Misfit::Shape);
        }
        let mut ready = Vec::new();
        for ((index, queue), &max) in (0..).zip(&left.queues).zip(sizes) {
            if queue.ready {
                let fit = queue.fit(index, max, self.memory);
                ready.push(fit.map_err(|_| Misfit::Queue { index })?);
            }
        }
        let runs = left.activated && !left.status.intersects(Status::NEEDS_RESET | Status::FAILED);
        let activation = runs.then_some(Activation {
            features: left.features,
            queues: ready,
        });
        self.device.resume(&left.config, activation);
        self.config_generation = left.config_generation;
        self.driver = Driver {
            status: left.status,
            device_features_sel: left.device_features_sel,
            driver_features_sel: left.driver_features_sel,
            features: left.features,
            queue_sel: left.queue_sel,
            queues: left.queues,
            interrupt_status: left.interrupt_status,
            activated: left.activated,
        };
        if self.driver.status.contains(Status::DRIVER_OK) {
            self.driver.interrupt_status |= USED_BUFFERS;
            self.raise_own();
        }
        self.note();
        Ok(())
    }

    /// A predecessor's guest may be in the middle of anything, and nothing is known of it: the device has to be reset. Its
    /// driver is not told, as it is not known to have got that far.
    pub fn restore_broken(&mut self) {
        self.driver.status |= Status::NEEDS_RESET;
        self.note();
    }

    pub(super) fn note(&self) {
        if let Some(ledger) = &self.ledger {
            let driver = &self.driver;
            ledger.save(&Registers {
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
