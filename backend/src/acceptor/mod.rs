//! The acceptor: the confined process that accepts guests and never reads a byte from them.
//!
//! It forks a [`crate::keeper`] for each connection and counts them. Each guest thereby has an
//! address space, a descriptor table and threads of its own.

mod max_guests;

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use gangplank_service::rate_limited;
use gangplank_service::signals::{Signal, Signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, getpid, wait};
use thiserror::Error;

use crate::config::Config;
use crate::keeper;
use crate::sandbox::Confined;
use crate::sys::process::{self, Forked};

/// Pause before the next accept after one fails for lack of descriptors or memory.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// How long the daemon waits for requests in flight when it ends. A request on a dead file server
/// may never end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

pub use max_guests::HostLimits;

/// Why the daemon stops serving.
#[derive(Debug, Error)]
pub enum Error {
    /// The listening socket cannot be polled.
    #[error("cannot wait for connections")]
    Wait(#[source] io::Error),
    /// The signals cannot be read.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
}

/// A connected guest.
struct Guest {
    number: u64,
    keeper: Pid,
    /// The guest's connection. Shutting it down ends the worker after its requests in flight.
    connection: UnixStream,
}

/// The end of a process that the acceptor waited for.
struct Exited {
    process: Pid,
    status: WaitStatus,
}

/// Accepts guests on `listener` until a termination signal arrives or, with
/// `--exit-on-disconnect`, the last guest leaves. Then waits for the requests in flight.
///
/// The calling process must be single-threaded. In forked processes the function does not return.
///
/// # Errors
/// The listening socket or the signals fail. The failure of one guest is logged and ends that guest
/// alone.
pub fn accept_guests(
    listener: UnixListener,
    confined: Confined,
    max_guests: usize,
    config: &Config,
    signals: Signals,
) -> Result<(), Error> {
    // Another process may accept the connection between poll and accept.
    listener.set_nonblocking(true).map_err(Error::Wait)?;
    let acceptor = getpid();
    let mut guests: Vec<Guest> = Vec::new();
    let mut number = 0;
    loop {
        let mut ready = [
            PollFd::new(&listener, PollFlags::IN),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::Wait(error.into())),
        }
        let can_accept = !ready[0].revents().is_empty();
        let mut is_stopping = false;
        let mut has_exited = false;
        while let Some(signal) = signals.take().map_err(Error::Signals)? {
            is_stopping |= signal != Signal::SIGCHLD;
            has_exited |= signal == Signal::SIGCHLD;
        }
        if is_stopping {
            break;
        }
        if has_exited {
            reap(&mut guests);
            if config.exit_on_disconnect && number > 0 && guests.is_empty() {
                break;
            }
        }
        if !can_accept {
            continue;
        }
        let Some(connection) = accept(&listener) else {
            continue;
        };
        number += 1;
        if guests.len() >= max_guests {
            rate_limited!(
                error,
                "guest {number} is refused: {} guests are connected, the most that this daemon \
                 serves; raise --max-guests",
                guests.len()
            );
            continue;
        }
        match process::fork() {
            Ok(Forked::Parent(keeper)) => guests.push(Guest {
                number,
                keeper,
                connection,
            }),
            Ok(Forked::Child) => {
                // The keeper must hold nothing of the other guests.
                drop((listener, guests, signals));
                keeper::run(number, acceptor, connection, confined, config);
            }
            Err(error) => {
                rate_limited!(error, "cannot start a process for guest {number}: {error}")
            }
        }
    }
    end_all(guests, &signals);
    Ok(())
}

fn accept(listener: &UnixListener) -> Option<UnixStream> {
    use io::ErrorKind::{ConnectionAborted, WouldBlock};

    match listener.accept() {
        Ok((connection, _)) => Some(connection),
        Err(error) if matches!(error.kind(), WouldBlock | ConnectionAborted) => None,
        Err(error) => {
            rate_limited!(error, "cannot accept a guest's connection: {error}");
            thread::sleep(ACCEPT_RETRY_DELAY);
            None
        }
    }
}

/// Removes the guests whose keepers have ended.
fn reap(guests: &mut Vec<Guest>) {
    // Also workers that outlived their keepers: in a process namespace of its own, the acceptor is
    // their new parent.
    while let Some(exited) = next_exited() {
        for guest in guests.extract_if(.., |guest| guest.keeper == exited.process) {
            // The worker has usually done this.
            let _ = guest.connection.shutdown(Shutdown::Both);
            if let Some(signal) = exited.status.terminating_signal() {
                log::error!(
                    "the keeper of guest {} was ended by signal {signal}, and its worker with it",
                    guest.number
                );
            }
        }
    }
}

fn next_exited() -> Option<Exited> {
    match wait(WaitOptions::NOHANG) {
        Ok(Some((process, status))) => Some(Exited { process, status }),
        // CHILD: there is no other process.
        Ok(None) | Err(_) => None,
    }
}

/// Ends all guests' connections and waits for their requests in flight, for at most
/// [`SHUTDOWN_TIMEOUT`].
fn end_all(mut guests: Vec<Guest>, signals: &Signals) {
    for guest in &guests {
        // Fails for a guest that has already hung up.
        let _ = guest.connection.shutdown(Shutdown::Both);
    }
    let end = Instant::now() + SHUTDOWN_TIMEOUT;
    loop {
        while let Ok(Some(_)) = signals.take() {}
        reap(&mut guests);
        if guests.is_empty() {
            return;
        }
        let left = end.saturating_duration_since(Instant::now());
        let mut ready = [PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
        let polled = poll(&mut ready, Timespec::try_from(left).ok().as_ref());
        if left.is_zero() || polled.is_err_and(|error| error != Errno::INTR) {
            log::error!(
                "requests of {} guests are still in flight after {} s: ending without them",
                guests.len(),
                SHUTDOWN_TIMEOUT.as_secs()
            );
            return;
        }
    }
}
