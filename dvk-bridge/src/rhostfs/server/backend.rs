//! Connects to the daemon, watches the connection, and connects again when it is lost.
//!
//! ```text
//!   no daemon ── root found ──> connected ── a call finds it lost ──> no daemon
//!       └── failed: wait, twice as long each time, up to a limit ──> no daemon
//! ```
//!
//! One thread does this. Calls do not wait for it: they fail at once while there is no daemon.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};

use gangplank_driver::{self as driver, Driver, FuseSession, InitOptions};
use gangplank_service::{error_chain, rate_limited};
use log::debug;
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use super::failure::{Failure, Result};
use super::file_identity::BirthTimes;
use super::path::Path;
use super::resolver::{LookupRules, Resolver};

/// Wait after the first failure to connect.
const MIN_RETRY_WAIT: Duration = Duration::from_millis(50);

/// Longest wait between two attempts to connect.
const MAX_RETRY_WAIT: Duration = Duration::from_secs(2);

/// Interval at which an idle daemon is checked, and dropped nodes are forgotten.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Descriptors in each ring to the daemon, a power of two.
const QUEUE_SIZE: u16 = 256;

/// Pieces of one read or write that are in flight at once.
const MAX_PIECES: usize = 4;

/// The share and how it is served.
#[derive(Clone, Debug)]
pub(super) struct BackendTarget {
    /// The daemon's vhost-user socket.
    pub(super) socket: PathBuf,
    /// The directory of the share that clients see as root.
    pub(super) root: Path,
    /// The root as the operator wrote it.
    pub(super) root_name: String,
    pub(super) rules: LookupRules,
    /// Time limit of the daemon for a request.
    pub(super) limit: Duration,
    /// Threads that send requests at once.
    pub(super) workers: usize,
}

/// A connected daemon, from one connection to its loss.
#[derive(Debug)]
pub(super) struct Backend {
    /// The number of the connection, from 1. Nodes and open files of other connections are invalid
    /// here.
    pub(super) number: u64,
    pub(super) session: FuseSession,
    pub(super) resolver: Resolver,
    /// Asks the daemon when files were created.
    pub(super) birth_times: BirthTimes,
    /// Request queues of the device.
    pub(super) queues: usize,
    /// Requests that one thread can have in flight, so that all threads fit into the rings.
    pub(super) pieces: usize,
}

/// Keeps a connection to the daemon.
#[derive(Debug)]
pub(super) struct BackendConnector {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    target: BackendTarget,
    current: RwLock<Option<Arc<Backend>>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the last connection that was lost.
    lost: u64,
    /// The daemon is connected.
    connected: bool,
    ending: bool,
}

impl BackendConnector {
    /// Starts to connect in the background.
    ///
    /// # Errors
    ///
    /// The thread cannot be started.
    pub(super) fn start(target: BackendTarget) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            target,
            current: RwLock::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let thread = thread::Builder::new()
            .name("rhostfs_link".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run()
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// The connected daemon.
    ///
    /// # Errors
    ///
    /// [`Failure::NoDaemon`].
    pub(super) fn current(&self) -> Result<Arc<Backend>> {
        let current = self.shared.current.read();
        let current = current;
        current.clone().ok_or(Failure::NoDaemon)
    }

    /// Reports that the connection `backend` is lost.
    pub(super) fn lost(&self, backend: &Backend) {
        let mut state = self.shared.lock();
        state.lost = state.lost.max(backend.number);
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Waits up to `limit` until the daemon is connected. Returns whether it is.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let mut state = self.shared.lock();
        let changed = &self.shared.changed;
        changed.wait_while_for(&mut state, |state| !state.connected, limit);
        state.connected
    }
}

impl Drop for BackendConnector {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // The thread has ended, or panicked, which is logged.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The thread: connects again and again until the server ends.
    fn run(&self) {
        let mut wait = MIN_RETRY_WAIT;
        let mut complained = false;
        for number in 1.. {
            let (socket, root) = (self.target.socket.display(), &self.target.root_name);
            match self.connect(number) {
                Ok(backend) => {
                    rate_limited!(info, "{socket}: connected, serving {root} of its share");
                    (wait, complained) = (MIN_RETRY_WAIT, false);
                    let backend = Arc::new(backend);
                    self.publish(Some(Arc::clone(&backend)));
                    let ending = self.watch(&backend);
                    self.publish(None);
                    if ending {
                        return;
                    }
                    rate_limited!(
                        warn,
                        "{socket}: the daemon is lost; requests fail until it returns"
                    );
                }
                Err(reason) if complained => debug!("{socket}: {}", error_chain(&reason)),
                Err(reason) => {
                    rate_limited!(
                        warn,
                        "{socket}: cannot serve {root} of its share, retrying: {}",
                        error_chain(&reason)
                    );
                    complained = true;
                }
            }
            if self.sleep(wait) {
                return;
            }
            wait = wait.saturating_mul(2).min(MAX_RETRY_WAIT);
        }
    }

    fn connect(&self, number: u64) -> Result<Backend> {
        let options = driver::Options {
            queue_size: QUEUE_SIZE,
            limit: self.target.limit,
            ..driver::Options::default()
        };
        let driver = Driver::connect(&self.target.socket, &options)?;
        let caller = self.target.rules.credentials.caller();
        let session = driver.session(&InitOptions::default())?.as_caller(caller);
        let resolver = Resolver::open(&session, &self.target.root, self.target.rules)?;
        let queues = session.request_queues();
        let pieces = session.depth() / self.target.workers.max(1);
        Ok(Backend {
            number,
            session,
            resolver,
            birth_times: BirthTimes::new(),
            queues,
            pieces: pieces.clamp(1, MAX_PIECES),
        })
    }

    fn publish(&self, backend: Option<Arc<Backend>>) {
        let connected = backend.is_some();
        let before = {
            let mut current = self.current.write();
            std::mem::replace(&mut *current, backend)
        };
        self.lock().connected = connected;
        self.changed.notify_all();
        drop(before);
    }

    /// Waits until `backend` is lost. Returns whether the server ends.
    fn watch(&self, backend: &Backend) -> bool {
        loop {
            let mut state = self.lock();
            let idle = |state: &mut State| !state.ending && state.lost < backend.number;
            self.changed
                .wait_while_for(&mut state, idle, HEARTBEAT_INTERVAL);
            if state.ending {
                return true;
            }
            if state.lost >= backend.number {
                return false;
            }
            drop(state);
            let alive = backend
                .session
                .flush_forgets()
                .and_then(|()| backend.session.statfs(gangplank_fuse::NodeId::ROOT));
            if let Err(error) = alive {
                if error.is_fatal() {
                    debug!("{}", error_chain(&error));
                    return false;
                }
                debug!("{}: {}", self.target.socket.display(), error_chain(&error));
            }
        }
    }

    /// Waits. Returns whether the server ends.
    fn sleep(&self, limit: Duration) -> bool {
        let mut state = self.lock();
        self.changed
            .wait_while_for(&mut state, |state| !state.ending, limit);
        state.ending
    }
}
