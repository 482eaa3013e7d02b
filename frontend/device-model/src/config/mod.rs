//! The device model's configuration: the YAML of bao-virtio and bao-virtio-dm unchanged, with more
//! keys.
//!
//! [`Config`] is what a file means; `document` is what it says. Everything is checked before any
//! device is touched. All faults are reported at once, each with file, line, key and what would be
//! right.

mod check;
mod compare;
mod document;
mod fault;
mod plan;

#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use log::LevelFilter;

use crate::hypervisor::GuestRange;
use document::Document;
pub use fault::{ConfigError, Fault};

/// What one file configures.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// What to log; `None` leaves it to the command line.
    pub log_level: Option<LevelFilter>,
    /// The device nodes of the hypervisor's driver, in the order in which they are tried.
    pub nodes: Vec<PathBuf>,
    /// At least one.
    pub devices: Vec<DeviceConfig>,
}

/// One file system device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceConfig {
    /// The device's id at the hypervisor, unique among the devices.
    pub id: u32,
    /// Where the guest has the device's registers.
    pub window: GuestRange,
    /// The memory that the device shares with the guest, and the file that it is mapped from;
    /// `None` if the driver reports it.
    pub memory: Option<(GuestRange, PathBuf)>,
    /// The daemon's socket.
    pub socket: PathBuf,
    /// The name by which the guest mounts the file system; `None` if the daemon has one. The guest
    /// waits for the daemon then.
    pub tag: Option<String>,
    /// Request queues, without the high-priority queue.
    pub num_request_queues: u16,
    /// Most entries of each queue: a power of two.
    pub queue_size: u16,
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            file: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// Parses and checks `text`. Faults call it `file`.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let faulty = |faults| ConfigError::Faults {
            file: file.to_owned(),
            faults,
        };
        let document = Document::parse(text).map_err(|fault| faulty(vec![fault]))?;
        check::check(document).map_err(faulty)
    }
}
