//! The devices of one configuration: started together, each alive or not by itself.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use log::error;

use super::Error;
use crate::bao::{BaoPort, Node, Wanted};
use crate::config::{Config, DeviceConfig};
use crate::failure::in_full;
use crate::model::{Running, ToSocket};
use crate::vhost_user::{Deadlines, Socket};

/// A device that was started.
type Served = Running<BaoPort, Socket>;

/// All devices of a configuration.
#[derive(Debug)]
pub(super) struct Devices {
    devices: Vec<Device>,
    since: Instant,
}

#[derive(Debug)]
struct Device {
    id: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    Served(Served),
    Failed { why: String },
}

impl Devices {
    /// Starts every device that can be started; the others are told to the log and stay failed.
    ///
    /// # Errors
    /// [`Error::Node`] where there is no driver to have any from.
    pub(super) fn start(config: &Config) -> Result<Self, Error> {
        let node = Node::open(&config.nodes)?;
        let devices = config.devices.iter().map(|config| Device {
            id: config.id,
            state: match start(&node, config) {
                Ok(running) => State::Served(running),
                Err(error) => {
                    let why = in_full(&*error);
                    error!("device {} is not served: {why}", config.id);
                    State::Failed { why }
                }
            },
        });
        Ok(Self {
            devices: devices.collect(),
            since: Instant::now(),
        })
    }

    /// How many are served.
    pub(super) fn alive(&self) -> usize {
        self.served().count()
    }

    /// How many are not, though they ought to be.
    pub(super) fn failed(&self) -> usize {
        self.devices.len().saturating_sub(self.alive())
    }

    /// What becomes readable when a device that was alive is so no more.
    pub(super) fn ends(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.served().map(Running::ended)
    }

    /// Takes note of the devices that are not served any more; each has told the log why.
    pub(super) fn notice_ends(&mut self) {
        for device in &mut self.devices {
            if matches!(&device.state, State::Served(running) if running.has_ended()) {
                let why = "its guest's accesses cannot be had any more".to_owned();
                let before = std::mem::replace(&mut device.state, State::Failed { why });
                if let State::Served(running) = before {
                    running.end();
                }
            }
        }
    }

    /// Ends them all, leaving no access unanswered that was taken.
    pub(super) fn end(self) {
        for device in self.devices {
            if let State::Served(running) = device.state {
                running.end();
            }
        }
    }

    fn served(&self) -> impl Iterator<Item = &Served> {
        self.devices
            .iter()
            .filter_map(|device| match &device.state {
                State::Served(running) => Some(running),
                State::Failed { .. } => None,
            })
    }
}

fn start(
    node: &Node,
    config: &DeviceConfig,
) -> Result<Served, Box<dyn std::error::Error + Send + Sync>> {
    let port = node.device(&Wanted {
        id: config.id,
        window: config.window,
        memory: config.memory.clone(),
    })?;
    let connector = ToSocket {
        path: config.socket.clone(),
        deadlines: Deadlines::default(),
    };
    Ok(Running::start(config, Arc::new(port), connector)?)
}

/// The report: a line for the program and one for each device.
impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "gangplank-frontend {}: process {}, up {} s, devices {}, failed {}",
            env!("CARGO_PKG_VERSION"),
            std::process::id(),
            self.since.elapsed().as_secs(),
            self.devices.len(),
            self.failed()
        )?;
        for device in &self.devices {
            match &device.state {
                State::Served(running) => writeln!(f, "{}", running.report())?,
                State::Failed { why } => writeln!(f, "device {}: failed: {why}", device.id)?,
            }
        }
        Ok(())
    }
}
