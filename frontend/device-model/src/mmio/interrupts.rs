//! The interrupt line and `InterruptStatus`.

use super::device::Device;
use super::status::Status;
use super::transport::Transport;

/// `InterruptStatus`: a queue has used buffers.
pub(super) const USED_BUFFERS: u32 = 1;

/// `InterruptStatus`: the configuration space or the status changed.
const CONFIG_CHANGE: u32 = 2;

impl<D: Device> Transport<D> {
    /// The configuration space has changed. Interrupts the guest if its driver is running.
    pub fn config_changed(&mut self) {
        self.config_generation = self.config_generation.wrapping_add(1);
        self.interrupt_for_config();
        self.log_registers();
    }

    /// The device is broken until it is reset. Interrupts the guest if its driver is running.
    pub fn needs_reset(&mut self) {
        if !self.driver.status.contains(Status::NEEDS_RESET) {
            self.driver.status |= Status::NEEDS_RESET;
            self.interrupt_for_config();
            self.log_registers();
        }
    }

    /// Makes the guest's driver read `InterruptStatus`, with nothing new in it. Returns whether a
    /// driver is running.
    pub fn prompt(&mut self) -> bool {
        let runs = self.driver.status.contains(Status::DRIVER_OK);
        if runs {
            self.raise_own();
        }
        runs
    }

    /// The backend signals the eventfd when it has used buffers, which interrupts the guest without
    /// this process. The counter has risen before the guest's handler reads this register. Signals
    /// beyond this process's own are therefore used buffers.
    pub(super) fn read_interrupt_status(&mut self) -> u32 {
        let calls = self.eventfds.take_calls();
        if calls > std::mem::take(&mut self.own_calls) {
            self.driver.interrupt_status |= USED_BUFFERS;
        }
        self.driver.interrupt_status
    }

    pub(super) fn interrupt_for_config(&mut self) {
        if self.driver.status.contains(Status::DRIVER_OK) {
            self.driver.interrupt_status |= CONFIG_CHANGE;
            self.raise_own();
        }
    }

    /// Raises the interrupt line for another reason than used buffers.
    pub(super) fn raise_own(&mut self) {
        self.own_calls = self.own_calls.saturating_add(1);
        self.counts.own_interrupts = self.counts.own_interrupts.saturating_add(1);
        self.eventfds.signal_call();
    }
}
