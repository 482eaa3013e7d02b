//! A daemon with a share and an unaffected neighbour, and the checks of the daemon after hostile
//! guests.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tempfile::TempDir;

use super::neighbour::Neighbour;
use super::peak_memory::PeakMemory;
use super::{Driver, Setup};
use crate::daemon::{Daemon, Options};
use crate::faulty_fs::{FaultyFs, HostCache, HostWrites};
use crate::process::{User, children, children_named};
use crate::wait;

/// Limit for the daemon to free what a guest held.
const FREEING: Duration = Duration::from_secs(60);

/// Limit of each process's peak resident memory in KiB, with the guest's shared memory that it
/// touched.
const MAX_RESIDENT_KB: u64 = 256 * 1024;

/// Limit of each process's peak address space in KiB. The room for the state of a guest with the
/// default options is 3.6 GiB, most of which never takes memory. The rest is far less than the
/// 4 GiB that a hostile length asks for.
const MAX_VIRTUAL_KB: u64 = 6 * 1024 * 1024;

/// Limit of log lines for each connection, on top of [`MAX_LOG_LINES`]: the daemon limits the rate
/// of what a guest repeats. Its beginning, its features, its end, and errors.
const MAX_LINES_PER_GUEST: usize = 6;

/// Limit of log lines without connections.
const MAX_LOG_LINES: usize = 100;

/// Words that must not be in a log.
const FAULTS_OF_OURS: [&str; 3] = ["panicked", "please report", "RUST_BACKTRACE"];

/// What the log says of a worker that was ended by SIGABRT.
const ABORTED: &str = "was ended by signal 6: it found a fault in itself";

/// How the names of keepers' processes begin.
const KEEPER: &str = "keeper_";

/// Name of the directory of the share on which [`Fixture::submount`] is mounted.
pub const SUBMOUNT: &str = "submount";

/// A daemon with a working neighbour.
pub struct Fixture {
    /// The daemon.
    pub daemon: Daemon,
    /// A file system below the share that may fail or not answer, on [`SUBMOUNT`].
    pub submount: Option<FaultyFs>,
    dir: TempDir,
    neighbour: Option<Neighbour>,
    idle: Footprint,
    peak: PeakMemory,
    /// Limit of each process's address space, in KiB.
    max_virtual_kb: u64,
    /// Whether the test ends workers by SIGABRT.
    permits_aborts: bool,
}

/// The resources of the daemon's acceptor, keepers and workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
}

impl Footprint {
    /// Counts the resources of a daemon's acceptor and its guests' processes. A keeper and its
    /// worker have the same descriptors.
    fn of(daemon: &Daemon) -> Result<Self> {
        let acceptor = acceptor_of(daemon)?;
        let count = |pid: u32, what: &str| -> Result<usize> {
            let path = format!("/proc/{pid}/{what}");
            Ok(fs::read_dir(&path).with_context(|| path.clone())?.count())
        };
        let mut all = Self {
            descriptors: count(acceptor, "fd")?,
            threads: count(acceptor, "task")?,
        };
        for keeper in children_named(daemon.pid(), KEEPER)? {
            // A guest's processes may end at any time.
            all.threads += count(keeper, "task").unwrap_or(0);
            for worker in children(keeper).unwrap_or_default() {
                all.threads += count(worker, "task").unwrap_or(0);
                all.descriptors += count(worker, "fd").unwrap_or(0);
            }
        }
        Ok(all)
    }
}

impl Fixture {
    /// Starts a daemon with further `arguments`, and a neighbour.
    ///
    /// # Errors
    /// Either cannot be started.
    pub fn new(arguments: &[&str]) -> Result<Self> {
        let mut fixture = Self::quiet(arguments)?;
        fixture.start_neighbour()?;
        Ok(fixture)
    }

    /// Starts the neighbour of a daemon that has none yet.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_neighbour(&mut self) -> Result<()> {
        let neighbour = Neighbour::start(self.daemon.socket(), "neighbour");
        self.neighbour = Some(neighbour.with_context(|| self.log())?);
        Ok(())
    }

    /// Starts a daemon without a neighbour.
    ///
    /// # Errors
    /// The daemon cannot be started.
    pub fn quiet(arguments: &[&str]) -> Result<Self> {
        Self::quiet_as(arguments, None)
    }

    /// Starts a daemon without a neighbour, with the options that `change` returns.
    ///
    /// # Errors
    /// The daemon cannot be started.
    pub fn quiet_with(change: impl FnOnce(Options) -> Options) -> Result<Self> {
        Self::start(None, |_| Ok(None), change)
    }

    /// Starts a daemon without a neighbour, on a share with a [`Fixture::submount`] if root does.
    /// Others may not mount.
    ///
    /// # Errors
    /// The daemon cannot be started, or the file system not be mounted.
    pub fn quiet_with_submount(arguments: &[&str]) -> Result<Self> {
        let mount = |share: &Path| {
            if !User::is_root() {
                return Ok(None);
            }
            let mountpoint = share.join(SUBMOUNT);
            fs::create_dir(&mountpoint)?;
            FaultyFs::mount_at(&mountpoint, HostCache::None, HostWrites::Through).map(Some)
        };
        Self::start(None, mount, |options| options.arguments(arguments))
    }

    /// Starts a daemon without a neighbour as another user, who then owns the share.
    ///
    /// # Errors
    /// The daemon cannot be started.
    pub fn quiet_as(arguments: &[&str], user: Option<User>) -> Result<Self> {
        Self::start(user, |_| Ok(None), |options| options.arguments(arguments))
    }

    fn start(
        user: Option<User>,
        mount: impl FnOnce(&Path) -> Result<Option<FaultyFs>>,
        change: impl FnOnce(Options) -> Options,
    ) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-fixture-")
            .tempdir()?;
        let share = dir.path().join("share");
        fs::create_dir(&share)?;
        fs::create_dir(dir.path().join("outside"))?;
        let submount = mount(&share)?;
        let mut options = change(Options::new(&share));
        if let Some(user) = user {
            fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
            chown(&share, Some(user.uid), Some(user.gid))?;
            options = options.user(user);
        }
        let daemon = Daemon::start(&options)?;
        wait_for_log(&daemon, "waiting for guests")?;
        let peak = PeakMemory::watch(daemon.pid())?;
        Ok(Self {
            idle: settled(&daemon)?,
            daemon,
            submount,
            dir,
            neighbour: None,
            peak,
            max_virtual_kb: MAX_VIRTUAL_KB,
            permits_aborts: false,
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

    /// The process that accepts connections.
    ///
    /// # Errors
    /// There is none.
    pub fn acceptor(&self) -> Result<u32> {
        acceptor_of(&self.daemon)
    }

    /// Limits the sizes of files that the daemon's guests may write, in bytes. Guests from now on
    /// inherit the limit, as they would from `ulimit -f` or `LimitFSIZE=`.
    ///
    /// # Errors
    /// The acceptor is gone, or the limit may not be set.
    pub fn limit_file_size(&self, bytes: u64) -> Result<()> {
        let acceptor = Pid::from_raw(self.acceptor()?.try_into()?).context("a process id")?;
        let limit = Rlimit {
            current: Some(bytes),
            maximum: Some(bytes),
        };
        prlimit(Some(acceptor), Resource::Fsize, limit)?;
        Ok(())
    }

    /// The keeper and the worker of each connected guest, in the order of their connections.
    ///
    /// # Errors
    /// The daemon is gone.
    pub fn guest_processes(&self) -> Result<Vec<(u32, u32)>> {
        guest_processes(&self.daemon)
    }

    /// The worker of the guest that connected last.
    ///
    /// # Errors
    /// There is no guest.
    pub fn last_worker(&self) -> Result<u32> {
        let last = self.guest_processes()?.pop();
        Ok(last.context("no guest is connected")?.1)
    }

    /// The daemon's resources now.
    ///
    /// # Errors
    /// It is gone.
    pub fn footprint(&self) -> Result<Footprint> {
        Footprint::of(&self.daemon)
    }

    /// [`Daemon::reload`].
    ///
    /// # Errors
    /// As that.
    pub fn reload(&self) -> Result<()> {
        self.daemon.reload()
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
    /// It is gone, or has a guest.
    pub fn settle(&mut self) -> Result<()> {
        // The processes of a guest that has left end a moment later.
        let deadline = Instant::now() + FREEING;
        while !children_named(self.daemon.pid(), KEEPER)?.is_empty() {
            ensure!(
                Instant::now() < deadline,
                "there is a guest:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(2));
        }
        self.idle = settled(&self.daemon)?;
        Ok(())
    }

    /// Permits each process another peak of its address space, in bytes, for guests with much
    /// memory.
    pub const fn permit_address_space(&mut self, bytes: u64) {
        self.max_virtual_kb = bytes / 1024;
    }

    /// Permits reports of workers that have found a fault in themselves: the test ends some by
    /// SIGABRT.
    pub const fn permit_aborts(&mut self) {
        self.permits_aborts = true;
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
            let now = self.footprint()?;
            if now == self.idle {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the daemon holds {now:?}, and held {:?} before:\n{}",
                self.idle,
                descriptors(self.acceptor()?)
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
            !self.daemon.log().contains("the acceptor was ended"),
            "the acceptor has ended:\n{}",
            self.log()
        );
        if let Some(neighbour) = self.neighbour.take() {
            neighbour.stop().with_context(|| self.log())?;
        }
        self.wait_until_idle().with_context(|| self.log())?;
        let (resident, virtual_size) = self.peak.stop();
        ensure!(
            resident < MAX_RESIDENT_KB,
            "a process of the daemon used {resident} KiB"
        );
        ensure!(
            virtual_size < self.max_virtual_kb,
            "a process of the daemon mapped {virtual_size} KiB"
        );
        let (status, log) = self.daemon.stop()?;
        let shown = excerpt(&log);
        ensure!(status.success(), "the daemon ended with {status}:\n{shown}");
        let is_permitted = |line: &str| self.permits_aborts && line.contains(ABORTED);
        for line in log.lines().filter(|line| !is_permitted(line)) {
            let is_fault = FAULTS_OF_OURS.iter().any(|fault| line.contains(fault));
            ensure!(!is_fault, "the log has {line:?}:\n{shown}");
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

/// The process of a daemon that accepts connections. After the death of one, waits for the next.
///
/// # Errors
/// The daemon is gone, or has none in time.
pub fn acceptor_of(daemon: &Daemon) -> Result<u32> {
    let found = wait::until_found("there is an acceptor", FREEING, || {
        Ok(children_named(daemon.pid(), "acceptor")?.pop())
    });
    found.with_context(|| daemon.log())
}

/// The keeper and the worker of each guest of a daemon, in the order in which they were started.
///
/// # Errors
/// The daemon is gone.
pub fn guest_processes(daemon: &Daemon) -> Result<Vec<(u32, u32)>> {
    let keepers = children_named(daemon.pid(), KEEPER)?;
    let pair = |keeper: u32| Some((keeper, children(keeper).ok()?.pop()?));
    Ok(keepers.into_iter().filter_map(pair).collect())
}

/// The resources of a daemon once they have stopped changing.
fn settled(daemon: &Daemon) -> Result<Footprint> {
    let mut last = Footprint::of(daemon)?;
    let mut same = 0;
    while same < 5 {
        thread::sleep(Duration::from_millis(20));
        let now = Footprint::of(daemon)?;
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
    wait_for_logs(daemon, words, 1)
}

/// Waits until the daemon's log has `words` `count` times.
///
/// # Errors
/// It has not in time.
pub fn wait_for_logs(daemon: &Daemon, words: &str, count: usize) -> Result<()> {
    let waited = wait::until(&format!("the log has {words:?}"), FREEING, || {
        Ok(daemon.log().matches(words).count() >= count)
    });
    waited.with_context(|| daemon.log())
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
