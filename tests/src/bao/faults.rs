//! What a device model did that the driver does not survive, or that the rules of it forbid.

use std::sync::Arc;

use anyhow::{Result, ensure};
use parking_lot::Mutex;

/// A list that everybody adds to. Clones are the same list.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Vec<String>>>);

impl Faults {
    /// Notes one.
    pub fn add(&self, fault: impl Into<String>) {
        let mut list = self.0.lock();
        list.push(fault.into());
    }

    /// All so far; the list is empty afterwards.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }

    /// Fails if there are any.
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
