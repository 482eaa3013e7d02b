//! A file system device: connects what the guest's driver sets up with a backend that may come and
//! go.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use gangplank_service::{error_chain, rate_limited};
use gangplank_vhost_user::client as vhost_user;
use gangplank_vhost_user::client::{
    Backend, CONFIG_LEN, Messages, Region, RingAddresses, RingSetup, TAG_LEN,
};
use gangplank_vhost_user::feature;
use log::debug;
use rustix::net::Shutdown;

use super::handover::Handover;
use super::lost_rings::{LostError, LostRings};
use crate::config::DeviceConfig;
use crate::hypervisor::GuestMemory;
use crate::mmio::{Activation, Device, EventFds, ReadyQueue};

/// `DeviceID` of a file system (virtio 1.2, 5.11.1).
const FILE_SYSTEM: u32 = 26;

/// Features that every virtio-fs daemon has. A guest that is there first gets them, and a daemon
/// without them is refused: it could not work the guest's rings.
const EXPECTED_FEATURES: u64 = feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX;

/// A file system device. It exists before its backend and outlives it.
#[derive(Debug)]
pub struct FsDevice<M> {
    pub(super) memory: GuestMemory,
    pub(super) eventfds: Arc<EventFds>,
    queue_sizes: Vec<u16>,
    num_request_queues: u16,
    /// Whether the tag comes from the backend.
    tag_from_backend: bool,
    config: [u8; CONFIG_LEN],
    backend: Option<AttachedBackend<M>>,
    /// What the driver has set up, from when it is ready until it resets the device or the device
    /// breaks.
    pub(super) driver: Option<Activation>,
    /// Whether the backend runs the driver's queues.
    pub(super) started: bool,
    /// The driver's rings while their backend is lost, or the device is broken.
    pub(super) lost: Option<LostRings>,
    /// Where the next backend goes on in queues that are not at their beginning.
    pub(super) bases: Vec<(u16, u16)>,
    /// Whether the connection was closed at this end, to a backend that may still work on the
    /// driver's queues.
    pub(super) abandoned: bool,
    /// Since when requests wait for a backend, if they do and there is none.
    pub(super) waiting_since: Option<Instant>,
    /// Requests that got an error reply because their backend was lost, or did not come.
    pub(super) error_replies: u64,
    /// The features of the last backend: the next one most likely offers the same.
    last_features: u64,
    /// Where the state is saved for a successor.
    pub(super) handover: Option<Arc<Handover>>,
}

#[derive(Debug)]
struct AttachedBackend<M> {
    session: Backend<M>,
    /// The connection, in order to shut it down.
    connection: Arc<OwnedFd>,
}

/// What the guest can see of a backend's arrival or loss.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    /// Nothing.
    None,
    /// The configuration space.
    Config,
    /// The driver's requests get error replies until it opens a new session: see
    /// [`FsDevice::reply_errors`].
    Lost,
    /// The device is broken: the driver's queues cannot go on.
    NeedsReset,
}

/// Why a backend does not serve a device.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The backend has fewer queues than the device.
    #[error("the daemon has {has} queues, but the device is configured with {wanted}")]
    Queues {
        /// The backend's, with the high-priority queue.
        has: u64,
        /// The device's, with the high-priority queue.
        wanted: usize,
    },
    /// The backend has fewer features than the guest was offered.
    #[error("the daemon lacks the virtio features {missing:#x}, which a guest may use")]
    Features {
        /// Their bits.
        missing: u64,
    },
    /// Neither the configuration nor the backend has a tag.
    #[error("the daemon has no tag: configure one, or start the daemon with one")]
    NoTag,
    /// The queues could not be started.
    #[error("the daemon did not start the device's queues")]
    Start(#[source] vhost_user::Error),
}

impl FsError {
    /// Whether the backend went while it was given the queues.
    pub const fn is_loss(&self) -> bool {
        matches!(self, Self::Start(vhost_user::Error::Gone { .. }))
    }
}

impl<M: Messages> FsDevice<M> {
    /// The device that `config` describes. `memory` is the guest's, and `eventfds` has a kick for
    /// each queue.
    pub fn new(config: &DeviceConfig, memory: GuestMemory, eventfds: Arc<EventFds>) -> Self {
        let queues = usize::from(config.num_request_queues) + 1;
        let tag = config.tag.as_deref().unwrap_or_default();
        Self {
            memory,
            eventfds,
            queue_sizes: vec![config.queue_size; queues],
            num_request_queues: config.num_request_queues,
            tag_from_backend: config.tag.is_none(),
            config: config_space(tag.as_bytes(), config.num_request_queues),
            backend: None,
            driver: None,
            started: false,
            lost: None,
            bases: Vec::new(),
            abandoned: false,
            waiting_since: None,
            error_replies: 0,
            last_features: EXPECTED_FEATURES,
            handover: None,
        }
    }

    /// Saves the backend's state for a successor from now on.
    pub fn set_handover(&mut self, handover: Arc<Handover>) {
        self.handover = Some(handover);
    }

    /// Whether the configuration space has a tag.
    pub fn knows_tag(&self) -> bool {
        self.config.first().is_some_and(|byte| *byte != 0)
    }

    /// Attaches a backend; `connection` is its connection. Starts the queues if the driver is
    /// ready. After an error the connection is shut down. After [`FsError::Start`] the caller calls
    /// [`FsDevice::on_backend_lost`] if it is a loss, and [`FsDevice::give_up`] otherwise.
    pub fn attach(
        &mut self,
        session: Backend<M>,
        connection: Arc<OwnedFd>,
    ) -> Result<Change, FsError> {
        let wanted = self.queue_sizes.len();
        if let Some(has) = session.max_rings()
            && usize::try_from(has).is_ok_and(|has| has < wanted)
        {
            return Err(FsError::Queues { has, wanted });
        }
        let missing = EXPECTED_FEATURES & !session.offered();
        if missing != 0 {
            return Err(FsError::Features { missing });
        }
        let mut change = Change::None;
        if self.tag_from_backend {
            let config = session.config().filter(|config| !config.tag().is_empty());
            let tag = config.ok_or(FsError::NoTag)?.tag();
            let config = config_space(tag, self.num_request_queues);
            if config != self.config {
                self.config = config;
                change = Change::Config;
            }
        }
        if let Some(handover) = &self.handover {
            handover.on_backend_connected(&connection);
            handover.end_exchange(&session.facts());
        }
        self.last_features = session.offered();
        self.waiting_since = None;
        self.backend = Some(AttachedBackend {
            session,
            connection,
        });
        self.start()?;
        Ok(change)
    }

    /// Whether a backend is connected.
    pub fn is_attached(&self) -> bool {
        self.backend.is_some()
    }

    fn start(&mut self) -> Result<(), FsError> {
        let (Some(driver), Some(backend), None) = (&self.driver, &mut self.backend, &self.lost)
        else {
            return Ok(());
        };
        let features = driver.features;
        let base = |queue: &ReadyQueue| {
            let known = self.bases.iter().find(|(index, _)| *index == queue.index);
            known.map_or(0, |(_, base)| *base)
        };
        let queues = driver.queues.iter().map(|queue| (queue, base(queue)));
        let (memory, eventfds) = (&self.memory, &self.eventfds);
        let started = exchange_with(self.handover.as_deref(), backend, |backend| {
            start_rings(backend, features, memory, eventfds, queues)
        });
        match started {
            Ok(()) => {
                self.started = true;
                debug!("{} queues run", driver.queues.len());
                Ok(())
            }
            Err(error) => {
                // Rings whose set-up has begun may run.
                let is_gone = matches!(error, vhost_user::Error::Gone { .. });
                self.abandoned = backend.session.is_running() && !is_gone;
                self.disconnect();
                Err(FsError::Start(error))
            }
        }
    }

    /// Shuts the connection down, so that the backend stops.
    pub(super) fn disconnect(&mut self) {
        if let Some(backend) = self.backend.take() {
            if let Some(handover) = &self.handover {
                handover.on_backend_gone();
            }
            // Fails only if the backend has closed the connection already.
            let _ = rustix::net::shutdown(&backend.connection, Shutdown::Both);
        }
    }

    /// Stops all queues, and starts the others again where they were: a session can only start and
    /// stop its queues together.
    fn stop_one(&mut self, index: u16) -> Result<(), vhost_user::Error> {
        let (Some(driver), Some(backend)) = (&mut self.driver, &mut self.backend) else {
            return Ok(());
        };
        let (memory, eventfds) = (&self.memory, &self.eventfds);
        exchange_with(self.handover.as_deref(), backend, |backend| {
            let bases = backend.session.stop()?;
            driver.queues.retain(|queue| queue.index != index);
            let base = |queue: &ReadyQueue| {
                let stopped = bases
                    .iter()
                    .find(|(ring, _)| *ring == usize::from(queue.index));
                stopped.map_or(0, |(_, base)| u16::try_from(base & 0xffff).unwrap_or(0))
            };
            let left = driver.queues.iter().map(|queue| (queue, base(queue)));
            start_rings(backend, driver.features, memory, eventfds, left)
        })
    }
}

/// Exchanges messages with the backend. A successor can tell whether the exchange was complete.
fn exchange_with<M: Messages, R>(
    handover: Option<&Handover>,
    backend: &mut AttachedBackend<M>,
    exchange: impl FnOnce(&mut AttachedBackend<M>) -> Result<R, vhost_user::Error>,
) -> Result<R, vhost_user::Error> {
    if let Some(handover) = handover {
        handover.begin_exchange();
    }
    let exchanged = exchange(backend)?;
    if let Some(handover) = handover {
        handover.end_exchange(&backend.session.facts());
    }
    Ok(exchanged)
}

fn start_rings<'a, M: Messages>(
    backend: &mut AttachedBackend<M>,
    features: u64,
    memory: &GuestMemory,
    eventfds: &'a EventFds,
    queues: impl Iterator<Item = (&'a ReadyQueue, u16)>,
) -> Result<(), vhost_user::Error> {
    let rings: Vec<RingSetup<'a>> = queues
        .filter_map(|(queue, base)| {
            Some(RingSetup {
                index: usize::from(queue.index),
                size: queue.size,
                addresses: RingAddresses {
                    descriptors: queue.descriptors,
                    available: queue.available,
                    used: queue.used,
                },
                base,
                call: eventfds.call(),
                kick: eventfds.kick(queue.index)?,
                error: None,
            })
        })
        .collect();
    let region = Region {
        guest_address: memory.range.start(),
        len: memory.range.len(),
        file: memory.descriptor.as_fd(),
        mmap_offset: 0,
    };
    backend.session.start(features, &[region], &rings)
}

impl<M: Messages + Send> FsDevice<M> {
    /// Takes over the backend of a predecessor. Called after [`Device::resume`], if that is called
    /// at all. Fails as [`FsDevice::attach`].
    pub fn resume_backend(
        &mut self,
        session: Backend<M>,
        connection: Arc<OwnedFd>,
    ) -> Result<(), FsError> {
        self.started = session.is_running();
        let running = session.facts().running;
        self.last_features = session.offered();
        self.backend = Some(AttachedBackend {
            session,
            connection,
        });
        let wanted = self.driver.as_ref().map(|driver| driver.queues.clone());
        match (self.started, wanted) {
            (true, Some(queues)) => {
                // Queues that the predecessor was about to stop when its process ended.
                let wants =
                    |ring: &usize| queues.iter().any(|queue| usize::from(queue.index) == *ring);
                let stray: Vec<usize> = running.into_iter().filter(|ring| !wants(ring)).collect();
                for ring in stray {
                    self.stop_queue(u16::try_from(ring).unwrap_or(u16::MAX));
                }
                // A kick may have been lost between the two processes.
                for queue in &queues {
                    self.eventfds.signal_kick(queue.index);
                }
                Ok(())
            }
            (true, None) => {
                self.reset();
                Ok(())
            }
            (false, _) => self.start(),
        }
    }
}

impl<M: Messages + Send> Device for FsDevice<M> {
    type Error = FsError;

    fn device_id(&self) -> u32 {
        FILE_SYSTEM
    }

    /// The features of the backend; without one, those of the last backend, or those that every
    /// backend has. A backend that has fewer features than the driver has accepted does not get the
    /// driver's queues.
    fn features(&self) -> u64 {
        match &self.backend {
            Some(backend) => backend.session.offered(),
            None => self.last_features,
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    /// The whole space is read-only (virtio 1.2, 5.11.4).
    fn write_config(&mut self, _: u64, _: &[u8]) {}

    /// Starts the queues now, or when a backend comes: the guest's requests wait in them until
    /// then.
    fn activate(&mut self, activation: Activation) -> Result<(), FsError> {
        self.driver = Some(activation);
        self.bases = Vec::new();
        let started = self.start();
        match &started {
            Err(error) if error.is_loss() && self.on_backend_lost() == Change::Lost => Ok(()),
            Err(_) => {
                self.give_up();
                started
            }
            Ok(()) => started,
        }
    }

    fn resume(&mut self, config: &[u8], running: Option<Activation>) {
        if self.tag_from_backend
            && let Ok(config) = config.try_into()
        {
            self.config = config;
        }
        // A predecessor's backend that is there, or was lost, knows better.
        let rings = running.as_ref().map(|driver| {
            let mut rings = LostRings::of(driver, &self.memory)?;
            rings.find_bases()?;
            Ok::<_, LostError>(rings.bases())
        });
        match rings.transpose() {
            Ok(bases) => self.bases = bases.unwrap_or_default(),
            Err(error) => rate_limited!(warn, "{}", error_chain(&error)),
        }
        self.driver = running;
    }

    fn resume_broken(&mut self, driver: Activation) {
        self.driver = Some(driver);
        // The predecessor forgot a backend that was done with the driver's queues.
        self.abandoned = self
            .handover
            .as_ref()
            .is_some_and(|handover| !matches!(handover.backend_connection(), Ok(None)));
        self.give_up();
    }

    fn stop_queue(&mut self, index: u16) {
        if !self.started {
            if let Some(driver) = &mut self.driver {
                driver.queues.retain(|queue| queue.index != index);
            }
            if let Some(rings) = &mut self.lost {
                rings.remove(index);
            }
        } else if let Err(error) = self.stop_one(index) {
            rate_limited!(
                warn,
                "the daemon did not stop queue {index}, its connection is closed: {error}"
            );
            self.abandoned = true;
            self.disconnect();
        }
    }

    fn reset(&mut self) {
        self.driver = None;
        self.lost = None;
        self.waiting_since = None;
        self.abandoned = false;
        if std::mem::take(&mut self.started)
            && let Some(backend) = &mut self.backend
            && let Err(error) = exchange_with(self.handover.as_deref(), backend, |backend| {
                backend.session.reset()
            })
        {
            rate_limited!(
                warn,
                "the daemon did not reset, its connection is closed: {error}"
            );
            self.disconnect();
        }
        if self.backend.is_none()
            && let Some(handover) = &self.handover
        {
            handover.forget_backend();
        }
    }
}

/// Tag and number of request queues (virtio 1.2, 5.11.4). A tag that is too long is cut.
fn config_space(tag: &[u8], num_request_queues: u16) -> [u8; CONFIG_LEN] {
    let mut space = [0; CONFIG_LEN];
    let count = u32::from(num_request_queues).to_le_bytes();
    let field = tag.iter().copied().chain(std::iter::repeat(0));
    let bytes = field.take(TAG_LEN).chain(count);
    for (to, from) in space.iter_mut().zip(bytes) {
        *to = from;
    }
    space
}
