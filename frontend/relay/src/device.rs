//! One guest's device, between a guest that stays and a daemon that comes and goes.
//!
//! ```text
//!              a daemon is there            told to
//!   waiting ──────────────────────> served ─────────> paused
//!      ^                              │  ^               │
//!      │ the guest opens a session    │  └───────────────┘ told to, by the same daemon or one that has its state
//!      │                              │ the daemon is gone
//!      └────────────── lost <─────────┘
//! ```
//!
//! A ring is out while a daemon has it. At all other times the relay knows where it stopped: waiting and paused, nobody touches it and
//! requests gather in it; lost, the relay refuses each request.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gangplank_service::error_chain;
use gangplank_vhost_user::client::{CONFIG_LEN, FsConfig, TAG_LEN};
use gangplank_vhost_user::feature;
use log::{debug, error, info, warn};

use super::daemon::{Daemon, DaemonError, Limits};
use super::error_replies::{Progress, Reclaimed, reclaim_inflight, reply_errors};
use super::memory::Memory;
use super::ring::{Ring, Signal};
use super::split_queue::{QueueError, SplitQueue};

/// Virtio features that guests are offered; the relay can work a ring that has them. A daemon that has fewer narrows them.
const OFFERED_FEATURES: u64 =
    feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX | feature::PROTOCOL_FEATURES;

/// How long the first pause between two attempts to connect is; each further one is twice as long.
const MIN_RETRY_BACKOFF: Duration = Duration::from_millis(20);

/// How long a pause is at most.
const MAX_RETRY_BACKOFF: Duration = Duration::from_secs(1);

/// Request queues of a device for which neither options nor a daemon tell a number.
const DEFAULT_QUEUES: u16 = 1;

/// Request queues at most: a ring's number has eight bits in SET_VRING_KICK, and the first ring is the high-priority one.
const MAX_QUEUES: u16 = 255;

/// What is the same for all guests.
#[derive(Debug)]
pub(super) struct DeviceOptions {
    /// The share's name, where the daemon's does not count.
    pub(super) tag: Option<String>,
    /// Request queues, where the daemon's number does not count.
    pub(super) num_request_queues: Option<u16>,
    /// How long daemons may take.
    pub(super) limits: Limits,
    /// How long a guest that asks what only a daemon knows is kept waiting for one.
    pub(super) tag_wait: Duration,
}

/// Who deals with the guest's requests.
#[derive(Debug)]
pub(super) enum Phase {
    /// Nobody yet.
    Waiting,
    /// This daemon.
    Served(Daemon),
    /// Nobody, until it is told to go on.
    Paused {
        /// The daemon that had the rings, if it is still there.
        daemon: Option<Daemon>,
        /// What that daemon knew of the guest's files, if it can tell.
        state: Option<Vec<u8>>,
    },
    /// The relay, by refusing them.
    Lost,
}

/// The guest cannot be helped any more, and its connection has to be closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fatal {
    /// Requests that were in flight can be neither answered nor forgotten.
    #[error("the daemon left requests behind of which nobody can tell which they are")]
    Undecidable,
    /// The guest's rings cannot be worked on.
    #[error("the daemon left requests behind that cannot be answered")]
    SplitQueue(#[from] QueueError),
    /// A daemon that is there may still write where the requests are that it has.
    #[error(
        "the daemon does not do as it is told, and has requests that nobody else may answer: {0}"
    )]
    BackendUnresponsive(String),
}

/// A daemon could not be set up.
#[derive(Debug)]
pub(super) struct StartError {
    /// Why.
    pub(super) why: DaemonError,
    /// Whether it had a ring for a moment. What it did with the requests in it no other daemon knows.
    pub(super) had_rings: bool,
}

impl From<DaemonError> for StartError {
    fn from(why: DaemonError) -> Self {
        Self {
            why,
            had_rings: false,
        }
    }
}

/// What a guest is told when it asks for something that cannot be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// The daemon does not do it.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// It makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Worse.
    #[error(transparent)]
    Fatal(#[from] Fatal),
}

/// What has happened to a guest.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    /// Daemons that served it.
    pub(super) daemons: u64,
    /// Daemons it lost.
    pub(super) losses: u64,
    /// Requests that were refused for want of a daemon.
    pub(super) refused: u64,
}

/// One guest's device.
#[derive(Debug)]
pub(super) struct Device {
    /// The guest's number, for messages to people.
    guest: u64,
    options: Arc<DeviceOptions>,
    /// The socket where a daemon is looked for.
    pub(super) backend: PathBuf,
    pub(super) phase: Phase,
    pub(super) rings: Vec<Ring>,
    pub(super) counters: Counters,
    /// Features the guest took; none until it said so.
    pub(super) features: Option<u64>,
    memory: Option<Memory>,
    /// What the guest was told of the device, which does not change from then on.
    queues: Option<u16>,
    tag: Option<String>,
    /// How long a guest that asks for the tag is kept waiting, from its first question on.
    tag_awaited_until: Option<Instant>,
    next_attempt: Instant,
    pause: Duration,
    is_absence_told: bool,
}

impl Device {
    /// A device that nobody has set up, with a daemon if there is one.
    pub(super) fn new(guest: u64, options: Arc<DeviceOptions>, backend: PathBuf) -> Self {
        let mut device = Self {
            guest,
            queues: options.num_request_queues,
            tag: options.tag.clone(),
            options,
            backend,
            phase: Phase::Waiting,
            rings: Vec::new(),
            counters: Counters::default(),
            features: None,
            memory: None,
            tag_awaited_until: None,
            next_attempt: Instant::now(),
            pause: MIN_RETRY_BACKOFF,
            is_absence_told: false,
        };
        // Without a guest's rings there is nothing to be lost.
        let _ = device.connect_if_due();
        device
    }

    /// The guest's number.
    pub(super) const fn guest(&self) -> u64 {
        self.guest
    }

    pub(super) fn limits(&self) -> Limits {
        self.options.limits
    }

    /// The daemon that has the rings.
    pub(super) fn daemon(&self) -> Option<&Daemon> {
        match &self.phase {
            Phase::Served(daemon) => Some(daemon),
            Phase::Paused { daemon, .. } => daemon.as_ref(),
            Phase::Waiting | Phase::Lost => None,
        }
    }

    /// When a daemon is to be looked for next; None while none is wanted.
    pub(super) fn next_attempt(&self) -> Option<Instant> {
        matches!(self.phase, Phase::Waiting).then_some(self.next_attempt)
    }

    /// The kicks the relay listens to: those of the rings that it answers itself.
    pub(super) fn kicks(&self) -> Vec<BorrowedFd<'_>> {
        let is_lost = matches!(self.phase, Phase::Lost);
        let answered = self
            .rings
            .iter()
            .filter(|ring| is_lost && ring.is_ready() && !ring.broken);
        answered
            .filter_map(|ring| ring.kick.as_ref().map(AsFd::as_fd))
            .collect()
    }

    // ---- What the guest is told.

    /// GET_FEATURES.
    pub(super) fn offered(&self) -> u64 {
        self.daemon().map_or(OFFERED_FEATURES, |daemon| {
            OFFERED_FEATURES & daemon.offered()
        })
    }

    /// Request queues of the device; reclaimed from the first time on.
    pub(super) fn num_request_queues(&mut self) -> u16 {
        if let Some(queues) = self.queues {
            return queues;
        }
        let told = self.daemon().and_then(|daemon| {
            let config = daemon
                .config()
                .map(|config| config.num_request_queues().into());
            config.or(daemon.max_rings().map(|rings| rings.saturating_sub(1)))
        });
        let told = told.and_then(|queues| u16::try_from(queues).ok());
        let queues = told.unwrap_or(DEFAULT_QUEUES).clamp(1, MAX_QUEUES);
        self.queues = Some(queues);
        queues
    }

    /// The device's configuration. Where only a daemon knows the tag, one is waited for; None if there is none in time.
    pub(super) fn config(&mut self) -> Result<Option<FsConfig>, Fatal> {
        // User Mode Linux reads the tag byte by byte, with one question each.
        let until = *self
            .tag_awaited_until
            .get_or_insert_with(|| Instant::now() + self.options.tag_wait);
        while self.tag.is_none() {
            let told = self.daemon().and_then(Daemon::config);
            let tag = told.map(|config| String::from_utf8_lossy(config.tag()).into_owned());
            self.tag = tag.filter(|tag| !tag.is_empty());
            let waits = matches!(self.phase, Phase::Waiting) && Instant::now() < until;
            match &self.tag {
                Some(_) => break,
                None if waits => {
                    std::thread::sleep(self.next_attempt.saturating_duration_since(Instant::now()));
                    self.connect_if_due()?;
                }
                None => return Ok(None),
            }
        }
        let mut bytes = [0; CONFIG_LEN];
        let count = u32::from(self.num_request_queues()).to_le_bytes();
        let tag = self.tag.iter().flat_map(|tag| tag.bytes());
        let tag = tag.chain(std::iter::repeat(0)).take(TAG_LEN);
        for (to, from) in bytes.iter_mut().zip(tag.chain(count)) {
            *to = from;
        }
        Ok(Some(FsConfig::new(bytes)))
    }

    // ---- What the guest tells.

    /// SET_FEATURES.
    pub(super) fn set_features(&mut self, features: u64) -> Result<(), RequestError> {
        let foreign = features & !OFFERED_FEATURES;
        if foreign != 0 {
            return Err(RequestError::Invalid(format!(
                "it takes the features {foreign:#x}, which were not offered"
            )));
        }
        if features & feature::PROTOCOL_FEATURES == 0 {
            // Rings are enabled by a message that exists only with it.
            return Err(RequestError::Invalid(
                "it does not take VHOST_USER_F_PROTOCOL_FEATURES".to_owned(),
            ));
        }
        self.features = Some(features);
        self.with_daemon(|daemon, _| daemon.set_features(features))
    }

    /// SET_MEM_TABLE.
    pub(super) fn set_memory(&mut self, memory: Memory) -> Result<(), RequestError> {
        let memory = self.memory.insert(memory);
        let told = match &mut self.phase {
            Phase::Served(daemon) => daemon.set_memory(memory),
            _ => Ok(()),
        };
        told.or_else(|error| self.failed(error))
    }

    /// Ring number `index`, if there is one.
    pub(super) fn ring_mut(&mut self, index: u32) -> Result<&mut Ring, RequestError> {
        let count = usize::from(self.num_request_queues()) + 1;
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        if index >= count {
            return Err(RequestError::Invalid(format!(
                "it speaks of ring {index} where there are {count}"
            )));
        }
        if self.rings.len() < count {
            self.rings.resize_with(count, Ring::default);
        }
        let ring = self.rings.get_mut(index);
        ring.ok_or_else(|| RequestError::Invalid(format!("there is no ring {index}")))
    }

    /// SET_VRING_ADDR.
    pub(super) fn set_addresses(&mut self, index: u32, payload: &[u8]) -> Result<(), RequestError> {
        self.stop_ring_if_started(index)?;
        let memory = self.memory.take();
        let ring = self.ring_mut(index);
        let set = ring.map(|ring| {
            let rest = payload.get(4..).unwrap_or_default();
            let memory = memory.as_ref();
            memory.is_some_and(|memory| ring.set_addresses(rest, memory))
        });
        self.memory = memory;
        match set? {
            true => self.start_ring_if_ready(index),
            false => Err(RequestError::Invalid(format!(
                "ring {index} does not lie in the guest's memory"
            ))),
        }
    }

    /// Changes a ring that a daemon must not have meanwhile.
    pub(super) fn change(
        &mut self,
        index: u32,
        change: impl FnOnce(&mut Ring) -> bool,
    ) -> Result<(), RequestError> {
        self.stop_ring_if_started(index)?;
        if !change(self.ring_mut(index)?) {
            return Err(RequestError::Invalid(format!(
                "it tells of ring {index} what cannot be"
            )));
        }
        self.start_ring_if_ready(index)
    }

    /// SET_VRING_CALL and SET_VRING_ERR, which a daemon takes at any time.
    pub(super) fn set_signal(
        &mut self,
        index: u32,
        signal: Signal,
        descriptor: Option<std::os::fd::OwnedFd>,
    ) -> Result<(), RequestError> {
        self.ring_mut(index)?.set_signal(signal, descriptor);
        self.with_daemon(|daemon, rings| {
            let ring = usize::try_from(index).ok().and_then(|at| rings.get(at));
            match ring.filter(|ring| ring.is_started) {
                Some(ring) if signal == Signal::Call => {
                    daemon.set_signal(index, signal, ring.call.as_ref())
                }
                Some(ring) => daemon.set_signal(index, signal, ring.error.as_ref()),
                None => Ok(()),
            }
        })
    }

    /// GET_VRING_BASE: stops the ring; where it stopped.
    pub(super) fn stop_ring(&mut self, index: u32) -> Result<u16, RequestError> {
        self.stop_ring_if_started(index)?;
        let ring = self.ring_mut(index)?;
        ring.kick = None;
        Ok(ring.base)
    }

    /// RESET_DEVICE: the driver has forgotten everything, and so does everybody else.
    pub(super) fn reset(&mut self) -> Result<(), RequestError> {
        for index in 0..self.ring_count() {
            self.stop_ring_if_started(index)?;
        }
        self.rings.clear();
        self.features = None;
        match std::mem::replace(&mut self.phase, Phase::Waiting) {
            Phase::Served(mut daemon) if daemon.can_reset() => {
                let reset = daemon.reset();
                self.phase = Phase::Served(daemon);
                reset.or_else(|error| self.failed(error))
            }
            // One that cannot forget is left, and the next one is a new connection.
            Phase::Paused { .. } => {
                self.phase = Phase::Paused {
                    daemon: None,
                    state: None,
                };
                Ok(())
            }
            Phase::Served(_) | Phase::Waiting | Phase::Lost => Ok(()),
        }
    }

    // ---- Daemons that come.

    /// Connects to a daemon if one is wanted and it is time to look for one.
    pub(super) fn connect_if_due(&mut self) -> Result<(), Fatal> {
        if self.next_attempt().is_none_or(|at| Instant::now() < at) {
            return Ok(());
        }
        let found = Daemon::connect(&self.backend, self.options.limits).and_then(|daemon| {
            self.check(&daemon)?;
            Ok(daemon)
        });
        let started = found
            .map_err(StartError::from)
            .and_then(|daemon| self.start(daemon));
        match started {
            Ok(()) => {
                info!(
                    "guest {} is served by the daemon at {}",
                    self.guest,
                    self.backend.display()
                );
                self.is_absence_told = false;
                self.pause = MIN_RETRY_BACKOFF;
            }
            Err(error) if error.had_rings => self.lose_with_rings(&error.why)?,
            Err(StartError { why: error, .. }) => {
                if self.is_absence_told {
                    debug!(
                        "still no daemon for guest {}: {}",
                        self.guest,
                        error_chain(&error)
                    );
                } else {
                    info!(
                        "guest {} waits for a daemon: {}",
                        self.guest,
                        error_chain(&error)
                    );
                }
                self.is_absence_told = true;
                self.next_attempt = Instant::now() + self.pause;
                self.pause = MAX_RETRY_BACKOFF.min(self.pause * 2);
            }
        }
        Ok(())
    }

    /// Has a daemon be looked for at once.
    pub(super) fn retry_now(&mut self) {
        self.next_attempt = Instant::now();
        self.pause = MIN_RETRY_BACKOFF;
        self.is_absence_told = false;
    }

    /// Fails unless the daemon has what the guest was promised.
    pub(super) fn check(&self, daemon: &Daemon) -> Result<(), DaemonError> {
        let missing = self.features.unwrap_or(0) & !daemon.offered();
        if missing != 0 {
            return Err(daemon.lacks(format!("the virtio features {missing:#x}")));
        }
        let wanted = self.queues.map_or(0, |queues| u64::from(queues) + 1);
        match daemon.max_rings() {
            Some(rings) if rings < wanted => {
                Err(daemon.lacks(format!("{wanted} queues, but {rings}")))
            }
            _ => Ok(()),
        }
    }

    /// Hands a daemon all that the guest has set up. On an error the daemon is left, and a ring is out only if it went with it.
    pub(super) fn start(&mut self, mut daemon: Daemon) -> Result<(), StartError> {
        let started = self.start_rings(&mut daemon);
        match started {
            Ok(()) => {
                self.counters.daemons += 1;
                self.phase = Phase::Served(daemon);
                Ok(())
            }
            Err(why) => {
                let had_rings = self.rings.iter().any(|ring| ring.is_started);
                // Taken back, they go on from where it stopped; if it has hung up, that is found out later.
                let _ = self.stop_rings(&mut daemon);
                Err(StartError { why, had_rings })
            }
        }
    }

    fn start_rings(&mut self, daemon: &mut Daemon) -> Result<(), DaemonError> {
        if let Some(features) = self.features {
            daemon.set_features(features)?;
        }
        if let Some(memory) = &self.memory {
            daemon.set_memory(memory)?;
        }
        for (index, ring) in (0..).zip(&mut self.rings) {
            if ring.is_ready() && self.features.is_some() {
                // It counts as out even if it could not be started in whole.
                ring.is_started = true;
                daemon.start_ring(index, ring)?;
            }
        }
        Ok(())
    }

    /// Takes all rings back from a daemon.
    pub(super) fn stop_rings(&mut self, daemon: &mut Daemon) -> Result<(), DaemonError> {
        for (index, ring) in (0..).zip(&mut self.rings) {
            if ring.is_started {
                ring.base = daemon.stop_ring(index)?;
                ring.is_started = false;
            }
        }
        Ok(())
    }

    fn start_ring_if_ready(&mut self, index: u32) -> Result<(), RequestError> {
        if self.features.is_none() {
            return Ok(());
        }
        self.with_daemon(|daemon, rings| {
            let at = usize::try_from(index).unwrap_or(usize::MAX);
            match rings.get_mut(at) {
                Some(ring) if ring.is_ready() && !ring.is_started => {
                    ring.is_started = true;
                    daemon.start_ring(index, ring)
                }
                _ => Ok(()),
            }
        })
    }

    fn stop_ring_if_started(&mut self, index: u32) -> Result<(), RequestError> {
        self.with_daemon(|daemon, rings| {
            let at = usize::try_from(index).unwrap_or(usize::MAX);
            match rings.get_mut(at) {
                Some(ring) if ring.is_started => {
                    ring.base = daemon.stop_ring(index)?;
                    ring.is_started = false;
                    Ok(())
                }
                _ => Ok(()),
            }
        })
    }

    fn with_daemon(
        &mut self,
        work: impl FnOnce(&mut Daemon, &mut Vec<Ring>) -> Result<(), DaemonError>,
    ) -> Result<(), RequestError> {
        let done = match &mut self.phase {
            Phase::Served(daemon) => work(daemon, &mut self.rings),
            _ => Ok(()),
        };
        done.or_else(|error| self.failed(error))
    }

    /// A daemon that refuses is still there; with any other error it is lost. That is no failure of the guest's.
    fn failed(&mut self, error: DaemonError) -> Result<(), RequestError> {
        match error {
            error @ DaemonError::Refused { .. } => Err(error.into()),
            error => Ok(self.lose_after(&error)?),
        }
    }

    fn ring_count(&self) -> u32 {
        u32::try_from(self.rings.len()).unwrap_or(u32::MAX)
    }

    // ---- Daemons that go.

    /// The daemon's connection has become readable, which it never does but for its end.
    pub(super) fn daemon_hung_up(&mut self) -> Result<(), Fatal> {
        match &mut self.phase {
            Phase::Paused { daemon, state } if state.is_some() => {
                *daemon = None;
                info!(
                    "the daemon of guest {}, which is paused, has gone; its state is kept",
                    self.guest
                );
                Ok(())
            }
            Phase::Waiting | Phase::Lost => Ok(()),
            _ => self.on_backend_lost("it closed the connection"),
        }
    }

    /// [`Device::lose`] by what the daemon did. One that has rings and is still there is not to be helped: the guest's
    /// connection has to be closed, which leaves its memory to the daemon.
    pub(super) fn lose_after(&mut self, error: &DaemonError) -> Result<(), Fatal> {
        if !error.is_end() && self.rings.iter().any(|ring| ring.is_started) {
            return Err(Fatal::BackendUnresponsive(error_chain(error)));
        }
        self.on_backend_lost(&error_chain(error))
    }

    /// [`Device::lose_after`] by a daemon that has had requests, also where it has none any more: what it did with them is lost.
    pub(super) fn lose_with_rings(&mut self, error: &DaemonError) -> Result<(), Fatal> {
        self.phase = Phase::Paused {
            daemon: None,
            state: None,
        };
        self.lose_after(error)
    }

    /// The daemon is gone, and with it what it knew. What it had in hand is refused, and whatever comes after it.
    pub(super) fn on_backend_lost(&mut self, why: &str) -> Result<(), Fatal> {
        let was_out = self.rings.iter().any(|ring| ring.is_started);
        let was_paused = matches!(self.phase, Phase::Paused { .. });
        self.phase = Phase::Waiting;
        self.retry_now();
        if !was_out && !was_paused {
            warn!("the daemon of guest {} has gone: {why}", self.guest);
            return Ok(());
        }
        error!(
            "guest {} has lost its daemon, and its requests fail until it mounts anew: {why}",
            self.guest
        );
        self.counters.losses += 1;
        self.phase = Phase::Lost;
        self.reclaim_all()?;
        self.reply_errors_to_all()
    }

    fn reclaim_all(&mut self) -> Result<(), Fatal> {
        let event_idx = self.has_event_idx();
        let Some(memory) = &self.memory else {
            return Ok(());
        };
        for ring in &mut self.rings {
            let was_out = std::mem::take(&mut ring.is_started);
            let Some(queue) = SplitQueue::new(memory, ring, event_idx) else {
                continue;
            };
            if !was_out && (!ring.is_ready() || queue.used_index()? == ring.base) {
                continue;
            }
            match reclaim_inflight(&queue, memory)? {
                Reclaimed::At { base, refused } => {
                    ring.base = base;
                    self.counters.refused += u64::from(refused);
                    ring.signal_call();
                }
                Reclaimed::Undecidable => return Err(Fatal::Undecidable),
            }
        }
        Ok(())
    }

    /// While the daemon is lost: refuses what is in the rings. A request that opens a session makes the device wait for a
    /// daemon again.
    ///
    /// # Errors
    /// The guest's memory cannot be written, so that nothing can be said in it.
    pub(super) fn reply_errors_to_all(&mut self) -> Result<(), Fatal> {
        let event_idx = self.has_event_idx();
        let (Phase::Lost, Some(memory)) = (&self.phase, &self.memory) else {
            return Ok(());
        };
        let mut is_opened = false;
        for (index, ring) in self.rings.iter_mut().enumerate() {
            if !ring.is_ready() || ring.broken {
                continue;
            }
            ring.take_kicks();
            let Some(queue) = SplitQueue::new(memory, ring, event_idx) else {
                continue;
            };
            let (mut base, mut count) = (ring.base, 0);
            let answered = reply_errors(&queue, memory, &mut base, &mut count);
            ring.base = base;
            self.counters.refused += count;
            if count > 0 {
                ring.signal_call();
            }
            match answered {
                Ok(Progress::All) => {}
                // The rest has its turn after everything else that waits.
                Ok(Progress::Some) => ring.signal_kick(),
                Ok(Progress::UpToInit) => is_opened = true,
                Err(error @ QueueError::Memory(_)) => return Err(error.into()),
                Err(error) => {
                    error!(
                        "ring {index} of guest {} is stopped: {}",
                        self.guest,
                        error_chain(&error)
                    );
                    ring.broken = true;
                    ring.signal_error();
                }
            }
        }
        if is_opened {
            info!("guest {} mounts anew", self.guest);
            self.phase = Phase::Waiting;
            self.retry_now();
        }
        Ok(())
    }

    /// Rings that are set up, with the memory they are in.
    pub(super) fn ready_queues(&self) -> Vec<(SplitQueue<'_>, u16)> {
        let event_idx = self.has_event_idx();
        let Some(memory) = &self.memory else {
            return Vec::new();
        };
        let ready = self.rings.iter().filter(|ring| ring.is_ready());
        ready
            .filter_map(|ring| Some((SplitQueue::new(memory, ring, event_idx)?, ring.base)))
            .collect()
    }

    fn has_event_idx(&self) -> bool {
        self.features.unwrap_or(0) & feature::EVENT_IDX != 0
    }
}
