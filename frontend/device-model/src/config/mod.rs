//! The device model's configuration: bao-virtio's and bao-virtio-dm's YAML as it is, and more keys of our own.
//!
//! [`Config`] is what a file means; `document` is what it says. Everything is checked before any device is touched, and all
//! that is wrong is told at once, each by file, line, key and what would be right.

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
    /// What to log; none leaves it to the command line.
    pub log_level: Option<LevelFilter>,
    /// The hypervisor driver's nodes, in the order in which they are looked for.
    pub nodes: Vec<PathBuf>,
    /// At least one.
    pub devices: Vec<DeviceConfig>,
}

/// One file system device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceConfig {
    /// The device model's id; no two devices have the same.
    pub id: u32,
    /// Where the guest has its registers.
    pub window: GuestRange,
    /// The memory it shares with the guest and the node it is mapped from; none where the driver is to tell.
    pub memory: Option<(GuestRange, PathBuf)>,
    /// The daemon's socket.
    pub socket: PathBuf,
    /// The name the guest mounts by; none if the daemon is to tell, which it then has to before the guest can go on.
    pub tag: Option<String>,
    /// Queues for requests, beside the one of high priority.
    pub num_request_queues: u16,
    /// Entries that each queue has at most: a power of two.
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

    /// Checks `text`, which faults are to call `file`.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let faulty = |faults| ConfigError::Faults {
            file: file.to_owned(),
            faults,
        };
        let document = Document::parse(text).map_err(|fault| faulty(vec![fault]))?;
        check::check(document).map_err(faulty)
    }
}
