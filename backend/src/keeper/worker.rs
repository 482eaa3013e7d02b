//! The worker: the process that serves one guest. It alone maps the guest's memory and runs
//! threads.

use std::io::{self, PipeReader, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use gangplank_service::{error_chain, rate_limited};
use log::Level;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use thiserror::Error;

use super::holding::hold_device;
use super::slow_requests::SlowRequests;
use super::{
    Assignment, DISCONNECTED, FAILURE, FAULT, Keeper, end_with, name_process, new_connection,
};
use crate::device::request::Handler;
use crate::device::{KeptSession, connection};
use crate::handover::channel::{Channel, Message};
use crate::passthrough::{self, PassthroughFs, Share, ShareError};
use crate::sandbox::{self, ConfinedWorker};
use crate::session::Session;
use crate::session::handler::SessionHandler;
use crate::state::arena::Arena;
use crate::state::device::DeviceState;
use crate::state::recovery;
use crate::sys::{process, thread as thread_state};
use crate::trace::Tracer;

/// How much longer than a session is kept the processes that may have it may take to answer. They
/// wait for the end of its old connection, and for requests that the storage has not answered.
const FIND_MARGIN: Duration = Duration::from_secs(10);

/// How often the session is looked for, if the processes that have it end, or are interrupted,
/// while they answer, or another acceptor does not know yet who has it: for five seconds at least.
const FIND_ATTEMPTS: usize = 100;

/// Attempts that may fail, or be refused.
const FIND_FAILURES: usize = 5;

/// The time between two attempts.
const FIND_PAUSE: Duration = Duration::from_millis(50);

/// Why a worker does not serve its guest, or stops.
#[derive(Debug, Error)]
enum Error {
    /// The keeper cannot be watched.
    #[error("cannot tie the worker to its keeper")]
    Keeper(#[source] io::Error),
    /// The descriptors of the worker before cannot be closed.
    #[error("cannot close the descriptors of the worker that died")]
    Descriptors(#[source] io::Error),
    /// What the frontend has sent is lost.
    #[error(
        "all processes of the daemon have ended, and descriptors that the guest's frontend has sent \
         were not held"
    )]
    Lost,
    /// The worker cannot be confined.
    #[error("cannot confine the worker")]
    Sandbox(#[from] sandbox::Error),
    /// The directory cannot be shared.
    #[error("cannot share {path:?}")]
    Share {
        /// The directory, as the operator has named it.
        path: PathBuf,
        /// The cause.
        source: ShareError,
    },
    /// The guest cannot hear of changes.
    #[error("cannot make what wakes the thread that waits for changes")]
    Events(#[source] io::Error),
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
            Self::Lost => false,
            _ => true,
        }
    }
}

/// Serves the guest until it hangs up, and ends the process.
///
/// The calling process must have been cloned by `keeper`.
///
/// `passing` are the descriptors that the keeper has beside those that it has always.
pub(super) fn run(keeper: &Keeper<'_>, passing: &[Option<BorrowedFd<'_>>]) -> ! {
    let assignment = &keeper.assignment;
    let (number, is_logged) = (assignment.number, assignment.is_logged);
    name_process("worker", number);
    end_by_panic(&keeper.arena);
    let served = serve(keeper, passing);
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

/// From now on, a panic of any thread ends the process at once, after its message, by a signal that
/// may leave a core file. Nothing is unwound: the next worker needs the descriptors that
/// destructors would close.
fn end_by_panic(arena: &Arc<Arena>) {
    let arena = Arc::clone(arena);
    std::panic::set_hook(Box::new(move |panic| {
        // The default hook makes calls for a backtrace (RUST_BACKTRACE) that are not on the list.
        let thread = thread::current();
        let name = thread.name().unwrap_or("without a name");
        let _ = writeln!(io::stderr(), "\nthread '{name}' {panic}");
        recovery::note_panic(&arena);
        process::abort()
    }));
}

/// Returns whether serving ended without a panic.
fn serve(keeper: &Keeper<'_>, passing: &[Option<BorrowedFd<'_>>]) -> Result<bool, Error> {
    end_with(keeper.process).map_err(Error::Keeper)?;
    let assignment = &keeper.assignment;
    let Assignment {
        number, is_logged, ..
    } = assignment;
    let level = level_of(Level::Info, *is_logged);
    if recovery::is_given_away(&keeper.arena) {
        // The connection is another process's.
        process::exit(0)
    }
    if recovery::is_ending(&keeper.arena) {
        log::log!(level, "guest {number} has gone");
        return Ok(true);
    }
    let worker = keeper.confined.confine_worker()?;
    forget_lost(keeper)?;
    if recovery::is_after_death(&keeper.arena) {
        let own = [&worker.root, &worker.proc_self_fd].map(AsRawFd::as_raw_fd);
        keeper.sweep(passing, &own).map_err(Error::Descriptors)?;
    }
    let is_complete = keeper.arena.header().is_incomplete.load(Ordering::Acquire) == 0;
    let is_new_to_holder =
        recovery::is_after_stop(&keeper.arena) || recovery::is_after_disconnection(&keeper.arena);
    if is_new_to_holder && is_complete {
        hold_again(&keeper.arena);
    }
    let (ended, ending) = io::pipe().map_err(Error::Thread)?;
    // On a thread that the C library knows (`process::clone_sharing_descriptors`).
    let served = thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name(format!("guest_{number}"))
            .spawn_scoped(scope, move || {
                keep_core_files_private(keeper);
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
        wait_for_stop(keeper, &ended);
        Ok(thread.join())
    });
    match served.map_err(Error::Thread)? {
        Ok(served) => served.map(|()| true),
        Err(_) => Ok(false),
    }
}

/// Has `fs.suid_dumpable` decide about core files before the first request: the working directory,
/// where the kernel writes them otherwise, is the share. A daemon without several users is one of
/// that user's programs, and its core files are as theirs.
fn keep_core_files_private(keeper: &Keeper<'_>) {
    if keeper.confined.abilities.can_change_credentials
        && let Err(error) = thread_state::apply_suid_dumpable()
    {
        log::debug!("cannot apply fs.suid_dumpable to core files: {error}");
    }
}

/// Makes the state one without the descriptors that were lost with all processes of the daemon.
fn forget_lost(keeper: &Keeper<'_>) -> Result<(), Error> {
    let arena = &keeper.arena;
    let is_incomplete = arena.header().is_incomplete.load(Ordering::Acquire) != 0;
    let Some(arrived) = keeper.arrived.as_ref().filter(|_| is_incomplete) else {
        return Ok(());
    };
    let mut needed = recovery::descriptors(arena).into_iter();
    if needed.any(|number| !arrived.contains(&number)) {
        return Err(Error::Lost);
    }
    let lost = passthrough::forget_lost(arena, arrived);
    let number = keeper.assignment.number;
    if lost != passthrough::Lost::default() {
        log::warn!(
            "guest {number}: with all processes of the daemon, {} inodes that nothing leads to and \
             {} locks were lost",
            lost.inodes,
            lost.locks
        );
    }
    Ok(())
}

/// After a reload, another supervisor has everything held that the one before had held.
fn hold_again(arena: &Arc<Arena>) {
    let Some(holder) = arena.holder() else {
        return;
    };
    hold_device(holder, &DeviceState::load(arena).unwrap_or_default());
    passthrough::hold_again(arena);
}

/// The level of a message on a connection's beginning or end, which a storm of connections
/// repeats. All else that a worker says of its guest has limits of its own.
fn level_of(level: Level, is_logged: bool) -> Level {
    match is_logged {
        true => level,
        false => Level::Debug,
    }
}

/// Shuts the connection down when the acceptor wants it to end. Returns then, or when `ended` is at
/// its end.
///
/// If the guest is held, its connection outlives the daemon, and the acceptor never wants it to
/// end: it has died then, and this process dies next.
///
/// Meanwhile, tells of requests that take long.
fn wait_for_stop(keeper: &Keeper<'_>, ended: &PipeReader) {
    let (assignment, arena) = (&keeper.assignment, &keeper.arena);
    let is_held = arena.holder().is_some();
    let mut slow = SlowRequests::default();
    let interval = SlowRequests::interval(keeper.config.storage.as_ref());
    let interval = Timespec::try_from(interval).ok();
    loop {
        let mut ready = [
            PollFd::new(ended, PollFlags::IN),
            // Messages are for the keeper.
            PollFd::new(&assignment.control, PollFlags::RDHUP),
        ];
        let ready = match is_held {
            true => &mut ready[..1],
            false => &mut ready[..],
        };
        match poll(ready, interval.as_ref()) {
            Ok(0) => slow.look(assignment.number, arena),
            Ok(_) if ready[0].revents().is_empty() => {
                // The forwarder ends, also in the middle of a message, after the requests in
                // flight.
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
    );
    let share = share.map_err(|source| Error::Share {
        path: config.shared_dir.clone(),
        source,
    })?;
    let file_system = PassthroughFs::new(share);
    if keeper.arena.header().is_incomplete.load(Ordering::Acquire) != 0 {
        let (files, failed) = file_system.reopen_lost();
        let number = keeper.assignment.number;
        log::info!(
            "guest {number} goes on: {} of its {files} open files were opened again",
            files - failed
        );
        if failed > 0 {
            log::error!("{failed} open files of guest {number} cannot be opened again");
        }
    }
    let mut session = Session::continued(file_system, &keeper.arena);
    // A process that wakes watchers must not change anything, whatever this program's options are.
    if config.passthrough.events || keeper.arena.header().waker.load(Ordering::Relaxed) != 0 {
        session = session.with_events().map_err(Error::Events)?;
    }
    let tracer = Tracer::start(keeper.assignment.number).map_err(Error::Thread)?;
    let tracer = tracer.map(Arc::new);
    let lock_threads = config.device.lock_threads();
    let handler: Arc<dyn Handler> =
        Arc::new(SessionHandler::new(session, lock_threads, tracer.clone()));
    let kept = Kept {
        keeper,
        tracer: tracer.as_deref(),
    };
    let keeps = !config.keep_session().is_zero();
    let guest = connection::Guest {
        number: keeper.assignment.number,
        arena: &keeper.arena,
        replies: &keeper.replies,
        kept: keeps.then_some(&kept),
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

/// How the guest's session outlives its connection.
struct Kept<'a> {
    keeper: &'a Keeper<'a>,
    tracer: Option<&'a Tracer>,
}

impl Kept<'_> {
    fn end(&self, status: u8) -> ! {
        if let Some(tracer) = self.tracer {
            tracer.close();
        }
        process::exit(status)
    }

    /// Gives the connection to whoever answers, if anybody does.
    fn ask(&self, memory: BorrowedFd<'_>, frontend: BorrowedFd<'_>) -> io::Result<Found> {
        let control = &self.keeper.assignment.control;
        let (ours, theirs) = Channel::pair()?;
        control.send(&Message::Inflight, &[memory, theirs.as_fd()])?;
        drop(theirs);
        let limit = self.keeper.config.keep_session() + FIND_MARGIN;
        let limit = Timespec::try_from(limit).ok();
        let mut ready = [
            PollFd::new(&ours, PollFlags::IN),
            // Its next message waits.
            PollFd::from_borrowed_fd(frontend, PollFlags::RDHUP),
        ];
        while let Err(Errno::INTR) = poll(&mut ready, limit.as_ref()) {}
        let [is_answered, has_hung_up] = ready.map(|ready| !ready.revents().is_empty());
        if has_hung_up {
            return Ok(Found::HungUp);
        }
        if !is_answered {
            return Ok(Found::Nobody);
        }
        match ours.receive(Some(Instant::now()))? {
            // It has ended, and another one may have the session.
            None => Ok(Found::Closed),
            Some(arrived) if arrived.message == Message::Take => {
                new_connection::give(&ours, &self.keeper.arena, frontend)?;
                Ok(Found::Given)
            }
            Some(_) => Ok(Found::Nobody),
        }
    }
}

/// What has become of a connection.
enum Found {
    /// Others have it.
    Given,
    /// Nobody wants it.
    Nobody,
    /// Whoever was asked has ended.
    Closed,
    /// It has ended.
    HungUp,
}

impl KeptSession for Kept<'_> {
    fn announce(&self, memory: BorrowedFd<'_>) {
        // If this fails, the acceptor has ended, and the next one asks the keeper.
        let control = &self.keeper.assignment.control;
        let _ = control.send(&Message::Inflight, &[memory]);
    }

    fn find(&self, memory: BorrowedFd<'_>, frontend: BorrowedFd<'_>) -> bool {
        let mut failures = 0;
        for _ in 0..FIND_ATTEMPTS {
            match self.ask(memory, frontend) {
                // The connection is another process's now.
                Ok(Found::Given) => self.end(0),
                Ok(Found::Nobody) => return true,
                Ok(Found::HungUp) => return false,
                Ok(Found::Closed) => {}
                Err(error) => {
                    rate_limited!(
                        warn,
                        "guest {} does not find the session that it may have had: {error}",
                        self.keeper.assignment.number
                    );
                    failures += 1;
                    if failures == FIND_FAILURES {
                        break;
                    }
                }
            }
            thread::sleep(FIND_PAUSE);
        }
        true
    }

    fn is_kept(&self) -> bool {
        let control = &self.keeper.assignment.control;
        // Shut down if the acceptor wants the connection to end.
        let mut ready = [PollFd::new(control, PollFlags::RDHUP)];
        matches!(poll(&mut ready, Some(&Timespec::default())), Ok(0))
    }

    fn leave(&self) -> ! {
        self.end(DISCONNECTED)
    }
}
