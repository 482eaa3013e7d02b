//! The devices of one configuration: started together, each served or failed by itself.

use std::error::Error as StdError;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gangplank_service::error_chain;
use gangplank_vhost_user::client::{Deadlines, Socket};
use log::error;

use super::error::Error;
use crate::config::{Config, DeviceConfig};
use crate::fd_store::{Entry, FdStore, FdStoreError, Slot, StartOptions, name_for_node};
use crate::hypervisor::Port;
use crate::hypervisor_driver::{
    ConfiguredMemory, DeviceDescriptor, DeviceParams, HypervisorDriver,
};
use crate::journal::Journal;
use crate::model::{Handover, RunningDevice, SocketConnector};

/// A device that is served.
type Served = RunningDevice<dyn Port, Socket>;

/// Opens the memory of each device that has one configured.
pub(super) fn open_memory(config: &Config) -> Vec<Option<ConfiguredMemory>> {
    let devices = config.devices.iter().map(|device| {
        let memory = device.memory.as_ref();
        memory.map(|(range, path)| ConfiguredMemory::open(*range, path))
    });
    devices.collect()
}

/// All devices of a configuration.
#[derive(Debug)]
pub(super) struct Devices {
    fd_store: Arc<FdStore>,
    devices: Vec<Device>,
    since: Instant,
}

#[derive(Debug)]
struct Device {
    id: u32,
    /// `None` if another process has claimed the device, or the fd store does not answer.
    entry: Option<Arc<Entry>>,
    state: State,
}

#[derive(Debug)]
enum State {
    Served(Served),
    Failed { why: String },
}

impl Devices {
    /// Starts every device of `driver`, each with its `memory`, from the state that the fd store
    /// keeps of it. The fd store is the one called `holder`, or the one of the driver's node. A
    /// device that cannot be started is logged and stays failed.
    ///
    /// # Errors
    /// [`Error::FdStore`] if no fd store answers or can be started. It is started as
    /// `start_options` say.
    pub(super) fn start(
        config: &Config,
        driver: &dyn HypervisorDriver,
        memory: Vec<Option<ConfiguredMemory>>,
        holder: Option<&str>,
        start_options: StartOptions,
        absence_limit: Duration,
    ) -> Result<Self, Error> {
        let name = holder.map_or_else(|| name_for_node(driver.node()), str::to_owned);
        let fd_store = Arc::new(FdStore::connect(&name, start_options)?);
        let devices = config.devices.iter().zip(memory).map(|(config, memory)| {
            let id = config.id;
            let claimed = Entry::claim(Arc::clone(&fd_store), id).map(Arc::new);
            let entry = claimed.as_ref().ok().map(Arc::clone);
            let started = claimed
                .map_err(Failure::from)
                .and_then(|entry| start(driver, config, memory, &entry, absence_limit));
            let state = match started {
                Ok(running) => State::Served(running),
                Err(error) => {
                    let why = error_chain(&*error);
                    error!("device {id} is not served: {why}");
                    State::Failed { why }
                }
            };
            Device { id, entry, state }
        });
        Ok(Self {
            devices: devices.collect(),
            fd_store,
            since: Instant::now(),
        })
    }

    /// A descriptor that polls as `RDHUP` when the fd store has gone.
    pub(super) fn fd_store_connection(&self) -> Arc<OwnedFd> {
        self.fd_store.connection()
    }

    /// Connects to another fd store, because the previous one has gone, and gives it everything to
    /// keep.
    ///
    /// # Errors
    /// No fd store answers. What the previous one kept stays open in this process.
    pub(super) fn reconnect_fd_store(&self) -> Result<(), FdStoreError> {
        self.fd_store.renew()?;
        let entries = self
            .devices
            .iter()
            .filter_map(|device| device.entry.as_ref());
        // Each by itself: an entry that fails must not keep the others from being stored.
        entries.map(|entry| entry.renew()).fold(Ok(()), Result::and)
    }

    /// Whether this process must not end: the fd store lacks a descriptor whose last close the
    /// hypervisor's driver does not survive.
    pub(super) fn has_unsaved_descriptors(&self) -> bool {
        let mut entries = self
            .devices
            .iter()
            .filter_map(|device| device.entry.as_ref());
        entries.any(|entry| entry.is_pending())
    }

    /// The number of devices that are served.
    pub(super) fn alive(&self) -> usize {
        self.served().count()
    }

    /// The number of devices that are configured and not served.
    pub(super) fn failed(&self) -> usize {
        self.devices.len().saturating_sub(self.alive())
    }

    /// Descriptors that become readable when a served device has ended.
    pub(super) fn ended_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.served().map(RunningDevice::ended)
    }

    /// Marks the devices that have ended as failed. Each has logged the reason.
    pub(super) fn mark_ended(&mut self) {
        for device in &mut self.devices {
            if matches!(&device.state, State::Served(running) if running.has_ended()) {
                let why = "its guest's accesses cannot be taken any more".to_owned();
                let before = std::mem::replace(&mut device.state, State::Failed { why });
                if let State::Served(running) = before {
                    running.end();
                }
            }
        }
    }

    /// Ends all devices. Every access that was taken is answered.
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

type Failure = Box<dyn StdError + Send + Sync>;

fn start(
    driver: &dyn HypervisorDriver,
    config: &DeviceConfig,
    memory: Option<ConfiguredMemory>,
    entry: &Arc<Entry>,
    absence_limit: Duration,
) -> Result<Served, Failure> {
    let params = DeviceParams {
        id: config.id,
        window: config.window,
        memory,
    };
    let (journal, readable) = match entry.get(Slot::Journal)? {
        Some(left) => Journal::open(left, config.id)?,
        None => {
            let journal = Journal::new(config.id)?;
            entry.put(Slot::Journal, journal.descriptor())?;
            (journal, true)
        }
    };
    let taken = match entry.get(Slot::Device)? {
        Some(left) => DeviceDescriptor::restored(left, journal.memory()),
        None => {
            let taken = driver.take(config.id)?;
            journal.set_memory(taken.memory());
            entry.put_permanent(Slot::Device, taken.descriptor())?;
            taken
        }
    };
    let journal = Arc::new(journal);
    let handover = Handover::new(Arc::clone(entry), Arc::clone(&journal), readable);
    let port = driver.port(taken, &params, journal)?;
    let connector = SocketConnector {
        path: config.socket.clone(),
        deadlines: Deadlines::default(),
        absence_limit,
    };
    let running = RunningDevice::take_over(config, Arc::clone(&port), connector, handover)?;
    port.complete_uncertain()?;
    Ok(running)
}

impl Devices {
    /// The report as JSON, with stable names.
    pub(super) fn json(&self) -> serde_json::Value {
        let device = |device: &Device| match &device.state {
            State::Served(running) => running.report().json(),
            State::Failed { why } => serde_json::json!({ "id": device.id, "failed": why }),
        };
        serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "process": std::process::id(),
            "holder_process": self.fd_store.process(),
            "uptime_s": self.since.elapsed().as_secs(),
            "failed": self.failed(),
            "devices": self.devices.iter().map(device).collect::<Vec<_>>(),
        })
    }
}

/// The report: a line for the program, and one for each device.
impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "gangplank-frontend {}: process {}, holder process {}, up {} s, devices {}, failed {}",
            env!("CARGO_PKG_VERSION"),
            std::process::id(),
            self.fd_store.process(),
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
