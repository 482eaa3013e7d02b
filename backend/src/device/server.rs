//! Serves the daemon's socket: each connection is one guest with its own device and handler.

use std::io;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gangplank_service::error_chain;
use gangplank_service::rate_limited;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::connection;
use super::options::Options;
use super::request::Handler;

/// Pause before the next accept after one fails for lack of descriptors or memory.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// How long the daemon waits for requests in flight when it ends. A request on a dead file server
/// may never end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the daemon stops serving.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The eventfd that signals the end of a guest cannot be created.
    #[error("cannot create the eventfd that signals the end of a guest")]
    Event(#[source] io::Error),
    /// The listening socket cannot be polled.
    #[error("cannot wait for connections")]
    Wait(#[source] io::Error),
}

/// When to stop serving.
#[derive(Debug, Clone, Copy)]
pub struct StopWhen<'a> {
    /// Becomes readable when the operator stops the daemon.
    pub stop: BorrowedFd<'a>,
    /// Whether to stop when the last guest leaves.
    pub last_guest_leaves: bool,
}

/// Signals to the main thread which guests have left.
struct ExitedGuests {
    event: OwnedFd,
    numbers: Mutex<Vec<u64>>,
}

/// A connected guest.
struct Guest {
    number: u64,
    socket: UnixStream,
    thread: JoinHandle<()>,
}

/// Serves every guest that connects to `listener`, with a handler from `new_handler`, until
/// `stop_when` holds. Then finishes the requests in flight and frees everything the guests held.
///
/// # Errors
/// The listening socket or the eventfd fails. An error of one guest is logged and ends that guest
/// alone.
pub fn serve(
    listener: &UnixListener,
    options: &Options,
    new_handler: impl Fn() -> Arc<dyn Handler>,
    stop_when: StopWhen<'_>,
) -> Result<(), Error> {
    // Another process may accept the connection between poll and accept.
    listener.set_nonblocking(true).map_err(Error::Wait)?;
    let exited = Arc::new(ExitedGuests::new().map_err(Error::Event)?);
    let mut guests: Vec<Guest> = Vec::new();
    let mut number = 0;
    let result = loop {
        let mut ready = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::from_borrowed_fd(stop_when.stop, PollFlags::IN),
            PollFd::new(&exited.event, PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => break Err(Error::Wait(error.into())),
        }
        let [can_accept, is_stopping, has_exited] = ready.map(|ready| !ready.revents().is_empty());
        if is_stopping {
            break Ok(());
        }
        if has_exited {
            exited.reap(&mut guests);
            if stop_when.last_guest_leaves && guests.is_empty() {
                break Ok(());
            }
        }
        if can_accept {
            number += 1;
            let Some(socket) = accept(listener) else {
                continue;
            };
            if guests.len() >= options.max_guests {
                rate_limited!(
                    error,
                    "guest {number} is refused: {} guests are connected, which is the most that \
                     the limit of open descriptors allows; raise --rlimit-nofile",
                    guests.len()
                );
                continue;
            }
            guests.extend(start(socket, options, number, new_handler(), &exited));
        }
    };
    for guest in &guests {
        // Fails for a guest that has already hung up.
        let _ = guest.socket.shutdown(Shutdown::Both);
    }
    exited.wait_for_all(guests);
    result
}

fn accept(listener: &UnixListener) -> Option<UnixStream> {
    use io::ErrorKind::{ConnectionAborted, WouldBlock};

    match listener.accept() {
        Ok((socket, _)) => Some(socket),
        Err(error) if matches!(error.kind(), WouldBlock | ConnectionAborted) => None,
        Err(error) => {
            rate_limited!(error, "cannot accept a guest's connection: {error}");
            thread::sleep(ACCEPT_RETRY_DELAY);
            None
        }
    }
}

fn start(
    socket: UnixStream,
    options: &Options,
    number: u64,
    handler: Arc<dyn Handler>,
    exited: &Arc<ExitedGuests>,
) -> Option<Guest> {
    let options = options.clone();
    let guard = ExitGuard {
        number,
        exited: Arc::clone(exited),
    };
    let started = socket.try_clone().and_then(|served| {
        thread::Builder::new()
            .name(format!("guest_{number}"))
            .spawn(move || {
                let guard = guard;
                serve_guest(guard.number, &served, &options, &handler);
            })
    });
    match started {
        Ok(thread) => Some(Guest {
            number,
            socket,
            thread,
        }),
        Err(error) => {
            rate_limited!(error, "cannot start a thread for guest {number}: {error}");
            None
        }
    }
}

fn serve_guest(number: u64, socket: &UnixStream, options: &Options, handler: &Arc<dyn Handler>) {
    rate_limited!(info, "guest {number} has connected");
    match connection::serve(socket, options, handler) {
        Ok(()) => rate_limited!(info, "guest {number} has gone"),
        Err(error) => rate_limited!(error, "guest {number} is dropped: {}", error_chain(&error)),
    }
    // Tells the frontend now, not when the main thread joins this one and drops the socket.
    let _ = socket.shutdown(Shutdown::Both);
}

/// Reports the end of a guest's thread when it is dropped, after a panic as well.
struct ExitGuard {
    number: u64,
    exited: Arc<ExitedGuests>,
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        self.exited.add(self.number);
    }
}

impl ExitedGuests {
    fn new() -> io::Result<Self> {
        Ok(Self {
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            numbers: Mutex::default(),
        })
    }

    fn add(&self, number: u64) {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.push(number);
        if let Err(error) = rustix::io::write(&self.event, &1u64.to_ne_bytes()) {
            log::error!("cannot signal the end of guest {number}: {error}");
        }
    }

    /// Joins the threads of guests that have left.
    fn reap(&self, guests: &mut Vec<Guest>) {
        // Resets the event. The list of numbers says which guests have left.
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        let gone =
            std::mem::take(&mut *self.numbers.lock().unwrap_or_else(PoisonError::into_inner));
        guests
            .extract_if(.., |guest| gone.contains(&guest.number))
            .for_each(join);
    }

    /// Waits for all guests to end, for at most [`SHUTDOWN_TIMEOUT`].
    fn wait_for_all(&self, mut guests: Vec<Guest>) {
        let end = Instant::now() + SHUTDOWN_TIMEOUT;
        while !guests.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            let mut ready = [PollFd::new(&self.event, PollFlags::IN)];
            let polled = poll(&mut ready, Timespec::try_from(left).ok().as_ref());
            if left.is_zero() || polled.is_err_and(|error| error != rustix::io::Errno::INTR) {
                log::error!(
                    "requests of {} guests are still in flight after {} s: ending without them",
                    guests.len(),
                    SHUTDOWN_TIMEOUT.as_secs()
                );
                return;
            }
            self.reap(&mut guests);
        }
    }
}

fn join(guest: Guest) {
    if guest.thread.join().is_err() {
        log::error!(
            "serving guest {} failed inside the daemon; please report this",
            guest.number
        );
    }
}
