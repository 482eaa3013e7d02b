//! The worker: the process that serves one guest. It alone maps the guest's memory and runs
//! threads.

use std::io::{self, PipeReader};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::thread;

use gangplank_service::error_chain;
use log::{Level, LevelFilter};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use thiserror::Error;

use super::{Assignment, FAILURE, FAULT, Keeper, end_with};
use crate::device::connection;
use crate::device::request::Handler;
use crate::handover::channel::Channel;
use crate::passthrough::{self, PassthroughFs, Share, ShareError};
use crate::sandbox::{self, ConfinedWorker};
use crate::session::Session;
use crate::session::handler::SessionHandler;
use crate::state::recovery;
use crate::sys::process;
use crate::trace::Tracer;

/// Why a worker does not serve its guest, or stops.
#[derive(Debug, Error)]
enum Error {
    /// The keeper cannot be watched.
    #[error("cannot tie the worker to its keeper")]
    Keeper(#[source] io::Error),
    /// The descriptors of the worker before cannot be closed.
    #[error("cannot close the descriptors of the worker that died")]
    Descriptors(#[source] io::Error),
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

impl Error {
    /// Whether the next worker may fare better: nothing that the guest did is the reason.
    const fn is_own(&self) -> bool {
        match self {
            Self::Connection(error) => error.is_own(),
            _ => true,
        }
    }
}

/// Serves the guest until it hangs up, and ends the process.
///
/// The calling process must have been cloned by `keeper`.
///
/// `successor` is the descriptor that the keeper has beside those that it has always.
pub(super) fn run(keeper: &Keeper<'_>, successor: Option<&Channel>) -> ! {
    let assignment = &keeper.assignment;
    let (number, is_logged) = (assignment.number, assignment.is_logged);
    if !is_logged && log::max_level() <= LevelFilter::Info {
        // Of each connection in a storm, the log has only the errors.
        log::set_max_level(log::max_level().min(LevelFilter::Error));
    }
    end_by_panic();
    let served = serve(keeper, successor);
    match served {
        Ok(true) => {
            end_connection(assignment);
            process::exit(0)
        }
        // A panic ends the process before.
        Ok(false) => process::exit(FAULT),
        Err(error) if error.is_own() && recovery::is_after_death(&keeper.arena) => {
            log::error!("cannot go on with guest {number}: {}", error_chain(&error));
            process::exit(FAULT)
        }
        Err(error) => {
            end_connection(assignment);
            let level = level_of(Level::Error, is_logged);
            log::log!(level, "guest {number} is dropped: {}", error_chain(&error));
        }
    }
    process::exit(FAILURE)
}

/// Tells the frontend now, not when the keeper closes the socket by its end.
fn end_connection(assignment: &Assignment) {
    let _ = assignment.connection.shutdown(Shutdown::Both);
}

/// From now on, a panic of any thread ends the process at once, after its message. Nothing is
/// unwound: the next worker needs the descriptors that destructors would close.
fn end_by_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        process::exit(FAULT)
    }));
}

/// Returns whether serving ended without a panic.
fn serve(keeper: &Keeper<'_>, successor: Option<&Channel>) -> Result<bool, Error> {
    end_with(keeper.process).map_err(Error::Keeper)?;
    let worker = keeper.confined.confine_worker()?;
    if recovery::is_after_death(&keeper.arena) {
        let own = [&worker.root, &worker.proc_self_fd].map(AsRawFd::as_raw_fd);
        let kept = recovery::descriptors(&keeper.arena).into_iter();
        let successor = successor.map(|channel| channel.as_fd().as_raw_fd());
        let kept = kept.chain(keeper.descriptors.iter().copied()).chain(own);
        let kept = kept.chain(successor);
        passthrough::correct(&keeper.arena, kept).map_err(Error::Descriptors)?;
    }
    let assignment = &keeper.assignment;
    let Assignment {
        number, is_logged, ..
    } = assignment;
    let (ended, ending) = io::pipe().map_err(Error::Thread)?;
    // On a thread that the C library knows (`process::clone_sharing_descriptors`).
    let served = thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name(format!("guest_{number}"))
            .spawn_scoped(scope, move || {
                let level = level_of(Level::Info, *is_logged);
                if !recovery::is_after_death(&keeper.arena) {
                    log::log!(level, "guest {number} has connected");
                }
                let result = serve_guest(keeper, worker);
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
            // Messages are for the keeper.
            PollFd::new(&assignment.control, PollFlags::RDHUP),
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

fn serve_guest(keeper: &Keeper<'_>, worker: ConfinedWorker) -> Result<(), Error> {
    let config = keeper.config;
    let options = config.passthrough.clone();
    let abilities = keeper.confined.abilities;
    let share = Share::new(
        worker.root,
        worker.proc_self_fd,
        options,
        abilities,
        Arc::clone(&keeper.arena),
    )?;
    let session = Session::continued(PassthroughFs::new(share), &keeper.arena);
    let tracer = Tracer::start(keeper.assignment.number).map_err(Error::Thread)?;
    let tracer = tracer.map(Arc::new);
    let lock_threads = config.device.lock_threads();
    let handler: Arc<dyn Handler> =
        Arc::new(SessionHandler::new(session, lock_threads, tracer.clone()));
    let guest = connection::Guest {
        number: keeper.assignment.number,
        arena: &keeper.arena,
    };
    let served = connection::serve(
        &keeper.assignment.connection,
        &config.device,
        &handler,
        guest,
    );
    if let Some(tracer) = tracer {
        tracer.close();
    }
    Ok(served?)
}
