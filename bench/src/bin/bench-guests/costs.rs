//! What a guest's work takes: messages, and what the kernel does for the daemon. These numbers are
//! the same on a busy machine, except for the switches, so they show what rates would hide.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::kernel_counts::KernelCounts;

/// The costs of one workload on one file system.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cost {
    pub(crate) workload: String,
    pub(crate) system: String,
    /// What the workload has so many of.
    pub(crate) unit: String,
    pub(crate) units: u64,
    /// Requests that the guest made, those without a reply included.
    pub(crate) messages: u64,
    pub(crate) system_calls: u64,
    pub(crate) yields: u64,
    pub(crate) wake_ups: u64,
    pub(crate) switches: u64,
}

impl Cost {
    /// The costs of what guest-bench printed.
    pub(crate) fn new(printed: &str, messages: u64, kernel: KernelCounts) -> Result<Self> {
        let fields: Vec<&str> = printed.split_whitespace().collect();
        let [workload, system, _, units, unit] = fields[..] else {
            anyhow::bail!("guest-bench said: {printed}");
        };
        Ok(Self {
            workload: workload.to_owned(),
            system: system.to_owned(),
            unit: unit.to_owned(),
            units: units.parse().context("units")?,
            messages,
            system_calls: kernel.system_calls,
            yields: kernel.yields,
            wake_ups: kernel.wake_ups,
            switches: kernel.switches,
        })
    }

    /// The factor to the printed unit, and its name in the singular.
    fn scale(&self) -> (f64, &str) {
        match self.unit.as_str() {
            "bytes" => (f64::from(1 << 20), "MiB"),
            "entries" => (1.0, "entry"),
            "directories" => (1.0, "directory"),
            unit => (1.0, unit.strip_suffix('s').unwrap_or(unit)),
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn each(&self, count: u64) -> String {
        let units = self.units as f64 / self.scale().0;
        format!("{:.2}", count as f64 / units)
    }
}

/// A Markdown table of the costs of each unit, a row for each workload and file system.
pub(crate) fn table(costs: &[Cost]) -> String {
    let mut text = String::from(
        "| workload | for each | by | messages | system calls | yields | wake-ups | switches |\n\
         | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for cost in costs {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            cost.workload,
            cost.scale().1,
            cost.system,
            cost.each(cost.messages),
            cost.each(cost.system_calls),
            cost.each(cost.yields),
            cost.each(cost.wake_ups),
            cost.each(cost.switches),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_told_for_each_unit() {
        let kernel = KernelCounts {
            system_calls: 50,
            yields: 30,
            wake_ups: 5,
            switches: 2,
        };
        let files = Cost::new("create gangplankd 0.5 10 files\n", 40, kernel).unwrap();
        let bytes = Cost::new("read virtiofsd 0.5 2097152 bytes\n", 4, kernel).unwrap();
        let table = table(&[files, bytes]);
        assert!(
            table.contains("| create | file | gangplankd | 4.00 | 5.00 | 3.00 | 0.50 | 0.20 |")
        );
        assert!(table.contains("| read | MiB | virtiofsd | 2.00 | 25.00 | 15.00 | 2.50 | 1.00 |"));
        assert!(Cost::new("guest-bench: cannot", 0, kernel).is_err());
    }
}
