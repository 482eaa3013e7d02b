//! Connects to the daemon, watches the connection, and connects again when it is lost.
//!
//! One thread does this. A procedure waits for it for a short while, and then tells the client to
//! try again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use gangplank_driver::{Driver, InitOptions, Options, WaitMode};
use gangplank_fuse::{InitFlags, NodeId};
use gangplank_service::{error_chain, rate_limited};
use log::debug;
use parking_lot::{Condvar, Mutex};

use super::connection::Connection;
use super::error::{Failure, Result};

/// Wait after the first failure to connect.
const MIN_RETRY_WAIT: Duration = Duration::from_millis(50);

/// Longest wait between two attempts to connect.
const MAX_RETRY_WAIT: Duration = Duration::from_secs(2);

/// Interval at which an idle daemon is checked, and unused files are closed.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// How long a procedure waits for the daemon.
const CALL_WAIT: Duration = Duration::from_secs(2);

/// Bytes of memory that is shared with the daemon, which the host provides as it is used: the data
/// of all calls that may be executed at once, and of all replies that clients may leave untaken.
const BUFFERS: u64 = 512 << 20;

/// Descriptors in each ring to the daemon, a power of two, unless the daemon has smaller rings.
const QUEUE_SIZE: u16 = 512;

/// Descriptors of a ring for each worker, at least: RENAME has four requests in flight, and takes
/// the reply to the first one last. Threads that read connections execute calls as well, so this is
/// no bound.
const DESCRIPTORS_OF_WORKER: u16 = 4;

/// Keeps a connection to the daemon.
#[derive(Debug)]
pub struct Connector {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: PathBuf,
    /// Time limit of the daemon for a request.
    limit: Duration,
    /// How long to poll for a reply before sleeping.
    busy_poll: Duration,
    /// The smallest rings that are tried.
    min_queue_size: u16,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Arc<Connection>>,
    /// The number of the last connection that was lost.
    lost: u64,
}

impl Connector {
    /// Starts to connect in the background. `limit` is the daemon's time for a request, of which
    /// `busy_poll` is the longest for which its reply is polled for. `threads` execute calls.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        socket: PathBuf,
        limit: Duration,
        busy_poll: Duration,
        threads: u16,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            socket,
            limit,
            busy_poll,
            min_queue_size: min_queue_size(threads),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let runner = Arc::clone(&shared);
        thread::Builder::new()
            .name("nfs_link".to_owned())
            .spawn(move || runner.run())?;
        Ok(Self { shared })
    }

    /// The connected daemon.
    ///
    /// # Errors
    /// [`Failure::NoDaemon`] if it is not connected within 2 seconds.
    pub fn current(&self) -> Result<Arc<Connection>> {
        let mut state = self.shared.state.lock();
        let absent = |state: &mut State| state.current.is_none();
        self.shared
            .changed
            .wait_while_for(&mut state, absent, CALL_WAIT);
        state.current.clone().ok_or(Failure::NoDaemon)
    }

    /// Whether a daemon is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.state.lock().current.is_some()
    }

    /// Reports that a connection is lost.
    pub fn lost(&self, connection: &Connection) {
        let mut state = self.shared.state.lock();
        state.lost = state.lost.max(connection.number);
        state
            .current
            .take_if(|current| current.number == connection.number);
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn run(&self) {
        let mut wait = MIN_RETRY_WAIT;
        let mut complained = false;
        for number in 1.. {
            let socket = self.socket.display();
            match self.connect(number) {
                Ok(connection) => {
                    rate_limited!(info, "{socket}: connected to the daemon");
                    (wait, complained) = (MIN_RETRY_WAIT, false);
                    let connection = Arc::new(connection);
                    self.state.lock().current = Some(Arc::clone(&connection));
                    self.changed.notify_all();
                    self.watch(&connection);
                    self.state.lock().current = None;
                    rate_limited!(
                        warn,
                        "{socket}: the daemon is lost; clients wait until it returns"
                    );
                }
                Err(error) if complained => debug!("{socket}: {}", error_chain(&error)),
                Err(error) => {
                    rate_limited!(
                        warn,
                        "{socket}: cannot reach the daemon, retrying: {}",
                        error_chain(&error)
                    );
                    complained = true;
                }
            }
            thread::sleep(wait);
            wait = wait.saturating_mul(2).min(MAX_RETRY_WAIT);
        }
    }

    /// Connects with the largest rings that the daemon accepts.
    fn connect_driver(&self) -> Result<Driver> {
        let mut options = Options {
            queue_size: QUEUE_SIZE,
            buffers: BUFFERS,
            waiting: WaitMode::PollFirst(self.busy_poll),
            limit: self.limit,
            ..Options::default()
        };
        loop {
            match Driver::connect(&self.socket, &options) {
                Err(error) if error.is_ring_size() && options.queue_size > self.min_queue_size => {
                    options.queue_size /= 2;
                }
                connected => {
                    if connected.is_ok() && options.queue_size < QUEUE_SIZE {
                        rate_limited!(
                            warn,
                            "{}: the daemon refuses rings of {QUEUE_SIZE} descriptors; they have \
                             {}. Many calls at once may wait for each other (--queue-size of \
                             gangplankd)",
                            self.socket.display(),
                            options.queue_size
                        );
                    }
                    return Ok(connected?);
                }
            }
        }
    }

    fn connect(&self, number: u64) -> Result<Connection> {
        let driver = self.connect_driver()?;
        let mut init = InitOptions::default();
        init.features |= InitFlags::CREATE_SUPP_GROUP;
        let session = driver.session(&init)?;
        if !session.init().features().contains(InitFlags::POSIX_LOCKS) {
            rate_limited!(
                warn,
                "{}: the daemon takes no locks, so NFS clients' locks exclude other NFS clients \
                 alone, and neither guests nor programs of the host (--locks=host of gangplankd)",
                self.socket.display()
            );
        }
        Ok(Connection::new(number, session))
    }

    /// Waits until the connection is lost.
    fn watch(&self, connection: &Connection) {
        loop {
            let mut state = self.state.lock();
            let alive = |state: &mut State| state.lost < connection.number;
            self.changed
                .wait_while_for(&mut state, alive, HEARTBEAT_INTERVAL);
            if state.lost >= connection.number {
                return;
            }
            drop(state);
            connection.files.close_unused();
            let session = &connection.session;
            let alive = session
                .flush_forgets()
                .and_then(|()| session.statfs(NodeId::ROOT));
            if let Err(error) = alive {
                debug!("{}: {}", self.socket.display(), error_chain(&error));
                if error.is_fatal() {
                    return;
                }
            }
        }
    }
}

/// The smallest rings for so many threads, a power of two.
fn min_queue_size(threads: u16) -> u16 {
    let needed = threads
        .saturating_mul(DESCRIPTORS_OF_WORKER)
        .min(QUEUE_SIZE);
    needed.next_power_of_two()
}
