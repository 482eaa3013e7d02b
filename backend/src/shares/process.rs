//! The process of one share: started, watched, ended, and started again when it dies.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};

use super::member;
use super::options::Given;
use super::request::{Listed, Reply};
use super::share::Share;
use crate::keeper::deaths::{Deaths, Verdict};

/// The file of the running program (proc(5)).
const RUNNING: &str = "/proc/self/exe";

/// How long a share's processes may take to end: longer than its supervisor gives its acceptor and
/// then its keepers.
const END_TIMEOUT: Duration = Duration::from_secs(35);

/// How long a share's next process waits after a death at least: the kernel is still ending the
/// acceptor of the dead one, which listens until then.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Variables of this process that mean nothing to a share's: they are for the process that the
/// service manager has started.
const OWN_VARIABLES: [&str; 7] = [
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "FDSTORE",
    "GANGPLANK_FDSTORE",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// What all shares' processes are started with.
#[derive(Debug)]
pub struct Start {
    /// The path by which a reload finds the next program.
    pub program: PathBuf,
    /// The options of all shares.
    pub of_all: Vec<Given>,
    /// Where the processes say how they are.
    pub notify: PathBuf,
    /// Within what time a process is to say that it is alive: half of the service manager's limit.
    pub watchdog: Option<Duration>,
    /// Deaths within a minute at which a share is given up.
    pub max_deaths: usize,
}

/// How far a share is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It has never served.
    Starting,
    /// Guests can connect.
    Serving,
    /// It is to end by this time.
    Ending(Instant),
    /// Its process has died, and the next one starts at this time.
    Restarting(Instant),
    /// Its process has died too often.
    Failed(String),
}

/// What has become of a share's process that has ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The share is served no longer, in order.
    Ended,
    /// It could not begin, and why.
    NotStarted(String),
    /// The share stays; another process serves it, or it has failed.
    Stays,
}

/// A share and its process.
#[derive(Debug)]
pub struct ShareProcess {
    share: Share,
    phase: Phase,
    process: Option<Pid>,
    /// The listening socket that the service manager has passed.
    passed: Option<OwnedFd>,
    control: PathBuf,
    begun: Instant,
    /// When its acceptor has answered last.
    alive: Instant,
    /// The status of its process that has ended, if that is known.
    ended: Option<Option<WaitStatus>>,
    /// What it has said last of itself.
    status: Option<String>,
    is_reloading: bool,
    deaths: Deaths,
    /// The client that waits for it.
    waiting: Option<SyncSender<Reply>>,
}

impl ShareProcess {
    /// Starts the process of a share that was checked. It tells its status at `control`.
    ///
    /// # Errors
    /// Those of execve(2).
    pub fn start(
        start: &Start,
        share: Share,
        passed: Option<OwnedFd>,
        control: PathBuf,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let mut this = Self {
            share,
            phase: Phase::Starting,
            process: None,
            passed,
            control,
            begun: now,
            alive: now,
            ended: None,
            status: None,
            is_reloading: false,
            deaths: Deaths::new(start.max_deaths),
            waiting: None,
        };
        this.process = Some(this.execute(start)?);
        Ok(this)
    }

    fn execute(&self, start: &Start) -> io::Result<Pid> {
        use std::os::unix::process::CommandExt;

        let mut command = Command::new(RUNNING);
        command.arg0(&start.program);
        let arguments = self.share.arguments(&start.of_all, self.passed.is_some());
        command.args(arguments.iter().map(Given::argument));
        command.arg(format!("--control={}", self.control.display()));
        for name in OWN_VARIABLES {
            command.env_remove(name);
        }
        command
            .env(member::VARIABLE, std::process::id().to_string())
            .env("NOTIFY_SOCKET", &start.notify);
        if let Some(limit) = start.watchdog {
            command.env("WATCHDOG_USEC", limit.as_micros().to_string());
        }
        command.stdin(match &self.passed {
            Some(socket) => Stdio::from(socket.try_clone()?),
            None => Stdio::null(),
        });
        let process = i32::try_from(command.spawn()?.id()).ok();
        process
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The share.
    #[must_use]
    pub const fn share(&self) -> &Share {
        &self.share
    }

    /// How far it is.
    #[must_use]
    pub const fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Whether `process` is its first process.
    #[must_use]
    pub fn is_of(&self, process: Pid) -> bool {
        self.process == Some(process)
    }

    /// Whether a reload is not done yet.
    #[must_use]
    pub const fn is_reloading(&self) -> bool {
        self.is_reloading
    }

    /// Has `client` told when the share serves, or has ended.
    pub fn answer_later(&mut self, client: SyncSender<Reply>) {
        self.answer(&Reply::Error("another command has come between".to_owned()));
        self.waiting = Some(client);
    }

    /// Tells the client that waits, if any.
    pub fn answer(&mut self, reply: &Reply) {
        if let Some(client) = self.waiting.take() {
            // It may have gone.
            let _ = client.try_send(reply.clone());
        }
    }

    /// It serves, or has reloaded.
    pub fn is_ready(&mut self) {
        self.is_reloading = false;
        self.alive = Instant::now();
        if matches!(self.phase, Phase::Starting | Phase::Restarting(_)) {
            self.phase = Phase::Serving;
            self.answer(&Reply::Done);
        }
    }

    /// Its acceptor has answered.
    pub fn is_alive(&mut self) {
        self.alive = Instant::now();
    }

    /// It has said how it is.
    pub fn says(&mut self, status: String) {
        self.status = Some(status);
    }

    /// Has it end in order.
    pub fn end(&mut self) {
        match self.process {
            Some(process) => {
                self.phase = Phase::Ending(Instant::now() + END_TIMEOUT);
                let _ = kill_process(process, Signal::TERM);
            }
            // There is nothing to wait for.
            None => self.phase = Phase::Ending(Instant::now()),
        }
    }

    /// Has it reload.
    pub fn reload(&mut self) {
        if let (Phase::Serving, Some(process)) = (&self.phase, self.process) {
            self.is_reloading = kill_process(process, Signal::HUP).is_ok();
        }
    }

    /// Has it write its status to the log.
    pub fn log_status(&self) {
        if let (Phase::Serving, Some(process)) = (&self.phase, self.process) {
            // One that has just ended has no status.
            let _ = kill_process(process, Signal::USR1);
        }
    }

    /// Whether it has no process and is not to have one.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.process.is_none() && matches!(self.phase, Phase::Ending(_))
    }

    /// When [`Self::keep_up`] has something to do.
    #[must_use]
    pub fn deadline(&self, start: &Start) -> Option<Instant> {
        match (&self.phase, start.watchdog) {
            (Phase::Ending(time), _) if self.process.is_some() => Some(*time),
            (Phase::Restarting(time), _) if self.process.is_none() => Some(*time),
            // The process reports twice in its limit, and says nothing during a reload.
            (Phase::Serving, Some(limit)) => Some(self.alive + limit * 2),
            _ => None,
        }
    }

    /// Starts it again, or kills it, if it is time.
    pub fn keep_up(&mut self, start: &Start) {
        let tag = &self.share.tag;
        if self
            .deadline(start)
            .is_none_or(|time| time > Instant::now())
        {
            return;
        }
        match (&self.phase, self.process) {
            (Phase::Ending(_), Some(process)) => {
                log::error!("the processes of share {tag:?} do not end, so they are killed");
                let _ = kill_process(process, Signal::KILL);
                self.phase = Phase::Ending(Instant::now() + END_TIMEOUT);
            }
            (Phase::Serving, Some(process)) => {
                log::error!("the acceptor of share {tag:?} does not answer, so it is killed");
                let _ = kill_process(process, Signal::KILL);
                self.alive = Instant::now();
            }
            (Phase::Restarting(_), None) => {
                self.begun = Instant::now();
                match self.execute(start) {
                    Ok(process) => self.process = Some(process),
                    Err(error) => {
                        log::error!("cannot start a process for share {tag:?}: {error}");
                        self.judge_death("it cannot be started".to_owned());
                    }
                }
            }
            _ => {}
        }
    }

    /// Looks whether its process has ended. What that has said before has arrived by then.
    pub fn look(&mut self) {
        if let (Some(process), None) = (self.process, &self.ended) {
            self.ended = match waitpid(Some(process), WaitOptions::NOHANG) {
                Ok(None) | Err(Errno::INTR) => None,
                Ok(Some((_, status))) => Some(Some(status)),
                Err(_) => Some(None),
            };
        }
    }

    /// What has become of it, if [`Self::look`] has found that its process has ended.
    pub fn reap(&mut self) -> Option<End> {
        let status = self.ended.take()?;
        self.process = None;
        self.is_reloading = false;
        let in_order = status.and_then(WaitStatus::exit_status) == Some(0);
        Some(match self.phase {
            Phase::Ending(_) => End::Ended,
            Phase::Starting => End::NotStarted(self.reason(status)),
            // By a signal to this process alone.
            Phase::Serving if in_order => End::Ended,
            _ => {
                let reason = self.reason(status);
                self.judge_death(reason);
                End::Stays
            }
        })
    }

    fn judge_death(&mut self, reason: String) {
        let tag = &self.share.tag;
        let now = Instant::now();
        match self.deaths.add(now, self.begun.elapsed()) {
            Verdict::RestartAfter(pause) => {
                log::error!(
                    "the process of share {tag:?} has died: {reason}; its guests have lost their \
                     connections, the other shares go on, and another process starts"
                );
                self.phase = Phase::Restarting(now + pause.max(RESTART_PAUSE));
            }
            Verdict::GiveUp => {
                log::error!(
                    "share {tag:?} is given up: its process died too often within a minute \
                     (--max-crashes), the last time: {reason}; the other shares go on"
                );
                self.phase = Phase::Failed(reason);
            }
        }
    }

    fn reason(&mut self, status: Option<WaitStatus>) -> String {
        let said = self.status.take();
        let Some(status) = status else {
            return "its end was not seen".to_owned();
        };
        match (status.terminating_signal(), status.exit_status(), said) {
            (Some(signal), _, _) => format!("it was ended by signal {signal}"),
            (_, Some(code), Some(said)) if code != 0 => said,
            (_, code, _) => {
                let code = code.unwrap_or_default();
                format!("it ended with exit status {code}; the log before this says why")
            }
        }
    }

    /// The share in a list, without the number of its guests.
    #[must_use]
    pub fn listed(&self) -> Listed {
        let (state, reason) = match &self.phase {
            Phase::Starting => ("starting", None),
            Phase::Serving => ("serving", None),
            Phase::Ending(_) => ("ending", None),
            Phase::Restarting(_) => ("restarting", None),
            Phase::Failed(reason) => ("failed", Some(reason.clone())),
        };
        Listed {
            tag: self.share.tag.clone(),
            shared_dir: self.share.directory().to_owned(),
            socket: self.share.socket().map(Path::to_owned),
            state: state.to_owned(),
            reason,
            guests: None,
            origin: self.share.origin.to_string(),
            process: self
                .process
                .map(|pid| pid.as_raw_nonzero().get().unsigned_abs()),
            control: self.control.clone(),
        }
    }
}
