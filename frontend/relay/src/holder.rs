//! Holds descriptors for daemons, as a service manager does: guests, whose connections are among
//! them, outlive the end of all processes of a daemon. gangplankd says which descriptors, and gets
//! them when it is started again ([`gangplank_service::fd_store::packet`]).
//!
//! ```text
//! no daemon ── Begin ──> connected ── hang-up ──> waiting ── Begin ──> connected
//!                                                    └── time is up, or nothing held ──> no daemon
//! ```
//!
//! Descriptors of a daemon go to the same daemon alone: the same user, socket and directory.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gangplank_service::fd_store::packet::{Answer, Packet, Request, receive, send};
use gangplank_service::peer_cred::PeerCred;
use gangplank_service::rate_limited;
use gangplank_service::unix_listener::OwnedListener;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// Daemons that are connected or awaited at a time.
const MAX_DAEMONS: usize = 64;

/// How long a daemon may take to say which one it is, and to take what was held.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Descriptors that the relay itself needs at most: some thirty for each of its guests.
const OWN_DESCRIPTORS: u64 = 8192;

/// Pause after accepting failed for lack of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What is held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    /// Descriptors at most, of all daemons together.
    pub(super) limit: usize,
    /// How long descriptors are held while their daemon is not connected.
    pub(super) time: Duration,
}

/// What is held for one daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HeldFor {
    /// Its socket and directory, as it names them.
    pub(super) daemon: String,
    /// Descriptors.
    pub(super) count: usize,
    /// When they are closed, while the daemon is not connected.
    pub(super) until: Option<Instant>,
}

/// What is held, for others to read.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    limit: usize,
    daemons: Arc<Mutex<Vec<HeldFor>>>,
}

impl Summary {
    /// Descriptors that are held at most, of all daemons together.
    pub(super) const fn limit(&self) -> usize {
        self.limit
    }

    /// By daemon.
    pub(super) fn daemons(&self) -> Vec<HeldFor> {
        self.daemons.lock().clone()
    }
}

/// The thread that holds descriptors. It ends, and closes them, when this is dropped.
#[derive(Debug)]
pub(super) struct Holder {
    summary: Summary,
    wakeup: Arc<OwnedFd>,
    is_ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Holder {
    /// Holds descriptors of daemons that connect at `listener`.
    pub(super) fn start(listener: OwnedListener, mut options: Options) -> io::Result<Self> {
        let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let most = most.saturating_sub(OWN_DESCRIPTORS).max(most / 2);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        if options.limit > most {
            log::warn!(
                "--holder-limit={}: no more than {most} descriptors are held, since the relay may \
                 open no more",
                options.limit
            );
            options.limit = most;
        }
        let wakeup = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let is_ending = Arc::new(AtomicBool::new(false));
        let (woken, ending) = (Arc::clone(&wakeup), Arc::clone(&is_ending));
        let daemons = Arc::default();
        let mut store = Store::new(options, Arc::clone(&daemons));
        let thread = thread::Builder::new()
            .name("holder".to_owned())
            .spawn(move || store.serve(&listener, &woken, &ending))?;
        Ok(Self {
            summary: Summary {
                limit: options.limit,
                daemons,
            },
            wakeup,
            is_ending,
            thread: Some(thread),
        })
    }

    /// What it holds, from now on.
    pub(super) const fn summary(&self) -> &Summary {
        &self.summary
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.is_ending.store(true, Ordering::Release);
        let _ = rustix::io::write(&*self.wakeup, &1u64.to_ne_bytes());
        // If it has panicked, the log says so.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Which daemon: its user, its socket and directory as it names them.
type Identity = (u32, Vec<u8>);

/// What one daemon has held.
#[derive(Debug, Default)]
struct Entry {
    held: BTreeMap<String, OwnedFd>,
    /// When it is closed, while the daemon is not connected.
    until: Option<Instant>,
}

/// A connected process.
#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    user: u32,
    /// Once it has said so.
    identity: Option<Identity>,
    /// By when it must have.
    begin_by: Instant,
}

#[derive(Debug)]
struct Store {
    options: Options,
    entries: BTreeMap<Identity, Entry>,
    connections: Vec<Connection>,
    /// Of the entries.
    summary: Arc<Mutex<Vec<HeldFor>>>,
}

impl Store {
    const fn new(options: Options, summary: Arc<Mutex<Vec<HeldFor>>>) -> Self {
        Self {
            summary,
            options,
            entries: BTreeMap::new(),
            connections: Vec::new(),
        }
    }

    fn serve(&mut self, listener: &OwnedListener, wakeup: &OwnedFd, is_ending: &AtomicBool) {
        while !is_ending.load(Ordering::Acquire) {
            if let Err(errno) = self.wait(listener, wakeup) {
                log::error!("cannot wait for daemons, so no descriptors are held: {errno}");
                return;
            }
            // Before another connection of the same daemon, what this one had said last.
            self.hear();
            self.accept(listener);
            self.expire(Instant::now());
            self.sum_up();
        }
    }

    fn sum_up(&self) {
        let entries = self.entries.iter();
        let daemons = entries.map(|((_, owner), entry)| HeldFor {
            daemon: in_words(owner),
            count: entry.held.len(),
            until: entry.until,
        });
        *self.summary.lock() = daemons.collect();
    }

    fn wait(&self, listener: &OwnedListener, wakeup: &OwnedFd) -> Result<(), Errno> {
        let begins = self.connections.iter();
        let begins = begins.filter(|one| one.identity.is_none());
        let begins = begins.map(|one| one.begin_by);
        let ends = self.entries.values().filter_map(|entry| entry.until);
        let next = begins.chain(ends).min();
        let left = next.map(|next| next.saturating_duration_since(Instant::now()));
        let limit = left.and_then(|left| Timespec::try_from(left).ok());
        let sockets = self.connections.iter().map(|one| one.socket.as_fd());
        let mut awaited: Vec<_> = [listener.as_fd(), wakeup.as_fd()]
            .into_iter()
            .chain(sockets)
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
            .collect();
        match poll(&mut awaited, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn accept(&mut self, listener: &OwnedListener) {
        loop {
            let socket = match listener.accept() {
                Ok((socket, _)) => OwnedFd::from(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    rate_limited!(error, "cannot accept a daemon's connection: {error}");
                    thread::sleep(ACCEPT_RETRY);
                    return;
                }
            };
            self.add(socket);
        }
    }

    fn add(&mut self, socket: OwnedFd) {
        let refusal = match PeerCred::of(&socket) {
            Ok(peer) if !peer.is_root_or_own() => "the relay is another user's".to_owned(),
            Ok(_) if self.connections.len() >= MAX_DAEMONS => {
                format!("{MAX_DAEMONS} daemons are connected, which is the most")
            }
            Ok(peer) => {
                self.connections.push(Connection {
                    socket,
                    user: peer.user,
                    identity: None,
                    begin_by: Instant::now() + BEGIN_TIMEOUT,
                });
                return;
            }
            Err(errno) => format!("its user is not known: {errno}"),
        };
        rate_limited!(
            warn,
            "a daemon at the holder's socket is refused: {refusal}"
        );
        // If this fails, it has gone.
        let _ = answer(socket.as_fd(), &Answer::Refused(&refusal));
    }

    /// Carries out what daemons have said.
    fn hear(&mut self) {
        let mut connections = std::mem::take(&mut self.connections);
        connections.retain_mut(|connection| self.hear_one(connection));
        connections.append(&mut self.connections);
        self.connections = connections;
    }

    /// Returns whether the daemon is still connected.
    fn hear_one(&mut self, connection: &mut Connection) -> bool {
        loop {
            let said = match receive(connection.socket.as_fd(), None) {
                Ok(Some(packet)) => self.carry_out(connection, packet),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let is_begun = connection.identity.is_some();
                    return is_begun || Instant::now() < connection.begin_by;
                }
                // What came along is closed, and was not held.
                Err(error)
                    if error.kind() == io::ErrorKind::InvalidData
                        && connection.identity.is_some() =>
                {
                    rate_limited!(error, "a daemon's descriptor is not held: {error}");
                    answer(connection.socket.as_fd(), &Answer::Done(false))
                }
                Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => Err(error),
            };
            if let Err(error) = said {
                self.lose(connection, &error);
                return false;
            }
        }
    }

    fn carry_out(&mut self, connection: &mut Connection, packet: Packet) -> io::Result<()> {
        let request = Request::decode(&packet.text);
        let (Some(identity), Some(request)) = (&connection.identity, request) else {
            return match request {
                Some(Request::Begin(owner)) => self.begin(connection, owner),
                _ => Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "it sent something else than a request",
                )),
            };
        };
        let is_full = self.count() >= self.options.limit;
        let held = &mut self.entries.entry(identity.clone()).or_default().held;
        let done = match (request, packet.descriptor) {
            (Request::Store(name), Some(descriptor)) => {
                let fits = !is_full || held.contains_key(name);
                if fits {
                    held.insert(name.to_owned(), descriptor);
                } else {
                    rate_limited!(
                        error,
                        "{} descriptors are held, which is the most, so guests may be lost with \
                         their daemon; raise --holder-limit",
                        self.options.limit
                    );
                }
                fits
            }
            (Request::Remove(name), _) => {
                held.remove(name);
                true
            }
            _ => false,
        };
        answer(connection.socket.as_fd(), &Answer::Done(done))
    }

    /// A daemon has said which one it is. It gets what is held for it.
    fn begin(&mut self, connection: &mut Connection, owner: &[u8]) -> io::Result<()> {
        let identity = (connection.user, owner.to_vec());
        let socket = connection.socket.as_fd();
        let entry = self.entries.get(&identity);
        if entry.is_some_and(|entry| entry.until.is_none()) {
            return answer(socket, &Answer::Busy);
        }
        if entry.is_none() && self.entries.len() >= MAX_DAEMONS {
            let refusal =
                format!("descriptors of {MAX_DAEMONS} daemons are held, which is the most");
            return answer(socket, &Answer::Refused(&refusal));
        }
        let entry = self.entries.entry(identity.clone()).or_default();
        entry.until = None;
        connection.identity = Some(identity);
        answer(socket, &Answer::Begun(entry.held.len()))?;
        let deadline = Instant::now() + BEGIN_TIMEOUT;
        for (name, descriptor) in &entry.held {
            let text = Answer::Found(name).encode();
            send(socket, &text, Some(descriptor.as_fd()), Some(deadline))?;
        }
        if !entry.held.is_empty() {
            log::info!(
                "the daemon of {} has got its {} descriptors",
                in_words(owner),
                entry.held.len()
            );
        }
        Ok(())
    }

    fn lose(&mut self, connection: &Connection, error: &io::Error) {
        if error.kind() != io::ErrorKind::UnexpectedEof {
            rate_limited!(warn, "a daemon is disconnected from the holder: {error}");
        }
        let Some(identity) = &connection.identity else {
            return;
        };
        match self.entries.get_mut(identity) {
            Some(entry) if !entry.held.is_empty() => {
                log::warn!(
                    "the daemon of {} has ended; {} descriptors of its guests are held for {} s",
                    in_words(&identity.1),
                    entry.held.len(),
                    self.options.time.as_secs_f64()
                );
                entry.until = Some(Instant::now() + self.options.time);
            }
            _ => drop(self.entries.remove(identity)),
        }
    }

    /// Closes what no daemon has come for in time.
    fn expire(&mut self, now: Instant) {
        self.entries.retain(|(_, owner), entry| {
            let is_over = entry.until.is_some_and(|until| until <= now);
            if is_over {
                log::error!(
                    "no daemon of {} has come back in time, so its guests' files are lost",
                    in_words(owner)
                );
            }
            !is_over
        });
    }

    fn count(&self) -> usize {
        self.entries.values().map(|entry| entry.held.len()).sum()
    }
}

fn answer(socket: BorrowedFd<'_>, answer: &Answer<'_>) -> io::Result<()> {
    send(socket, &answer.encode(), None, None)
}

/// Socket and directory of a daemon, which separates them by the end of a line.
fn in_words(owner: &[u8]) -> String {
    let owner = String::from_utf8_lossy(owner);
    match owner.split_once('\n') {
        Some((socket, directory)) => format!("{socket:?}, which shares {directory:?}"),
        None => format!("{owner:?}"),
    }
}

#[cfg(test)]
mod tests;
