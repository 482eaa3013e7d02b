//! Clients of the control socket and of the metrics: each has a thread for some seconds, so that
//! the one that looks after the shares waits for none of them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use gangplank_service::{deadline_io, rate_limited};
use rustix::event::{EventfdFlags, eventfd};
use rustix::time::ClockId;

use super::request::{Listed, MAX_REQUEST, PREFIX, Reply, Request};
use crate::status::answer::{CLIENT_TIMEOUT, Kind, REQUEST, answer_metrics, request_line};
use crate::status::client;
use crate::status::model::Status;
use crate::status::sockets::Listeners;
use crate::sys::clock;

/// Shares that one client's thread asks at a time.
const ASKED_AT_ONCE: usize = 16;

/// How long a share's processes may take to tell their status.
const SHARE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a command may take: longer than a share may take to end.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(45);

/// A command, and whom to tell of its end.
#[derive(Debug)]
pub struct Command {
    /// What is wanted.
    pub request: Request,
    /// Takes one reply.
    pub answer: SyncSender<Reply>,
}

/// The shares as clients' threads see them.
pub type Shares = Arc<Mutex<Vec<Listed>>>;

/// What a client's thread has.
#[derive(Clone, Debug)]
struct Common {
    shares: Shares,
    commands: Sender<Command>,
    /// Wakes the thread that takes the commands.
    wake: Arc<OwnedFd>,
    /// Clients of the control socket, and of the metrics.
    counts: Arc<[AtomicUsize; 2]>,
}

/// The sockets, and the clients' threads.
#[derive(Debug)]
pub struct Clients {
    listeners: Listeners,
    common: Common,
    commands: Receiver<Command>,
}

impl Clients {
    /// None so far.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new(listeners: Listeners) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (sender, commands) = channel();
        let common = Common {
            shares: Arc::default(),
            commands: sender,
            wake: Arc::new(wake),
            counts: Arc::default(),
        };
        Ok(Self {
            listeners,
            common,
            commands,
        })
    }

    /// Where clients are waited for: not where there are too many.
    pub fn polled(&self) -> Vec<(Kind, BorrowedFd<'_>)> {
        let count = |kind| self.common.count(kind).load(Ordering::Relaxed);
        self.listeners.polled(count)
    }

    /// Readable when there is a command, or a client has gone.
    pub fn wake(&self) -> BorrowedFd<'_> {
        self.common.wake.as_fd()
    }

    /// The next command.
    pub fn command(&self) -> Option<Command> {
        // The counter is read so that the descriptor is readable no longer.
        let _ = rustix::io::read(&self.common.wake, &mut [0; 8]);
        self.commands.try_recv().ok()
    }

    /// Shows clients these shares.
    pub fn show(&self, shares: Vec<Listed>) {
        *lock(&self.common.shares) = shares;
    }

    /// Starts a thread for the client that waits at a socket.
    pub fn accept(&self, kind: Kind) {
        let Some(connection) = self.listeners.accept(kind) else {
            return;
        };
        let common = self.common.clone();
        common.count(kind).fetch_add(1, Ordering::Relaxed);
        let leaving = Leaving(common.clone(), kind);
        let name = "control_client".to_owned();
        let started = thread::Builder::new().name(name).spawn(move || {
            let _leaving = leaving;
            if let Err(error) = serve(&connection, kind, &common) {
                log::debug!("a client did not get its answer: {error}");
            }
        });
        if let Err(error) = started {
            rate_limited!(error, "cannot start a thread for a client: {error}");
        }
    }
}

/// Counts a client no longer.
struct Leaving(Common, Kind);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.count(self.1).fetch_sub(1, Ordering::Relaxed);
        self.0.wake();
    }
}

impl Common {
    fn count(&self, kind: Kind) -> &AtomicUsize {
        let [control, metrics] = &*self.counts;
        match kind {
            Kind::Control => control,
            Kind::Metrics => metrics,
        }
    }

    fn wake(&self) {
        // If the counter is full, the descriptor is readable anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn shares(&self) -> Vec<Listed> {
        lock(&self.shares).clone()
    }

    fn run(&self, request: Request) -> Reply {
        let (answer, replies) = sync_channel(1);
        if self.commands.send(Command { request, answer }).is_err() {
            return Reply::Error("the daemon is ending".to_owned());
        }
        self.wake();
        match replies.recv_timeout(COMMAND_TIMEOUT) {
            Ok(reply) => reply,
            Err(RecvTimeoutError::Timeout) => {
                let limit = COMMAND_TIMEOUT.as_secs();
                Reply::Error(format!(
                    "it is not done after {limit} s, and may be done later"
                ))
            }
            Err(RecvTimeoutError::Disconnected) => Reply::Error("the daemon is ending".to_owned()),
        }
    }
}

fn lock(shares: &Mutex<Vec<Listed>>) -> std::sync::MutexGuard<'_, Vec<Listed>> {
    shares.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(connection: &OwnedFd, kind: Kind, common: &Common) -> io::Result<()> {
    let deadline = Instant::now() + CLIENT_TIMEOUT;
    let connection = connection.as_fd();
    match kind {
        Kind::Metrics => {
            // The shares are asked in between.
            let deadline = deadline + SHARE_TIMEOUT;
            answer_metrics(connection, deadline, || status(&common.shares()))
        }
        Kind::Control => {
            let line = request_line(connection, MAX_REQUEST, deadline)?;
            let mut text = control_reply(&line, common).map_err(io::Error::other)?;
            text.push('\n');
            let deadline = Instant::now() + CLIENT_TIMEOUT;
            deadline_io::write_all(connection, text.as_bytes(), deadline)
        }
    }
}

fn control_reply(line: &[u8], common: &Common) -> serde_json::Result<String> {
    if line == REQUEST.as_bytes() {
        return serde_json::to_string(&status(&common.shares()));
    }
    let reply = match line
        .strip_prefix(PREFIX.as_bytes())
        .map(serde_json::from_slice)
    {
        Some(Ok(request)) => command_reply(request, common),
        Some(Err(error)) => Reply::Error(format!("the request is malformed: {error}")),
        None => Reply::Error(format!(
            "this daemon answers the line {REQUEST:?}, and lines that begin with {PREFIX:?}"
        )),
    };
    serde_json::to_string(&reply)
}

fn command_reply(request: Request, common: &Common) -> Reply {
    match request {
        Request::List => {
            let shares = common.shares();
            let statuses = ask_all(&shares);
            let shares = shares.into_iter().zip(statuses).map(|(listed, status)| {
                let guests = status.ok().map(|status| status.guests.len() as u64);
                Listed { guests, ..listed }
            });
            Reply::Shares(shares.collect())
        }
        Request::Remove { tag, force: false } => {
            let listed = common.shares().into_iter().find(|one| one.tag == tag);
            // One that serves has its guests counted. Others have none.
            let serving = listed.filter(|one| one.state == "serving");
            match serving.map(|one| client::ask_within(&one.control, SHARE_TIMEOUT)) {
                Some(Err(error)) => Reply::Error(format!(
                    "it is not known whether share {tag:?} has guests: {error}; --force removes it"
                )),
                Some(Ok(status)) if !status.guests.is_empty() => Reply::Error(format!(
                    "share {tag:?} has {} guests; --force ends their connections",
                    status.guests.len()
                )),
                _ => common.run(Request::Remove { tag, force: false }),
            }
        }
        request => common.run(request),
    }
}

/// The status of all shares.
fn status(shares: &[Listed]) -> Status {
    let told = shares.iter().zip(ask_all(shares)).map(|(listed, told)| {
        told.unwrap_or_else(|reason| Status {
            tag: listed.tag.clone(),
            shared_dir: listed.shared_dir.display().to_string(),
            unavailable: Some(reason),
            ..Status::empty()
        })
    });
    Status {
        time_ns: clock::now(ClockId::Monotonic).max(0).cast_unsigned(),
        shares: Some(told.collect()),
        ..Status::empty()
    }
}

/// Asks each share's processes for their status, or says why there is none.
fn ask_all(shares: &[Listed]) -> Vec<Result<Status, String>> {
    let mut statuses = Vec::new();
    for some in shares.chunks(ASKED_AT_ONCE) {
        thread::scope(|scope| {
            let threads: Vec<_> = some
                .iter()
                .map(|listed| {
                    let ask = || ask(&listed.state, &listed.control);
                    thread::Builder::new().spawn_scoped(scope, ask)
                })
                .collect();
            statuses.extend(threads.into_iter().map(|thread| {
                match thread {
                    Ok(thread) => thread
                        .join()
                        .unwrap_or_else(|_| Err("it cannot be asked".to_owned())),
                    Err(error) => Err(format!("it cannot be asked: {error}")),
                }
            }));
        });
    }
    statuses
}

fn ask(state: &str, control: &Path) -> Result<Status, String> {
    match state {
        "serving" | "ending" => {
            client::ask_within(control, SHARE_TIMEOUT).map_err(|error| error.to_string())
        }
        state => Err(format!("it is {state}")),
    }
}
