//! A daemon with a share and an unaffected neighbour, and the checks of the daemon after hostile
//! guests.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::neighbour::Neighbour;
use super::{Driver, Setup};
use crate::daemon::{Daemon, Options};
use crate::process::User;

/// Limit for the daemon to free what a guest held.
const FREEING: Duration = Duration::from_secs(20);

/// Limit of the daemon's peak resident memory in KiB, with the guests' shared memory that it
/// touched.
const MAX_RESIDENT_KB: u64 = 256 * 1024;

/// Limit of the daemon's peak address space in KiB: far less than the 4 GiB that a hostile length
/// asks for.
const MAX_VIRTUAL_KB: u64 = 3 * 1024 * 1024;

/// Limit of log lines for each connection, on top of [`MAX_LOG_LINES`]: the daemon limits the rate
/// of what a guest repeats.
const MAX_LINES_PER_GUEST: usize = 4;

/// Limit of log lines without connections.
const MAX_LOG_LINES: usize = 100;

/// Words that must not be in a log.
const FAULTS_OF_OURS: [&str; 3] = ["panicked", "please report", "RUST_BACKTRACE"];

/// A daemon with a working neighbour.
pub struct Fixture {
    /// The daemon.
    pub daemon: Daemon,
    dir: TempDir,
    neighbour: Option<Neighbour>,
    idle: Footprint,
    serving: u32,
}

/// The resources of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
}

impl Footprint {
    /// Counts the resources of a process.
    ///
    /// # Errors
    /// There is no such process.
    pub fn of(pid: u32) -> Result<Self> {
        let count = |what: &str| -> Result<usize> {
            let path = format!("/proc/{pid}/{what}");
            Ok(fs::read_dir(&path).with_context(|| path.clone())?.count())
        };
        Ok(Self {
            descriptors: count("fd")?,
            threads: count("task")?,
        })
    }
}

impl Fixture {
    /// Starts a daemon with further `arguments`, and a neighbour.
    ///
    /// # Errors
    /// Either cannot be started.
    pub fn new(arguments: &[&str]) -> Result<Self> {
        let mut fixture = Self::quiet(arguments)?;
        let neighbour = Neighbour::start(fixture.daemon.socket(), "neighbour");
        fixture.neighbour = Some(neighbour.with_context(|| fixture.log())?);
        Ok(fixture)
    }

    /// Starts a daemon without a neighbour.
    ///
    /// # Errors
    /// The daemon cannot be started.
    pub fn quiet(arguments: &[&str]) -> Result<Self> {
        Self::quiet_as(arguments, None)
    }

    /// Starts a daemon without a neighbour as another user, who then owns the share.
    ///
    /// # Errors
    /// The daemon cannot be started.
    pub fn quiet_as(arguments: &[&str], user: Option<User>) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-fixture-")
            .tempdir()?;
        let share = dir.path().join("share");
        fs::create_dir(&share)?;
        fs::create_dir(dir.path().join("outside"))?;
        let mut options = Options::new(&share).arguments(arguments);
        if let Some(user) = user {
            fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
            chown(&share, Some(user.uid), Some(user.gid))?;
            options = options.user(user);
        }
        let daemon = Daemon::start(&options)?;
        wait_for_log(&daemon, "waiting for guests")?;
        let serving = serving_process(daemon.pid())?;
        Ok(Self {
            idle: settled(serving)?,
            daemon,
            dir,
            neighbour: None,
            serving,
        })
    }

    /// The shared directory.
    #[must_use]
    pub fn share(&self) -> PathBuf {
        self.dir.path().join("share")
    }

    /// A directory beside the share, which no guest may reach.
    #[must_use]
    pub fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    /// The daemon's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.daemon.socket()
    }

    /// The process that serves: the daemon, or its child in the sandbox.
    #[must_use]
    pub const fn serving(&self) -> u32 {
        self.serving
    }

    /// The daemon's log, shortened for the report of a failed test.
    #[must_use]
    pub fn log(&self) -> String {
        excerpt(&self.daemon.log())
    }

    /// The daemon's resources before the first connection.
    #[must_use]
    pub const fn idle(&self) -> Footprint {
        self.idle
    }

    /// Takes the daemon's present resources, without a guest, as the ones that it may keep.
    ///
    /// # Errors
    /// It is gone.
    pub fn settle(&mut self) -> Result<()> {
        self.idle = settled(self.serving)?;
        Ok(())
    }

    /// Connects a guest and mounts.
    ///
    /// # Errors
    /// It cannot mount.
    pub fn guest(&self, setup: &Setup) -> Result<Driver> {
        Ok(Driver::mount(self.socket(), setup)?)
    }

    /// Fails unless the neighbour still works.
    ///
    /// # Errors
    /// It does not.
    pub fn neighbour_goes_on(&mut self) -> Result<()> {
        match &mut self.neighbour {
            Some(neighbour) => neighbour.wait_for_rounds(3).with_context(|| self.log()),
            None => bail!("there is no neighbour"),
        }
    }

    /// Waits until the daemon holds no more than before the first connection.
    ///
    /// # Errors
    /// It keeps holding more.
    pub fn wait_until_idle(&self) -> Result<()> {
        let deadline = Instant::now() + FREEING;
        loop {
            let now = Footprint::of(self.serving)?;
            if now == self.idle {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the daemon holds {now:?}, and held {:?} before:\n{}",
                self.idle,
                descriptors(self.serving)
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Checks, after all hostile guests have left: the neighbour was not disturbed, the daemon
    /// lives, has freed their resources, has logged each text of `told`, and has logged little.
    ///
    /// # Errors
    /// Which of that is not so.
    pub fn survive(mut self, told: &[&str]) -> Result<()> {
        if self.neighbour.is_some() {
            self.neighbour_goes_on()?;
        }
        ensure!(
            self.daemon.is_running()?,
            "the daemon has ended:\n{}",
            self.log()
        );
        ensure!(
            serving_process(self.daemon.pid())? == self.serving,
            "the serving process is another one:\n{}",
            self.log()
        );
        if let Some(neighbour) = self.neighbour.take() {
            neighbour.stop().with_context(|| self.log())?;
        }
        self.wait_until_idle().with_context(|| self.log())?;
        let (resident, virtual_size) = (
            status_kb(self.serving, "VmHWM:")?,
            status_kb(self.serving, "VmPeak:")?,
        );
        ensure!(resident < MAX_RESIDENT_KB, "the daemon used {resident} KiB");
        ensure!(
            virtual_size < MAX_VIRTUAL_KB,
            "the daemon mapped {virtual_size} KiB"
        );
        let (status, log) = self.daemon.stop()?;
        let shown = excerpt(&log);
        ensure!(status.success(), "the daemon ended with {status}:\n{shown}");
        for fault in FAULTS_OF_OURS {
            ensure!(!log.contains(fault), "the log has {fault:?}:\n{shown}");
        }
        for words in told {
            ensure!(log.contains(words), "the log lacks {words:?}:\n{shown}");
        }
        let guests = log.matches("has connected").count();
        let limit = MAX_LOG_LINES + MAX_LINES_PER_GUEST * guests;
        ensure!(
            log.lines().count() < limit,
            "the log is long:
{shown}"
        );
        Ok(())
    }
}

/// The resources of a process once they have stopped changing.
fn settled(pid: u32) -> Result<Footprint> {
    let mut last = Footprint::of(pid)?;
    let mut same = 0;
    while same < 5 {
        thread::sleep(Duration::from_millis(20));
        let now = Footprint::of(pid)?;
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    Ok(last)
}

/// Waits until the daemon's log has `words`.
///
/// # Errors
/// It has not in time.
pub fn wait_for_log(daemon: &Daemon, words: &str) -> Result<()> {
    let deadline = Instant::now() + FREEING;
    while !daemon.log().contains(words) {
        ensure!(
            Instant::now() < deadline,
            "the log lacks {words:?}:\n{}",
            daemon.log()
        );
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The process that serves guests. A sandbox with namespaces has a separate one.
///
/// # Errors
/// The daemon is gone.
pub fn serving_process(daemon: u32) -> Result<u32> {
    let path = format!("/proc/{daemon}/task/{daemon}/children");
    let children = fs::read_to_string(&path).with_context(|| path.clone())?;
    match children.split_whitespace().next() {
        Some(child) => Ok(child.parse()?),
        None => Ok(daemon),
    }
}

fn status_kb(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .with_context(|| format!("no {field} in the status of {pid}"))?;
    let number = line.split_whitespace().next().unwrap_or_default();
    Ok(number.parse()?)
}

/// The beginning and the end of a log.
fn excerpt(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    match lines.as_slice() {
        [first @ .., _] if first.len() < 80 => log.to_owned(),
        all => {
            let (first, last) = (
                &all[..40.min(all.len())],
                &all[all.len().saturating_sub(20)..],
            );
            format!(
                "{}\n[{} lines]\n{}",
                first.join("\n"),
                all.len(),
                last.join("\n")
            )
        }
    }
}

/// The open descriptors of a process by kind, a line for each.
fn descriptors(pid: u32) -> String {
    let links = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    let mut targets: Vec<String> = links
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.display().to_string())
        .collect();
    targets.sort();
    targets.join("\n")
}
