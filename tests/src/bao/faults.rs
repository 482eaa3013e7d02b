//! The list of a device model's actions that the driver does not survive or that its rules forbid.

use std::sync::Arc;

use anyhow::{Result, ensure};
use parking_lot::Mutex;

/// A shared list. Clones are the same list.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Vec<String>>>);

impl Faults {
    /// Adds a fault.
    pub fn add(&self, fault: impl Into<String>) {
        let mut list = self.0.lock();
        list.push(fault.into());
    }

    /// Takes all faults so far.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }

    /// Fails if the list is not empty.
    ///
    /// # Errors
    /// With all of them.
    pub fn none(&self) -> Result<()> {
        let faults = self.take();
        ensure!(
            faults.is_empty(),
            "the device model broke rules: {}",
            faults.join("; ")
        );
        Ok(())
    }
}
