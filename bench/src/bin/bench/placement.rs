//! The processors of the daemon and the driver.

use anyhow::{Context, Result};
use gangplank_bench::cpu_affinity::{allowed, keep_on, stay_on};

use crate::device::Waiting;

/// A placement of daemon and driver, and how the driver waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its description in reports.
    pub(crate) meaning: &'static str,
    /// Whether the daemon has a processor of its own.
    pub(crate) apart: bool,
    /// How the driver waits.
    pub(crate) waiting: Waiting,
}

/// All placements.
pub(crate) const PLACEMENTS: [Placement; 3] = [
    Placement {
        name: "one",
        meaning: "daemon and driver on one processor",
        apart: false,
        waiting: Waiting::Asleep,
    },
    Placement {
        name: "two",
        meaning: "daemon and driver on a processor each; the driver sleeps until it is notified",
        apart: true,
        waiting: Waiting::Asleep,
    },
    Placement {
        name: "two-busy",
        meaning: "daemon and driver on a processor each; the driver looks all the time",
        apart: true,
        waiting: Waiting::Busy,
    },
];

/// The driver's processor, and another one for a daemon apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Processors {
    driver: usize,
    other: Option<usize>,
}

impl Processors {
    /// Takes the last two processors that this process may run on.
    pub(crate) fn find() -> Result<Self> {
        let mut numbers = allowed()?.into_iter();
        Ok(Self {
            driver: numbers.next().context("no processor to run on")?,
            other: numbers.next(),
        })
    }

    /// Whether a daemon can have a processor of its own.
    pub(crate) const fn has_two(&self) -> bool {
        self.other.is_some()
    }

    /// Pins the calling thread to the driver's processor.
    pub(crate) fn pin_driver(&self) -> Result<()> {
        stay_on(self.driver).context("choosing the driver's processor")
    }

    /// Pins every thread of a daemon to the driver's processor or to the other one. Threads that it
    /// starts later inherit this.
    pub(crate) fn pin_daemon(&self, pid: u32, apart: bool) -> Result<()> {
        let number = if apart {
            self.other
                .context("a daemon apart needs two processors, and there is one")?
        } else {
            self.driver
        };
        keep_on(pid, number)
    }
}
