//! The keeper: the process that starts one guest's workers and outlives each of them.
//!
//! A worker shares the keeper's descriptor table and the memory of the guest's state
//! ([`crate::state`]). So when a worker dies, whatever of, its descriptors stay open and its state
//! stays readable, and the next worker goes on. The keeper reads neither guest memory nor messages.
//!
//! ```text
//!            ┌── starts ──> worker ──┬─ ends: the guest has gone, or broke the rules ──> keeper ends
//! keeper ────┤                       ├─ ends: the connection is lost ──> keeper waits for the next
//!            └──── next <── dies ────┘ ten times within a minute ──> keeper ends
//! ```
//!
//! If only the connection is lost, of a frontend that keeps its requests in flight, the keeper
//! waits a while for the frontend's next connection (`disconnected.rs`, `new_connection.rs`).
//!
//! A keeper has no acceptor of its own: it ends when its guest has gone, or when the acceptor shuts
//! the channel between them down or no process has the other end any more. So it outlives an
//! acceptor that dies while the supervisor lives.
//!
//! At a reload ([`crate::handover`]), a keeper of the new program takes the guest over: this one
//! stops its worker, sends everything that it holds, and waits to be killed. If its successor fails
//! instead, it starts the next worker.

pub(crate) mod deaths;
mod disconnected;
mod ended;
mod handing_over;
mod holding;
mod new_connection;
mod slow_requests;
mod successor;
mod sweep;
mod worker;

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gangplank_service::signals::{self, Signals};
use gangplank_service::{error_chain, logging, rate_limited};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, Resource, Signal, WaitOptions, getpid, getppid, getrlimit, kill_process,
    set_parent_process_death_signal, waitpid,
};

use self::deaths::{Deaths, Verdict};
use self::disconnected::{Claim, Waited};
use self::ended::{Ended, ended, ended_by};
use self::holding::hold;
pub use self::successor::{Succession, take_over};
use self::sweep::passing;
use crate::config::Config;
use crate::device::reply_pipe::ReplyPipe;
use crate::handover::channel::{Channel, Message};
use crate::sandbox::{Confined, ConfinedKeeper};
use crate::state::arena::{Arena, Limits};
use crate::state::recovery;
use crate::sys::process::{self, Forked};

/// Exit status of a keeper or worker that could not do its work. The log says why.
const FAILURE: u8 = 1;

/// Exit status of a worker that could not start again after a death: `EX_SOFTWARE` of sysexits.h.
/// A panic ends a worker by SIGABRT.
const FAULT: u8 = 70;

/// Exit status of a worker that leaves the session to the next one, since the connection is lost:
/// `EX_TEMPFAIL` of sysexits.h.
const DISCONNECTED: u8 = 75;

/// How long a worker may take for the requests in flight when the connection is to end: longer than
/// the acceptor waits for it, and than the supervisor, which then ends both.
const END_TIMEOUT: Duration = Duration::from_secs(12);

/// For how long a keeper tries to start a worker while the host has no room for one.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How often a keeper looks whether a worker that follows a death has got so far that it serves.
const SETTLING: Duration = Duration::from_millis(5);

/// The guest that a keeper and its workers are for.
#[derive(Debug)]
pub struct Assignment {
    /// The guest's number in the log.
    pub number: u64,
    /// The connection to the guest's frontend.
    pub connection: UnixStream,
    /// Shut down by the acceptor when it wants the connection to end. By a message, it has the
    /// keeper hand the guest over.
    pub control: Channel,
    /// Whether the beginning and the end of the connection are logged.
    pub is_logged: bool,
    /// The channel by which the supervisor has descriptors held, if it does.
    pub holder: Option<Channel>,
}

/// What all workers of a guest begin with.
struct Keeper<'a> {
    assignment: Assignment,
    process: Pid,
    confined: ConfinedKeeper,
    config: &'a Config,
    arena: Arc<Arena>,
    /// SIGCHLD, by a descriptor that is open before the first worker starts.
    signals: Signals,
    /// By what replies go to the frontend.
    replies: ReplyPipe,
    /// The keeper's own descriptors. Every worker has them.
    descriptors: Vec<RawFd>,
    /// Those of the guest that have arrived, if that are not all that it had.
    arrived: Option<HashSet<RawFd>>,
    /// The last worker has ended because the connection is lost, which is not noted yet.
    is_disconnected: bool,
}

/// Serves the guest by one worker after another until the guest has gone, and ends the process.
///
/// The calling process must have been forked for this guest.
pub fn run(assignment: Assignment, confined: Confined, config: &Config) -> ! {
    let number = assignment.number;
    logging::set_guest(number);
    match Keeper::new(assignment, confined, config) {
        Ok(keeper) => {
            let status = keeper.keep();
            // Without destructors: a worker may own the same descriptors.
            process::exit(status)
        }
        Err(error) => {
            log::error!("cannot keep guest {number}: {error}");
            process::exit(FAILURE)
        }
    }
}

impl<'a> Keeper<'a> {
    fn new(
        mut assignment: Assignment,
        confined: Confined,
        config: &'a Config,
    ) -> Result<Self, String> {
        name_process("keeper", assignment.number);
        let arena = Arena::new(limits(config))
            .map_err(|error| format!("its state cannot be mapped: {error}"))?;
        let confined = confined
            .confine_keeper(None)
            .map_err(|error| error_chain(&error).to_string())?;
        let signals = child_signals().map_err(|error| error.to_string())?;
        let replies = ReplyPipe::new().map_err(|error| error.to_string())?;
        let holder = assignment.holder.take();
        hold(
            assignment.number,
            &assignment.connection,
            holder,
            &arena,
            &confined,
        );
        let descriptors = confined
            .descriptors()
            .map_err(|error| error_chain(&error).to_string())?;
        Ok(Self {
            assignment,
            process: getpid(),
            confined,
            config,
            arena,
            signals,
            replies,
            descriptors,
            arrived: None,
            is_disconnected: false,
        })
    }

    /// Returns the status with which the keeper ends.
    fn keep(mut self) -> u8 {
        let number = self.assignment.number;
        let mut deaths = Deaths::new(self.config.max_crashes);
        let (mut successor, mut claim) = (None, None);
        // What the acceptor of the next program does not know.
        self.announce();
        loop {
            if self.is_without_connection() {
                match self.wait_for_frontend(&mut successor, &mut claim) {
                    Ok(Waited::Reconnected) => {}
                    Ok(Waited::Over(status)) => return status,
                    Err(error) => {
                        log::error!("cannot wait for the frontend of guest {number}: {error}");
                        return FAILURE;
                    }
                }
            }
            let Some(worker) = self.start_worker(successor.as_ref(), claim.as_ref()) else {
                return FAILURE;
            };
            let begun = Instant::now();
            let mut death = match self.watch(worker, &mut successor, &mut claim) {
                Ok(Ended::InOrder(status)) => return status,
                Ok(Ended::Stopped) => continue,
                Ok(Ended::Disconnected) => {
                    self.is_disconnected = true;
                    continue;
                }
                Ok(Ended::Died(death)) => death,
                Err(error) => {
                    log::error!("cannot wait for the worker of guest {number}: {error}");
                    return FAILURE;
                }
            };
            death.signal = recovery::note_death(&self.arena, death.signal);
            let ended = ended_by(number, death);
            let count = self.arena.header().deaths.load(Ordering::Relaxed);
            match deaths.add(Instant::now(), begun.elapsed()) {
                Verdict::RestartAfter(pause) => {
                    log::error!("{ended}; its death {count}, another worker goes on");
                    if self.is_stopped_within(pause) {
                        return FAILURE;
                    }
                }
                Verdict::GiveUp => {
                    log::error!("{ended}");
                    log::error!(
                        "guest {number} is dropped: its workers died {} times within a minute, the \
                         most that --max-crashes permits; please report this with the log before \
                         it, and connect the guest again",
                        self.config.max_crashes
                    );
                    return FAILURE;
                }
            }
        }
    }

    /// Clones the next worker. Tries again for [`START_LIMIT`] while the host has no memory, or
    /// permits no process more: a shortage that others may have made must not cost the guest its
    /// session. `None` if the keeper is to end, which is logged.
    fn start_worker(&self, successor: Option<&Channel>, claim: Option<&Claim>) -> Option<Pid> {
        let number = self.assignment.number;
        let begun = Instant::now();
        // Only for the pauses.
        let mut failures = Deaths::new(usize::MAX);
        for attempt in 1_u32.. {
            let error = match process::clone_sharing_descriptors() {
                Ok(Forked::Child) => worker::run(self, &passing(successor, claim)),
                Ok(Forked::Parent(worker)) => {
                    if attempt > 1 {
                        let seconds = begun.elapsed().as_secs_f64();
                        log::warn!(
                            "the worker of guest {number} was started at attempt {attempt}, after \
                             {seconds:.1} s"
                        );
                    }
                    return Some(worker);
                }
                Err(error) => error,
            };
            let is_short = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM));
            let verdict = failures.add(Instant::now(), Duration::ZERO);
            match verdict {
                Verdict::RestartAfter(pause) if is_short && begun.elapsed() < START_LIMIT => {
                    rate_limited!(
                        error,
                        "cannot start the worker of guest {number}, attempt {attempt}: {error}; \
                         trying again"
                    );
                    if self.is_stopped_within(pause) {
                        return None;
                    }
                }
                _ => {
                    log::error!(
                        "guest {number} is dropped: its worker cannot be started, at attempt \
                         {attempt}: {error}"
                    );
                    return None;
                }
            }
        }
        None
    }

    /// Waits until the worker ends, and hands the guest over if the acceptor wants that.
    fn watch(
        &self,
        worker: Pid,
        successor: &mut Option<Channel>,
        claim: &mut Option<Claim>,
    ) -> io::Result<Ended> {
        // Set when the connection is to end.
        let mut deadline: Option<Instant> = None;
        loop {
            // A worker that follows a death first closes all descriptors that it does not know, so
            // that none must arrive meanwhile.
            let is_settled = !recovery::is_after_death(&self.arena);
            let control = (deadline.is_none() && is_settled).then_some(&self.assignment.control);
            let waited = [Some(self.signals.as_fd())]
                .into_iter()
                .chain([control.map(AsFd::as_fd)])
                .chain([successor.as_ref().map(AsFd::as_fd)]);
            let waited: Vec<_> = waited.collect();
            let mut ready: Vec<_> = waited
                .iter()
                .flatten()
                .map(|descriptor| PollFd::from_borrowed_fd(*descriptor, PollFlags::IN))
                .collect();
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return self.end(worker);
            }
            // The storage may keep the worker from ending, and a guest that is handed over is given
            // no connection meanwhile.
            if successor.is_some() || recovery::is_leaving(&self.arena) {
                claim.iter_mut().for_each(Claim::wait_longer);
            }
            let late = |claim: &mut Claim| claim.deadline <= Instant::now();
            if let Some(claim) = claim.take_if(late) {
                self.refuse(&claim);
            }
            let claimed = claim.as_ref().map(|claim| claim.deadline);
            let claimed = claimed.map(|end| end.saturating_duration_since(Instant::now()));
            let limit = left.into_iter().chain((!is_settled).then_some(SETTLING));
            let limit = limit.chain(claimed);
            let limit = limit.min().and_then(|limit| Timespec::try_from(limit).ok());
            match poll(&mut ready, limit.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut ready = ready.iter().map(|ready| !ready.revents().is_empty());
            let [has_signal, is_told, is_asked] = [0, 1, 2]
                .map(|index: usize| waited[index].is_some() && ready.next().unwrap_or_default());
            if has_signal {
                while self.signals.take()?.is_some() {}
                match waitpid(Some(worker), WaitOptions::NOHANG) {
                    Ok(Some((_, status))) => return Ok(ended(status)),
                    Ok(None) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if is_told && !self.hear(successor, claim)? {
                if self.arena.holder().is_some() {
                    return self.leave(worker);
                }
                // The worker is told as well.
                deadline = Some(Instant::now() + END_TIMEOUT);
            }
            if is_asked && let Some(channel) = successor.take() {
                match channel.receive(None) {
                    Ok(Some(arrived)) if arrived.message == Message::Take => {
                        return self.hand_over(Some(worker), &channel, claim.as_ref());
                    }
                    // The successor has gone.
                    _ => {}
                }
            }
        }
    }

    /// Takes the acceptor's next message. Returns false if the connection is to end.
    fn hear(&self, successor: &mut Option<Channel>, claim: &mut Option<Claim>) -> io::Result<bool> {
        let arrived = match self.assignment.control.receive(None) {
            // The table of descriptors is full, or it is no message of this program.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                rate_limited!(
                    warn,
                    "guest {}: a message of the acceptor is lost: {error}",
                    self.assignment.number
                );
                return Ok(true);
            }
            arrived => arrived?,
        };
        let Some(arrived) = arrived else {
            return Ok(false);
        };
        let channel = |descriptors: Vec<OwnedFd>| descriptors.into_iter().next().map(Channel::new);
        match arrived.message {
            Message::HandOver => {
                let channel = channel(arrived.descriptors);
                *successor = channel.and_then(|channel| self.offer(channel));
            }
            Message::Report => self.report(arrived.descriptors),
            Message::Reconnected { number } => {
                let channel = channel(arrived.descriptors);
                *claim = channel.map(|channel| Claim::new(number, channel));
            }
            // It is another acceptor.
            Message::Go => self.announce(),
            _ => {}
        }
        Ok(true)
    }

    /// Whether the guest has no connection, and its session is kept.
    fn is_without_connection(&self) -> bool {
        self.is_disconnected || recovery::disconnected_for(&self.arena).is_some()
    }

    /// Ends the worker without its requests in flight.
    fn end(&self, worker: Pid) -> io::Result<Ended> {
        log::error!(
            "requests of guest {} are still in flight: ending without them",
            self.assignment.number
        );
        kill_process(worker, Signal::KILL)?;
        wait_for(worker)?;
        Ok(Ended::InOrder(FAILURE))
    }

    /// Ends the worker, and leaves the guest to what holds it: no process of the daemon is left
    /// that has the other end of this one's channel.
    fn leave(&self, worker: Pid) -> io::Result<Ended> {
        kill_process(worker, Signal::KILL)?;
        wait_for(worker)?;
        Ok(Ended::InOrder(FAILURE))
    }

    /// Passes the guest's state to whoever wants to read it.
    fn report(&self, descriptors: Vec<OwnedFd>) {
        let reader = descriptors.into_iter().next().map(Channel::new);
        if let Some((reader, state)) = reader.zip(self.arena.file()) {
            // If this fails, nobody waits any more.
            let _ = reader.send(&Message::State, &[state]);
        }
    }

    /// Waits for `pause`. Returns whether the acceptor wants the connection to end meanwhile.
    fn is_stopped_within(&self, pause: Duration) -> bool {
        // A message waits.
        let mut ready = [PollFd::new(&self.assignment.control, PollFlags::RDHUP)];
        let limit = Timespec::try_from(pause).unwrap_or_default();
        poll(&mut ready, Some(&limit)).is_ok_and(|count| count > 0)
    }
}

/// The signal that a worker has ended. Another one wakes the worker's threads, and the acceptor has
/// it blocked.
fn child_signals() -> io::Result<Signals> {
    process::unblock_wake_signal()?;
    Signals::block([signals::Signal::SIGCHLD])
}

fn limits(config: &Config) -> Limits {
    Limits {
        inode_bytes: config.passthrough.max_inode_memory,
        descriptors: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        rings: usize::try_from(config.device.rings()).unwrap_or(usize::MAX),
        ring_size: config.device.max_queue_size.into(),
    }
}

/// Names the calling process, for lists of processes.
fn name_process(role: &str, number: u64) {
    if let Ok(name) = CString::new(format!("{role}_{number}")) {
        // Only a convenience.
        let _ = rustix::thread::set_name(&name);
    }
}

/// Makes the kernel kill this process when `parent` ends.
fn end_with(parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have ended before that call, and another process is the parent since.
    if getppid() != Some(parent) {
        process::exit(FAILURE);
    }
    Ok(())
}

/// Waits until the worker has ended.
fn wait_for(worker: Pid) -> io::Result<Ended> {
    loop {
        match waitpid(Some(worker), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(ended(status)),
            Ok(None) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
