//! The worker: the process that serves one guest. It alone maps the guest's memory and runs
//! threads.

use std::io::{self, PipeReader};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use gangplank_service::error_chain;
use log::{Level, LevelFilter};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Pid;
use thiserror::Error;

use super::{Assignment, FAILURE, end_with};
use crate::config::Config;
use crate::device::connection;
use crate::device::request::Handler;
use crate::passthrough::{Abilities, PassthroughFs, Share, ShareError};
use crate::sandbox::{self, Confined, ConfinedWorker};
use crate::session::Session;
use crate::session::handler::SessionHandler;
use crate::sys::process;

/// Why a worker does not serve its guest, or stops.
#[derive(Debug, Error)]
enum Error {
    /// The keeper cannot be watched.
    #[error("cannot tie the worker to its keeper")]
    Keeper(#[source] io::Error),
    /// The worker cannot be confined.
    #[error("cannot confine the worker")]
    Sandbox(#[from] sandbox::Error),
    /// The directory cannot be shared.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The first thread cannot be started.
    #[error("cannot start the worker's first thread")]
    Thread(#[source] io::Error),
    /// The connection failed, or the frontend broke the protocol.
    #[error(transparent)]
    Connection(#[from] connection::Error),
}

/// Serves the guest until it hangs up, and ends the process.
///
/// The calling process must have been cloned by `keeper` for this guest.
pub(super) fn run(assignment: Assignment, keeper: Pid, confined: Confined, config: &Config) -> ! {
    let (number, is_logged) = (assignment.number, assignment.is_logged);
    if !is_logged && log::max_level() <= LevelFilter::Info {
        // Of each connection in a storm, the log has only the errors.
        log::set_max_level(log::max_level().min(LevelFilter::Error));
    }
    let served = serve(&assignment, keeper, confined, config);
    // Tells the frontend now, not when the keeper closes the socket by its end.
    let _ = assignment.connection.shutdown(Shutdown::Both);
    match served {
        Ok(true) => process::exit(0),
        Ok(false) => {
            log::error!("serving guest {number} failed inside the daemon; please report this");
        }
        Err(error) => {
            let level = level_of(Level::Error, is_logged);
            log::log!(level, "guest {number} is dropped: {}", error_chain(&error));
        }
    }
    process::exit(FAILURE)
}

/// Returns whether serving ended without a panic.
fn serve(
    assignment: &Assignment,
    keeper: Pid,
    confined: Confined,
    config: &Config,
) -> Result<bool, Error> {
    end_with(keeper).map_err(Error::Keeper)?;
    let abilities = confined.abilities;
    let worker = confined.confine_worker()?;
    let Assignment {
        number,
        connection,
        is_logged,
        ..
    } = assignment;
    let (ended, ending) = io::pipe().map_err(Error::Thread)?;
    // On a thread that the C library knows (`process::clone_sharing_descriptors`).
    let served = thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name(format!("guest_{number}"))
            .spawn_scoped(scope, move || {
                let level = level_of(Level::Info, *is_logged);
                log::log!(level, "guest {number} has connected");
                let result = serve_guest(connection, worker, abilities, config);
                if result.is_ok() {
                    log::log!(level, "guest {number} has gone");
                }
                drop(ending);
                result
            })?;
        wait_for_stop(assignment, &ended);
        Ok(thread.join())
    });
    match served.map_err(Error::Thread)? {
        Ok(served) => served.map(|()| true),
        Err(_) => Ok(false),
    }
}

/// The level of a message that a storm of connections repeats.
fn level_of(level: Level, is_logged: bool) -> Level {
    match is_logged {
        true => level,
        false => Level::Debug,
    }
}

/// Shuts the connection down when the acceptor wants it to end. Returns then, or when `ended` is at
/// its end.
fn wait_for_stop(assignment: &Assignment, ended: &PipeReader) {
    loop {
        let mut ready = [
            PollFd::new(&assignment.stop, PollFlags::IN),
            PollFd::new(ended, PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) if ready[1].revents().is_empty() => {
                // The forwarder ends, also in the middle of a message, after the requests in flight.
                let _ = assignment.connection.shutdown(Shutdown::Both);
                return;
            }
            Ok(_) => return,
            Err(Errno::INTR) => {}
            Err(error) => {
                log::error!("cannot wait for the end of the daemon: {error}");
                return;
            }
        }
    }
}

fn serve_guest(
    connection: &UnixStream,
    worker: ConfinedWorker,
    abilities: Abilities,
    config: &Config,
) -> Result<(), Error> {
    let options = config.passthrough.clone();
    let share = Share::new(worker.root, worker.proc_self_fd, options, abilities)?;
    let session = Session::new(PassthroughFs::new(share));
    let handler: Arc<dyn Handler> =
        Arc::new(SessionHandler::new(session, config.device.lock_threads()));
    connection::serve(connection, &config.device, &handler)?;
    Ok(())
}
