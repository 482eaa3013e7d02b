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
use super::memory::Memory;
use super::refusal::{Answered, Settled, refuse, settle};
use super::ring::{Ring, Signal};
use super::split::{Split, SplitError};

/// Virtio features that guests are offered; the relay can work a ring that has them. A daemon that has fewer narrows them.
const OFFERED: u64 =
    feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX | feature::PROTOCOL_FEATURES;

/// How long the first pause between two attempts to connect is; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// How long a pause is at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Request queues of a device for which neither options nor a daemon tell a number.
const DEFAULT_QUEUES: u16 = 1;

/// Request queues at most: a ring's number has eight bits in SET_VRING_KICK, and the first ring is the high-priority one.
const MAX_QUEUES: u16 = 255;

/// What is the same for all guests.
#[derive(Debug)]
pub(super) struct Plan {
    /// The share's name, where the daemon's does not count.
    pub(super) tag: Option<String>,
    /// Request queues, where the daemon's number does not count.
    pub(super) num_request_queues: Option<u16>,
    /// How long daemons may take.
    pub(super) limits: Limits,
    /// How long a guest that asks what only a daemon knows is kept waiting for one.
    pub(super) patience: Duration,
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
    Unknown,
    /// The guest's rings cannot be worked on.
    #[error("the daemon left requests behind that cannot be answered")]
    Split(#[from] SplitError),
    /// A daemon that is there may still write where the requests are that it has.
    #[error(
        "the daemon does not do as it is told, and has requests that nobody else may answer: {0}"
    )]
    Alive(String),
}

/// A daemon could not be set up.
#[derive(Debug)]
pub(super) struct Unstarted {
    /// Why.
    pub(super) why: DaemonError,
    /// Whether it had a ring for a moment. What it did with the requests in it no other daemon knows.
    pub(super) had_rings: bool,
}

impl From<DaemonError> for Unstarted {
    fn from(why: DaemonError) -> Self {
        Self {
            why,
            had_rings: false,
        }
    }
}

/// What a guest is told when it asks for something that cannot be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// The daemon does not do it.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// It makes no sense.
    #[error("{0}")]
    Senseless(String),
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
pub(super) struct Session {
    /// The guest's number, for messages to people.
    guest: u64,
    plan: Arc<Plan>,
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

impl Session {
    /// A device that nobody has set up, with a daemon if there is one.
    pub(super) fn new(guest: u64, plan: Arc<Plan>, backend: PathBuf) -> Self {
        let mut session = Self {
            guest,
            queues: plan.num_request_queues,
            tag: plan.tag.clone(),
            plan,
            backend,
            phase: Phase::Waiting,
            rings: Vec::new(),
            counters: Counters::default(),
            features: None,
            memory: None,
            tag_awaited_until: None,
            next_attempt: Instant::now(),
            pause: FIRST_PAUSE,
            is_absence_told: false,
        };
        // Without a guest's rings there is nothing to be lost.
        let _ = session.look_for_daemon();
        session
    }

    /// The guest's number.
    pub(super) const fn guest(&self) -> u64 {
        self.guest
    }

    pub(super) fn limits(&self) -> Limits {
        self.plan.limits
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
        self.daemon()
            .map_or(OFFERED, |daemon| OFFERED & daemon.offered())
    }

    /// Request queues of the device; settled from the first time on.
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
            .get_or_insert_with(|| Instant::now() + self.plan.patience);
        while self.tag.is_none() {
            let told = self.daemon().and_then(Daemon::config);
            let tag = told.map(|config| String::from_utf8_lossy(config.tag()).into_owned());
            self.tag = tag.filter(|tag| !tag.is_empty());
            let waits = matches!(self.phase, Phase::Waiting) && Instant::now() < until;
            match &self.tag {
                Some(_) => break,
                None if waits => {
                    std::thread::sleep(self.next_attempt.saturating_duration_since(Instant::now()));
                    self.look_for_daemon()?;
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
    pub(super) fn set_features(&mut self, features: u64) -> Result<(), Refusal> {
        let foreign = features & !OFFERED;
        if foreign != 0 {
            return Err(Refusal::Senseless(format!(
                "it takes the features {foreign:#x}, which were not offered"
            )));
        }
        if features & feature::PROTOCOL_FEATURES == 0 {
            // Rings are enabled by a message that exists only with it.
            return Err(Refusal::Senseless(
                "it does not take VHOST_USER_F_PROTOCOL_FEATURES".to_owned(),
            ));
        }
        self.features = Some(features);
        self.with_daemon(|daemon, _| daemon.set_features(features))
    }

    /// SET_MEM_TABLE.
    pub(super) fn set_memory(&mut self, memory: Memory) -> Result<(), Refusal> {
        let memory = self.memory.insert(memory);
        let told = match &mut self.phase {
            Phase::Served(daemon) => daemon.set_memory(memory),
            _ => Ok(()),
        };
        told.or_else(|error| self.failed(error))
    }

    /// Ring number `index`, if there is one.
    pub(super) fn ring_mut(&mut self, index: u32) -> Result<&mut Ring, Refusal> {
        let count = usize::from(self.num_request_queues()) + 1;
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        if index >= count {
            return Err(Refusal::Senseless(format!(
                "it speaks of ring {index} where there are {count}"
            )));
        }
        if self.rings.len() < count {
            self.rings.resize_with(count, Ring::default);
        }
        let ring = self.rings.get_mut(index);
        ring.ok_or_else(|| Refusal::Senseless(format!("there is no ring {index}")))
    }

    /// SET_VRING_ADDR.
    pub(super) fn set_addresses(&mut self, index: u32, payload: &[u8]) -> Result<(), Refusal> {
        self.take_back(index)?;
        let memory = self.memory.take();
        let ring = self.ring_mut(index);
        let set = ring.map(|ring| {
            let rest = payload.get(4..).unwrap_or_default();
            let memory = memory.as_ref();
            memory.is_some_and(|memory| ring.set_addresses(rest, memory))
        });
        self.memory = memory;
        match set? {
            true => self.hand_over(index),
            false => Err(Refusal::Senseless(format!(
                "ring {index} does not lie in the guest's memory"
            ))),
        }
    }

    /// Changes a ring that a daemon must not have meanwhile.
    pub(super) fn change(
        &mut self,
        index: u32,
        change: impl FnOnce(&mut Ring) -> bool,
    ) -> Result<(), Refusal> {
        self.take_back(index)?;
        if !change(self.ring_mut(index)?) {
            return Err(Refusal::Senseless(format!(
                "it tells of ring {index} what cannot be"
            )));
        }
        self.hand_over(index)
    }

    /// SET_VRING_CALL and SET_VRING_ERR, which a daemon takes at any time.
    pub(super) fn set_signal(
        &mut self,
        index: u32,
        signal: Signal,
        descriptor: Option<std::os::fd::OwnedFd>,
    ) -> Result<(), Refusal> {
        self.ring_mut(index)?.set_signal(signal, descriptor);
        self.with_daemon(|daemon, rings| {
            let ring = usize::try_from(index).ok().and_then(|at| rings.get(at));
            match ring.filter(|ring| ring.is_out) {
                Some(ring) if signal == Signal::Call => {
                    daemon.set_signal(index, signal, ring.call.as_ref())
                }
                Some(ring) => daemon.set_signal(index, signal, ring.error.as_ref()),
                None => Ok(()),
            }
        })
    }

    /// GET_VRING_BASE: stops the ring; where it stopped.
    pub(super) fn stop_ring(&mut self, index: u32) -> Result<u16, Refusal> {
        self.take_back(index)?;
        let ring = self.ring_mut(index)?;
        ring.kick = None;
        Ok(ring.base)
    }

    /// RESET_DEVICE: the driver has forgotten everything, and so does everybody else.
    pub(super) fn reset(&mut self) -> Result<(), Refusal> {
        for index in 0..self.ring_count() {
            self.take_back(index)?;
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
    pub(super) fn look_for_daemon(&mut self) -> Result<(), Fatal> {
        if self.next_attempt().is_none_or(|at| Instant::now() < at) {
            return Ok(());
        }
        let found = Daemon::connect(&self.backend, self.plan.limits).and_then(|daemon| {
            self.check(&daemon)?;
            Ok(daemon)
        });
        let started = found
            .map_err(Unstarted::from)
            .and_then(|daemon| self.start(daemon));
        match started {
            Ok(()) => {
                info!(
                    "guest {} is served by the daemon at {}",
                    self.guest,
                    self.backend.display()
                );
                self.is_absence_told = false;
                self.pause = FIRST_PAUSE;
            }
            Err(unstarted) if unstarted.had_rings => self.lose_with_rings(&unstarted.why)?,
            Err(Unstarted { why: error, .. }) => {
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
                self.pause = LONGEST_PAUSE.min(self.pause * 2);
            }
        }
        Ok(())
    }

    /// Has a daemon be looked for at once.
    pub(super) fn hurry(&mut self) {
        self.next_attempt = Instant::now();
        self.pause = FIRST_PAUSE;
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
    pub(super) fn start(&mut self, mut daemon: Daemon) -> Result<(), Unstarted> {
        let started = self.hand_all(&mut daemon);
        match started {
            Ok(()) => {
                self.counters.daemons += 1;
                self.phase = Phase::Served(daemon);
                Ok(())
            }
            Err(why) => {
                let had_rings = self.rings.iter().any(|ring| ring.is_out);
                // Taken back, they go on from where it stopped; if it has hung up, that is found out later.
                let _ = self.take_all(&mut daemon);
                Err(Unstarted { why, had_rings })
            }
        }
    }

    fn hand_all(&mut self, daemon: &mut Daemon) -> Result<(), DaemonError> {
        if let Some(features) = self.features {
            daemon.set_features(features)?;
        }
        if let Some(memory) = &self.memory {
            daemon.set_memory(memory)?;
        }
        for (index, ring) in (0..).zip(&mut self.rings) {
            if ring.is_ready() && self.features.is_some() {
                // It counts as out even if it could not be started in whole.
                ring.is_out = true;
                daemon.start_ring(index, ring)?;
            }
        }
        Ok(())
    }

    /// Takes all rings back from a daemon.
    pub(super) fn take_all(&mut self, daemon: &mut Daemon) -> Result<(), DaemonError> {
        for (index, ring) in (0..).zip(&mut self.rings) {
            if ring.is_out {
                ring.base = daemon.stop_ring(index)?;
                ring.is_out = false;
            }
        }
        Ok(())
    }

    fn hand_over(&mut self, index: u32) -> Result<(), Refusal> {
        if self.features.is_none() {
            return Ok(());
        }
        self.with_daemon(|daemon, rings| {
            let at = usize::try_from(index).unwrap_or(usize::MAX);
            match rings.get_mut(at) {
                Some(ring) if ring.is_ready() && !ring.is_out => {
                    ring.is_out = true;
                    daemon.start_ring(index, ring)
                }
                _ => Ok(()),
            }
        })
    }

    fn take_back(&mut self, index: u32) -> Result<(), Refusal> {
        self.with_daemon(|daemon, rings| {
            let at = usize::try_from(index).unwrap_or(usize::MAX);
            match rings.get_mut(at) {
                Some(ring) if ring.is_out => {
                    ring.base = daemon.stop_ring(index)?;
                    ring.is_out = false;
                    Ok(())
                }
                _ => Ok(()),
            }
        })
    }

    fn with_daemon(
        &mut self,
        work: impl FnOnce(&mut Daemon, &mut Vec<Ring>) -> Result<(), DaemonError>,
    ) -> Result<(), Refusal> {
        let done = match &mut self.phase {
            Phase::Served(daemon) => work(daemon, &mut self.rings),
            _ => Ok(()),
        };
        done.or_else(|error| self.failed(error))
    }

    /// A daemon that refuses is still there; with any other error it is lost. That is no failure of the guest's.
    fn failed(&mut self, error: DaemonError) -> Result<(), Refusal> {
        match error {
            error @ DaemonError::Refused { .. } => Err(error.into()),
            error => Ok(self.lose_to(&error)?),
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
            _ => self.lose("it closed the connection"),
        }
    }

    /// [`Session::lose`] by what the daemon did. One that has rings and is still there is not to be helped: the guest's
    /// connection has to be closed, which leaves its memory to the daemon.
    pub(super) fn lose_to(&mut self, error: &DaemonError) -> Result<(), Fatal> {
        if !error.is_end() && self.rings.iter().any(|ring| ring.is_out) {
            return Err(Fatal::Alive(error_chain(error)));
        }
        self.lose(&error_chain(error))
    }

    /// [`Session::lose_to`] by a daemon that has had requests, also where it has none any more: what it did with them is lost.
    pub(super) fn lose_with_rings(&mut self, error: &DaemonError) -> Result<(), Fatal> {
        self.phase = Phase::Paused {
            daemon: None,
            state: None,
        };
        self.lose_to(error)
    }

    /// The daemon is gone, and with it what it knew. What it had in hand is refused, and whatever comes after it.
    pub(super) fn lose(&mut self, why: &str) -> Result<(), Fatal> {
        let was_out = self.rings.iter().any(|ring| ring.is_out);
        let was_paused = matches!(self.phase, Phase::Paused { .. });
        self.phase = Phase::Waiting;
        self.hurry();
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
        self.settle_all()?;
        self.refuse_all()
    }

    fn settle_all(&mut self) -> Result<(), Fatal> {
        let event_idx = self.has_event_idx();
        let Some(memory) = &self.memory else {
            return Ok(());
        };
        for ring in &mut self.rings {
            let was_out = std::mem::take(&mut ring.is_out);
            let Some(split) = Split::new(memory, ring, event_idx) else {
                continue;
            };
            if !was_out && (!ring.is_ready() || split.used_index()? == ring.base) {
                continue;
            }
            match settle(&split, memory)? {
                Settled::At { base, refused } => {
                    ring.base = base;
                    self.counters.refused += u64::from(refused);
                    ring.signal_call();
                }
                Settled::Unknown => return Err(Fatal::Unknown),
            }
        }
        Ok(())
    }

    /// While the daemon is lost: refuses what is in the rings. A request that opens a session makes the device wait for a
    /// daemon again.
    ///
    /// # Errors
    /// The guest's memory cannot be written, so that nothing can be said in it.
    pub(super) fn refuse_all(&mut self) -> Result<(), Fatal> {
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
            let Some(split) = Split::new(memory, ring, event_idx) else {
                continue;
            };
            let (mut base, mut count) = (ring.base, 0);
            let answered = refuse(&split, memory, &mut base, &mut count);
            ring.base = base;
            self.counters.refused += count;
            if count > 0 {
                ring.signal_call();
            }
            match answered {
                Ok(Answered::All) => {}
                // The rest has its turn after everything else that waits.
                Ok(Answered::Some) => ring.signal_kick(),
                Ok(Answered::UpToInit) => is_opened = true,
                Err(error @ SplitError::Memory(_)) => return Err(error.into()),
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
            self.hurry();
        }
        Ok(())
    }

    /// Rings that are set up, with the memory they are in.
    pub(super) fn splits(&self) -> Vec<(Split<'_>, u16)> {
        let event_idx = self.has_event_idx();
        let Some(memory) = &self.memory else {
            return Vec::new();
        };
        let ready = self.rings.iter().filter(|ring| ring.is_ready());
        ready
            .filter_map(|ring| Some((Split::new(memory, ring, event_idx)?, ring.base)))
            .collect()
    }

    fn has_event_idx(&self) -> bool {
        self.features.unwrap_or(0) & feature::EVENT_IDX != 0
    }
}
