//! The supervisor: the process that stays outside of the sandbox. It watches the acceptor, has
//! another one go on when it dies, and ends what is left at the end.
//!
//! ```text
//! supervisor ─┬─ acceptor ── dies of a signal or a fault ──> next acceptor, by the running program
//!             │      └─ ends in order ──> supervisor ends
//!             └─ keepers: children of this process, forked by acceptors
//! ```
//!
//! It holds copies of whatever an acceptor needs (`held.rs`), so an acceptor's death closes nothing
//! and no guest notices it. It reads nothing from a guest. The kernel ends the acceptor when the
//! supervisor ends, and then nobody has the other ends of the keepers' channels: they finish the
//! requests in flight and end as well.

mod held;
mod watchdog;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use gangplank_service::rate_limited;
use gangplank_service::signals::{Signal, Signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    self as rustix_process, Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open,
    pidfd_send_signal, set_child_subreaper, wait, waitpid,
};
use thiserror::Error;

pub use self::held::{Held, HeldKeeper};
use self::watchdog::AcceptorWatchdog;
use crate::acceptor::SHUTDOWN_TIMEOUT;
use crate::handover::channel::{Channel, Message};
use crate::handover::reload::Reloader;
use crate::keeper::deaths::{Deaths, Verdict};
use crate::sandbox;

/// Added to a signal's number for the exit status of a process that it ended, as shells do.
const SIGNAL_STATUS_BASE: i32 = 128;

/// How long the acceptor may take to end: longer than it waits for requests in flight.
const END_TIMEOUT: Duration = Duration::from_secs(15);

/// How long killed keepers may take to end. One whose worker is in an uninterruptible call takes
/// longer, and is left to the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the supervisor cannot do its work.
#[derive(Debug, Error)]
pub enum Error {
    /// A process cannot be watched.
    #[error("cannot wait for the confined processes")]
    Watch(#[source] io::Error),
    /// The process cannot become the parent of orphaned workers.
    #[error("cannot become the parent of workers without a keeper")]
    Reaper(#[source] io::Error),
    /// Its capabilities cannot be reduced.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
}

/// A confined acceptor.
#[derive(Debug)]
struct Acceptor {
    process: Pid,
    /// Its pidfd.
    handle: OwnedFd,
    /// The other end is the acceptor's.
    channel: Channel,
    /// When this process learned of it.
    begun: Instant,
    /// Whether it goes on for one that has died. Nobody is told that the daemon serves then.
    is_replacement: bool,
}

/// Watches an acceptor and the keepers of its guests.
#[derive(Debug)]
pub struct Supervisor {
    /// `None` after its death.
    acceptor: Option<Acceptor>,
    held: Held,
}

/// What the supervisor does next.
struct Plan {
    /// When the acceptor is killed that was told to end.
    end_by: Option<Instant>,
    /// It was.
    is_overdue: bool,
    /// When the next acceptor is started, after the death of one.
    start_at: Option<Instant>,
    /// Acceptors that could not be started in a row. The guests go on without one, and are not
    /// given up.
    failed_starts: Deaths,
    /// A reload is wanted.
    reload: bool,
    /// The daemon ends, and its guests stay held outside of it.
    leave: bool,
    watchdog: AcceptorWatchdog,
}

impl Supervisor {
    /// The supervisor of `acceptor`, which is the calling process's child and has the other end of
    /// `channel`.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn new(acceptor: Pid, channel: Channel, held: Held) -> Result<Self, Error> {
        let handle = pidfd_open(acceptor, PidfdFlags::empty()).map_err(watch)?;
        Ok(Self {
            acceptor: Some(Acceptor {
                process: acceptor,
                handle,
                channel,
                begun: Instant::now(),
                is_replacement: false,
            }),
            held,
        })
    }

    /// The channel to the acceptor, if that lives.
    #[must_use]
    pub fn channel(&self) -> Option<&Channel> {
        self.acceptor.as_ref().map(|acceptor| &acceptor.channel)
    }

    /// The acceptor, if it lives.
    #[must_use]
    pub fn acceptor(&self) -> Option<Pid> {
        self.acceptor.as_ref().map(|acceptor| acceptor.process)
    }

    /// What it holds.
    #[must_use]
    pub const fn held(&self) -> &Held {
        &self.held
    }

    /// Sends the acceptor a message, with descriptors.
    ///
    /// # Errors
    /// It does not receive.
    pub fn send(&self, message: &Message, descriptors: &[&Channel]) -> io::Result<()> {
        let channel = self.channel().ok_or(io::ErrorKind::BrokenPipe)?;
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        channel.send(message, &descriptors)
    }

    /// The acceptor's next message that is not about a keeper. What it says of keepers is noted.
    ///
    /// # Errors
    /// Those of [`Channel::expect`].
    pub fn expect(&mut self, deadline: Option<Instant>) -> io::Result<Message> {
        loop {
            let channel = self.channel().ok_or(io::ErrorKind::UnexpectedEof)?;
            let arrived = channel.expect(deadline)?;
            if let Some(message) = self.held.take(arrived) {
                return Ok(message);
            }
        }
    }

    /// Takes over what `predecessor` had held outside of the daemon.
    pub fn take_over_holding(&mut self, predecessor: &mut Self) {
        self.held.holding.take_over(&mut predecessor.held.holding);
    }

    /// Puts the acceptor of `next` in the place of the one that has died.
    pub fn go_on_with(&mut self, next: Self) {
        let mut held = next.held;
        self.acceptor = next.acceptor;
        self.held.keepers.append(&mut held.keepers);
        self.held.holding.append(&mut held.holding);
    }

    /// Kills the acceptor, and waits until it has ended. Its keepers go on.
    pub fn kill_acceptor(&mut self) {
        if let Some(acceptor) = self.acceptor.take() {
            let _ = pidfd_send_signal(&acceptor.handle, rustix_process::Signal::KILL);
            while let Err(Errno::INTR) = waitpid(Some(acceptor.process), WaitOptions::empty()) {}
        }
    }

    /// Kills the acceptor, and waits until it has ended. Then kills its keepers: whoever waits for
    /// the end of one finds that by the channel to it.
    pub fn kill(mut self) {
        // What the acceptor has told before.
        while self.expect(Some(Instant::now())).is_ok() {}
        self.kill_acceptor();
        self.held.kill();
    }

    /// Forwards termination signals to the acceptor until it ends in order, and has `reloader` put
    /// another in its place when it dies, or at SIGHUP. Calls `serving` when an acceptor serves.
    /// Returns the acceptor's exit status, which is to be this process's as well.
    ///
    /// After the acceptor's death number `max_deaths` within a minute, all guests are ended in
    /// order.
    ///
    /// # Errors
    /// The processes cannot be watched, or this process's capabilities cannot be reduced.
    pub fn supervise(
        mut self,
        signals: &Signals,
        reloader: &mut Reloader,
        max_deaths: usize,
        serving: impl Fn(),
    ) -> Result<u8, Error> {
        sandbox::reduce_supervisor()?;
        set_child_subreaper(Some(rustix_process::getpid()))
            .map_err(|error| Error::Reaper(error.into()))?;
        let mut deaths = Deaths::new(max_deaths);
        let mut plan = Plan {
            end_by: None,
            is_overdue: false,
            start_at: None,
            failed_starts: Deaths::new(usize::MAX),
            reload: false,
            leave: false,
            watchdog: AcceptorWatchdog::from_environment(),
        };
        loop {
            self.hear(&serving, &mut plan.watchdog);
            self.obey(signals, &mut plan)?;
            if plan.leave {
                return self.leave(signals);
            }
            if let Some((acceptor, status)) = self.reap()? {
                let code = exit_code(status);
                let is_ending = plan.end_by.is_some();
                if code == 0 || plan.is_overdue || !(is_ending || self.held.listener.is_some()) {
                    if let Some(signal) = status.terminating_signal() {
                        log::error!("{}", ended_by(signal));
                    }
                    // It has waited for the requests in flight, or has never served.
                    self.end_guests(signals, Duration::ZERO)?;
                    return Ok(code);
                }
                if is_ending {
                    log::error!("{}", died_of(status));
                } else {
                    log::error!("{}; the guests go on", died_of(status));
                    match deaths.add(Instant::now(), acceptor.begun.elapsed()) {
                        Verdict::RestartAfter(pause) => {
                            plan.start_at = Some(Instant::now() + pause);
                        }
                        Verdict::GiveUp => {
                            log::error!(
                                "all guests are dropped: acceptors died {max_deaths} times within \
                                 a minute, the most that --max-crashes permits; please report \
                                 this with the log before it"
                            );
                            self.end_guests(signals, SHUTDOWN_TIMEOUT)?;
                            return Ok(code);
                        }
                    }
                }
            }
            if self.acceptor.is_none() && plan.end_by.is_some() {
                self.end_guests(signals, SHUTDOWN_TIMEOUT)?;
                return Ok(0);
            }
            if plan.start_at.is_some_and(|time| time <= Instant::now()) {
                self.start_next(reloader, &mut plan);
                continue;
            }
            if plan.reload && plan.end_by.is_none() && self.is_serving() {
                plan.reload = false;
                reloader.reload(&mut self);
                continue;
            }
            self.ask(&mut plan)?;
            self.wait(signals, &plan)?;
        }
    }

    /// Ends all processes and leaves the guests held: whoever holds them knows whether the next
    /// program serves them, and closes what it holds if not.
    fn leave(&mut self, signals: &Signals) -> Result<u8, Error> {
        log::info!("ending; what the guests have is held for the next daemon");
        self.kill_acceptor();
        self.held.kill();
        if !self.are_ended_within(signals, KILL_TIMEOUT)? {
            log::error!("processes of guests do not end although they were killed");
        }
        Ok(0)
    }

    /// Whether there is an acceptor that has said so.
    fn is_serving(&self) -> bool {
        self.acceptor.is_some() && self.held.listener.is_some()
    }

    /// Asks the acceptor whether it is alive, if the service manager wants to know.
    fn ask(&self, plan: &mut Plan) -> Result<(), Error> {
        match self.channel() {
            Some(channel) if self.is_serving() && plan.end_by.is_none() => {
                plan.watchdog.ask(channel).map_err(Error::Watch)
            }
            None if plan.start_at.is_some() => {
                plan.watchdog.go_on_without();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Waits for something to do.
    fn wait(&self, signals: &Signals, plan: &Plan) -> Result<(), Error> {
        let holding = &self.held.holding;
        let next = [plan.end_by, plan.start_at, holding.deadline()];
        let next = next.into_iter().flatten().min();
        let left = next.map(|time| time.saturating_duration_since(Instant::now()));
        let asks = plan.end_by.is_none() && (self.is_serving() || plan.start_at.is_some());
        let left = left
            .into_iter()
            .chain(plan.watchdog.left().filter(|_| asks))
            .min();
        let limit = left.and_then(|left| Timespec::try_from(left).ok());
        let channel = self.channel();
        let mut ready: Vec<_> = [signals.as_fd()]
            .into_iter()
            .chain(channel.map(AsFd::as_fd))
            .chain(holding.channels().map(|(_, channel)| channel))
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
            .collect();
        match poll(&mut ready, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(watch(error)),
        }
    }

    /// Takes what the acceptor has said.
    fn hear(&mut self, serving: &impl Fn(), watchdog: &mut AcceptorWatchdog) {
        loop {
            match self.expect(Some(Instant::now())) {
                Ok(Message::Pong) => watchdog.answered(),
                Ok(Message::Serving) => {
                    watchdog.forget();
                    self.held.holding.forget_found();
                    if let Some(acceptor) = self.acceptor.as_ref()
                        && !acceptor.is_replacement
                    {
                        serving();
                    }
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    rate_limited!(error, "cannot understand the acceptor: {error}");
                }
                Err(_) => break,
            }
        }
        self.held.holding.serve();
    }

    /// Takes the signals that have arrived.
    fn obey(&mut self, signals: &Signals, plan: &mut Plan) -> Result<(), Error> {
        while let Some(signal) = signals.take().map_err(Error::Watch)? {
            match signal {
                Signal::SIGCHLD => continue,
                Signal::SIGHUP => {
                    plan.reload = true;
                    continue;
                }
                // The acceptor knows the guests.
                Signal::SIGUSR1 => {
                    self.signal_acceptor(rustix_process::Signal::USR1)?;
                    continue;
                }
                _ => {}
            }
            if self.held.holding.is_in_use() {
                plan.leave = true;
                return Ok(());
            }
            plan.end_by
                .get_or_insert_with(|| Instant::now() + END_TIMEOUT);
            // The acceptor closes its own: whoever connects from now on is refused at once.
            self.held.listener = None;
            log::debug!("forwarding signal {signal} to the acceptor as SIGTERM");
            self.signal_acceptor(rustix_process::Signal::TERM)?;
        }
        if plan.end_by.is_some_and(|time| time <= Instant::now()) && self.acceptor.is_some() {
            log::error!("the acceptor does not end, so it is killed");
            self.signal_acceptor(rustix_process::Signal::KILL)?;
            plan.end_by = Some(Instant::now() + END_TIMEOUT);
            plan.is_overdue = true;
        }
        Ok(())
    }

    fn signal_acceptor(&self, signal: rustix_process::Signal) -> Result<(), Error> {
        let Some(acceptor) = &self.acceptor else {
            return Ok(());
        };
        match pidfd_send_signal(&acceptor.handle, signal) {
            // SRCH: it has ended, and `reap` fetches its exit status.
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(watch(error)),
        }
    }

    /// Waits for the children that have ended. Returns the acceptor if it is one of them.
    fn reap(&mut self) -> Result<Option<(Acceptor, WaitStatus)>, Error> {
        let mut ended = None;
        loop {
            let (process, status) = match wait(WaitOptions::NOHANG) {
                Ok(Some(waited)) => waited,
                // CHILD: there is none.
                Ok(None) | Err(Errno::CHILD) => return Ok(ended),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(watch(error)),
            };
            if let Some(acceptor) = self.acceptor.take_if(|one| one.process == process) {
                // What it has said of keepers just before.
                while let Ok(Some(arrived)) = acceptor.channel.receive(Some(Instant::now())) {
                    self.held.take(arrived);
                }
                ended = Some((acceptor, status));
            }
            // Other children have accepted no guest, or are workers whose keepers were killed.
            if let Some(keeper) = self.held.remove(process)
                && let Some(signal) = status.terminating_signal()
            {
                log::error!(
                    "the keeper of guest {} was ended by signal {signal}, and its worker with it",
                    keeper.number
                );
            }
        }
    }

    /// Starts another acceptor after the death of one.
    fn start_next(&mut self, reloader: &Reloader, plan: &mut Plan) {
        let begun = Instant::now();
        match reloader.replace_acceptor(self) {
            Ok(()) => {
                if let Some(acceptor) = &mut self.acceptor {
                    acceptor.is_replacement = true;
                }
                log::info!(
                    "another acceptor goes on with {} guests, after {} ms",
                    self.held.keepers.len(),
                    begun.elapsed().as_millis()
                );
                plan.start_at = None;
                plan.failed_starts = Deaths::new(usize::MAX);
            }
            Err(reason) => {
                rate_limited!(
                    error,
                    "no acceptor can be started, the guests go on without one: {reason}"
                );
                let now = Instant::now();
                if let Verdict::RestartAfter(pause) = plan.failed_starts.add(now, Duration::ZERO) {
                    plan.start_at = Some(now + pause);
                }
            }
        }
    }

    /// Ends all guests' connections, and waits for their requests in flight for at most `limit`.
    /// Then kills the keepers that are left.
    fn end_guests(&mut self, signals: &Signals, limit: Duration) -> Result<(), Error> {
        self.held.shut_down();
        // Otherwise their connections stay open.
        self.held.holding.clear();
        if self.are_ended_within(signals, limit)? {
            return Ok(());
        }
        self.held.kill();
        if !self.are_ended_within(signals, KILL_TIMEOUT)? {
            log::error!("processes of guests do not end although they were killed");
        }
        Ok(())
    }

    fn are_ended_within(&mut self, signals: &Signals, limit: Duration) -> Result<bool, Error> {
        let end = Instant::now() + limit;
        loop {
            while signals.take().map_err(Error::Watch)?.is_some() {}
            self.reap()?;
            if self.held.keepers.is_empty() {
                return Ok(true);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let mut ready = [PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
            match poll(&mut ready, Timespec::try_from(left).ok().as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(watch(error)),
            }
        }
    }
}

fn watch(error: Errno) -> Error {
    Error::Watch(error.into())
}

/// The exit status of this process for that of an acceptor.
fn exit_code(status: WaitStatus) -> u8 {
    let signal = status.terminating_signal();
    let of_signal = signal.map(|signal| SIGNAL_STATUS_BASE.saturating_add(signal));
    let code = status.exit_status().or(of_signal);
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

fn died_of(status: WaitStatus) -> String {
    match status.terminating_signal() {
        Some(signal) => ended_by(signal),
        None => "the acceptor has failed; please report this with the log before it".to_owned(),
    }
}

fn ended_by(signal: i32) -> String {
    let hint = if signal == libc::SIGSYS {
        ": it made a system call that is not on the permitted list (the kernel's audit log names \
         it; --seccomp=log permits it)"
    } else {
        ""
    };
    format!("the acceptor was ended by signal {signal}{hint}")
}
