//! One guest's virtio-fs device, between a guest that stays and a daemon that comes and goes.
//!
//! Waiting has no time limit. The command `resume` waits for `Limits::connect`.
//!
//! ```text
//!              a daemon connects           command
//!   waiting ──────────────────────> served ───────> paused
//!      ^                              │  ^             │
//!      │ the guest opens a session    │  └─────────────┘ command; by the same daemon
//!      │                              │                  or by one that has loaded its state
//!      │                              │ the daemon hangs up
//!      └────────────── lost <─────────┘
//! ```
//!
//! A ring is started while a daemon has it. At all other times the relay knows where it stopped.
//! While the device waits or is paused, no process touches a ring, and requests gather in it. While
//! the daemon is lost, the relay replies to each request with an error. With `return_time`, the
//! device first waits for a successor of a daemon that has noted its requests in flight; one that
//! is paused does so when it is resumed.

mod backend_link;
mod loss;
mod replacement;
mod requests;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gangplank_rings::{QueueError, SplitQueue};
use gangplank_vhost_backend::{Memory, Ring};
use gangplank_vhost_user::client::FsConfig;
use gangplank_vhost_user::feature;

use crate::daemon::{Daemon, DaemonError, InflightMemory, Limits};

pub(crate) use self::replacement::{Files, ReplaceError};

/// Virtio features that the relay offers guests: it can work a ring that has them. A daemon that
/// has fewer narrows them.
const OFFERED_FEATURES: u64 =
    feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX | feature::PROTOCOL_FEATURES;

/// Request queues of a device for which neither the options nor a daemon tell a number.
const DEFAULT_QUEUES: u16 = 1;

/// Request queues of a device at most: the protocol numbers 256 rings, and the first one is the
/// high-priority queue.
const MAX_QUEUES: u16 = 255;

/// Options that are the same for all guests.
#[derive(Debug)]
pub(super) struct DeviceOptions {
    /// The tag, in place of the daemon's.
    pub(super) tag: Option<String>,
    /// The number of request queues, in place of the daemon's.
    pub(super) num_request_queues: Option<u16>,
    /// How long daemons may take.
    pub(super) limits: Limits,
    /// How long a guest that asks for the tag waits for a daemon that tells it.
    pub(super) tag_wait: Duration,
    /// How long requests wait for the successor of a daemon that was lost, if they do.
    pub(super) return_time: Option<Duration>,
}

/// Which process works on the guest's rings.
#[derive(Debug)]
pub(super) enum Phase {
    /// None: no daemon has connected yet.
    Waiting,
    /// This daemon.
    Served(Daemon),
    /// None, until an operator's command.
    Paused {
        /// The daemon that had the rings, if it is still connected.
        daemon: Option<Daemon>,
        /// What that daemon knew of the guest's files, if it can save it.
        state: Option<Vec<u8>>,
    },
    /// The relay, which replies to each request with an error.
    Lost,
}

/// The device cannot go on: the relay closes the guest's connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fatal {
    /// The rings do not tell which requests are in flight, so the relay can reply to none.
    #[error("the daemon left requests in flight, and the rings do not tell which")]
    Undecidable,
    /// The relay cannot work on the guest's rings.
    #[error("the daemon left requests in flight that cannot be answered")]
    Queue(#[from] QueueError),
    /// A daemon that is connected may still write to the buffers of the requests it has.
    #[error("the daemon does not reply, and has requests that no other process may answer: {0}")]
    BackendUnresponsive(String),
}

/// Why a guest's message, or an operator's command, is refused.
pub(super) type RequestError = gangplank_vhost_backend::RequestError<Fatal>;

impl From<DaemonError> for RequestError {
    fn from(error: DaemonError) -> Self {
        Self::Refused(error.into())
    }
}

impl From<Fatal> for RequestError {
    fn from(fatal: Fatal) -> Self {
        Self::Fatal(fatal)
    }
}

/// What has happened to a device.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    /// Daemons that have served it.
    pub(super) daemons: u64,
    /// Daemons that it lost.
    pub(super) losses: u64,
    /// Requests to which the relay replied with an error.
    pub(super) refused: u64,
}

/// One guest's device.
#[derive(Debug)]
pub(super) struct Device {
    /// The guest's number, for logs.
    guest: u64,
    options: Arc<DeviceOptions>,
    /// The socket of the daemon to connect to.
    pub(super) backend: PathBuf,
    pub(super) phase: Phase,
    pub(super) rings: Vec<Ring>,
    pub(super) counters: Counters,
    /// Features of the guest's last SET_FEATURES.
    features: Option<u64>,
    memory: Option<Memory>,
    /// Number of request queues, fixed once the guest has asked for it.
    queues: Option<u16>,
    /// The tag, fixed once the guest has asked for it.
    tag: Option<String>,
    /// When a guest that asks for the tag gets an empty reply. Set at its first question.
    tag_awaited_until: Option<Instant>,
    /// Where the daemon notes its requests in flight.
    inflight: Option<InflightMemory>,
    /// The daemon was lost, and when its successor is given up.
    successor_until: Option<Instant>,
    /// That time at the last loss that left requests, and the rings' used indexes.
    last_loss: Option<(Instant, Vec<u16>)>,
    /// When the last daemon got the rings.
    served_since: Instant,
    retry: Retry,
}

/// When to connect to a daemon next.
#[derive(Debug)]
struct Retry {
    at: Instant,
    backoff: Duration,
    /// Whether the log has told that there is no daemon.
    is_logged: bool,
}

impl Device {
    /// A device that no driver has set up. Connects to a daemon if there is one.
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
            inflight: None,
            successor_until: None,
            last_loss: None,
            served_since: Instant::now(),
            retry: Retry::now(),
        };
        // It fails only by the loss of rings, and there are none yet.
        let _ = device.connect_if_due();
        device
    }

    /// The guest's number.
    pub(super) const fn guest(&self) -> u64 {
        self.guest
    }

    fn limits(&self) -> Limits {
        self.options.limits
    }

    /// The daemon that is connected.
    pub(super) fn daemon(&self) -> Option<&Daemon> {
        match &self.phase {
            Phase::Served(daemon) => Some(daemon),
            Phase::Paused { daemon, .. } => daemon.as_ref(),
            Phase::Waiting | Phase::Lost => None,
        }
    }

    /// When to connect to a daemon next; None while the device does not wait for one.
    pub(super) fn next_attempt(&self) -> Option<Instant> {
        matches!(self.phase, Phase::Waiting).then_some(self.retry.at)
    }

    /// Kick descriptors of the rings that the relay itself works on.
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

    /// The device's request queues. The number does not change after the first call.
    fn request_queues(&mut self) -> u16 {
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

    /// The device's configuration. If only a daemon knows the tag, waits for a daemon; None if none
    /// connects in time.
    fn awaited_config(&mut self) -> Result<Option<FsConfig>, Fatal> {
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
                    std::thread::sleep(self.retry.at.saturating_duration_since(Instant::now()));
                    self.connect_if_due()?;
                }
                None => return Ok(None),
            }
        }
        let queues = self.request_queues().into();
        let tag = self.tag.as_deref().unwrap_or_default();
        Ok(Some(FsConfig::with(tag.as_bytes(), queues)))
    }

    /// The rings that are ready, with the memory they are in, and where each stopped.
    fn ready_queues(&self) -> Vec<(SplitQueue<'_>, u16)> {
        let event_idx = self.has_event_idx();
        let Some(memory) = &self.memory else {
            return Vec::new();
        };
        let ready = self.rings.iter().filter(|ring| ring.is_ready());
        ready
            .filter_map(|ring| Some((ring.queue(memory, event_idx)?, ring.base)))
            .collect()
    }

    fn has_event_idx(&self) -> bool {
        self.features.unwrap_or(0) & feature::EVENT_IDX != 0
    }
}
