//! One guest on one or two shares of running daemons.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::daemon::{self, Daemon, TAG};
use crate::dvk_tunnel::Tunnel;
use crate::guest::{self, Guest, Machine};
use crate::process::{self, User};
use crate::promises::{Programs, Promise, Tried};
use crate::relay::Relay;
use crate::tools;

/// Tag of the second share, whose daemon allows `O_DIRECT` and caches nothing.
pub const DIRECT_TAG: &str = "direct";

/// Limit for a daemon to end after its guest.
const LEAVING: Duration = Duration::from_secs(10);

/// The directory where the guest mounts the first share.
pub const MOUNT: &str = "/mnt";

/// The daemons that serve the guest, and what is before them.
#[derive(Clone, Debug, Default)]
pub struct Setting {
    /// Another daemon than gangplankd, with virtiofsd's options.
    pub program: Option<PathBuf>,
    /// Whether the guest is connected by a relay.
    pub is_relayed: bool,
    /// Whether the guest is connected by a tunnel over DVK, at a switch.
    pub is_tunnelled: bool,
    /// Further arguments of the daemons.
    pub arguments: &'static [&'static str],
    /// The ordinary user who runs the daemons and the guest and owns the share; `None` is the
    /// caller.
    pub user: Option<User>,
    /// Whether cases that differ by their size alone are small.
    pub is_brief: bool,
    /// What the options promise, by name. The guest then has [`Programs`].
    pub promises: &'static [(&'static str, Promise)],
}

/// A daemon, and the relay or the tunnel before it.
struct Post {
    daemon: Daemon,
    relay: Option<Relay>,
    tunnel: Option<Tunnel>,
}

/// A guest with the daemons that serve it and the host directory they share.
pub struct Fixture {
    guest: Option<Guest>,
    options: guest::Options,
    setting: Setting,
    first: Post,
    /// For the guest's second device.
    direct: Post,
    /// The programs with which the promises are tried.
    programs: Option<Programs>,
    share: TempDir,
}

impl Fixture {
    /// A fixture for `machine`. Its guest boots on first use.
    ///
    /// # Errors
    /// When a daemon does not start or a program for the guest does not build.
    pub fn new(machine: Machine) -> Result<Self> {
        Self::with(machine, Setting::default())
    }

    /// A fixture for `machine` with other daemons, or with relays before them.
    ///
    /// # Errors
    /// As [`Fixture::new`].
    pub fn with(machine: Machine, setting: Setting) -> Result<Self> {
        let share = tempfile::Builder::new()
            .prefix("gangplank-share-")
            .tempdir()?;
        if let Some(user) = setting.user {
            chown(share.path(), Some(user.uid), Some(user.gid))?;
        }
        let (first, direct) = start_daemons(share.path(), &setting)?;
        let programs = (!setting.promises.is_empty())
            .then(|| Programs::share(setting.user))
            .transpose()?;
        let options = guest_options(machine, &setting, [&first, &direct], programs.as_ref())?;
        Ok(Self {
            guest: None,
            options,
            setting,
            first,
            direct,
            programs,
            share,
        })
    }

    /// The shared directory on the host.
    #[must_use]
    pub fn host(&self) -> &Path {
        self.share.path()
    }

    /// `name` below the shared directory on the host.
    #[must_use]
    pub fn host_path(&self, name: &str) -> PathBuf {
        self.share.path().join(name)
    }

    /// How the daemons are run.
    #[must_use]
    pub const fn setting(&self) -> &Setting {
        &self.setting
    }

    /// Runs `case` with the rights of the user who owns the share.
    ///
    /// # Errors
    /// Those of `case`.
    pub fn run(&mut self, case: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        match self.setting.user {
            Some(user) => user.act(|| case(self))?,
            None => case(self),
        }
    }

    /// Fails unless a promise is kept on the first share.
    ///
    /// # Errors
    /// It is not, or the guest lacks the programs to try it.
    pub fn keeps(&mut self, promise: Promise) -> Result<()> {
        let owner = self.setting.user.map_or(0, |user| user.uid);
        let share = self.share.path().to_owned();
        let guest = self.guest()?;
        Programs::mount(guest)?;
        promise(&mut Tried {
            guest,
            share: &share,
            owner,
        })
    }

    /// The daemon of the first share.
    pub const fn daemon(&mut self) -> &mut Daemon {
        &mut self.first.daemon
    }

    /// Returns the guest with the first share on [`MOUNT`]. Boots it, replaces a stuck one, and
    /// mounts the share, as necessary.
    ///
    /// # Errors
    /// When it does not boot or mount; with its console and the daemon's log.
    pub fn guest(&mut self) -> Result<&mut Guest> {
        let guest = process::as_root(|| self.mounted_guest())??;
        Ok(self.guest.insert(guest))
    }

    fn mounted_guest(&mut self) -> Result<Guest> {
        if self.daemons_run().is_err() {
            // The test that ended the daemons has failed already; the next ones get new daemons.
            self.guest = None;
            (self.first, self.direct) = start_daemons(self.share.path(), &self.setting)?;
            let machine = self.options.machine;
            let posts = [&self.first, &self.direct];
            self.options = guest_options(machine, &self.setting, posts, self.programs.as_ref())?;
        }
        let mut guest = match self.guest.take() {
            Some(guest) if !guest.is_stuck() => guest,
            _ => Guest::boot(&self.options).with_context(|| self.logs())?,
        };
        if guest
            .run(
                &format!("grep -q ' {MOUNT} virtiofs ' /proc/mounts"),
                guest::USUAL,
            )?
            .status
            != 0
        {
            guest.mount(TAG, MOUNT).with_context(|| self.logs())?;
        }
        Ok(guest)
    }

    /// Kills the guest. The next call of [`Fixture::guest`] boots another.
    pub fn kill_guest(&mut self) {
        if let Some(guest) = self.guest.take() {
            guest.kill();
            if self.setting.program.is_some() {
                self.wait_for_daemons_end();
            }
        }
    }

    /// Other daemons than gangplankd end with their guest. The next guest must not connect to one
    /// that is ending.
    fn wait_for_daemons_end(&mut self) {
        let until = Instant::now() + LEAVING;
        for post in [&mut self.first, &mut self.direct] {
            while post.daemon.is_running().unwrap_or(false) && Instant::now() < until {
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// Fails unless both daemons still run.
    ///
    /// # Errors
    /// With their logs when one has ended.
    pub fn daemons_run(&mut self) -> Result<()> {
        let (first, second) = (self.first.runs()?, self.direct.runs()?);
        ensure!(first && second, "a daemon ended\n{}", self.logs());
        Ok(())
    }

    fn logs(&self) -> String {
        format!(
            "daemon's log:\n{}\nsecond daemon's log:\n{}",
            self.first.log(),
            self.direct.log()
        )
    }
}

impl Post {
    fn start(options: &daemon::Options, setting: &Setting) -> Result<Self> {
        let mut options = options.clone().arguments(setting.arguments);
        if let Some(program) = &setting.program {
            options = options.program(program);
        }
        if let Some(user) = setting.user {
            options = options.user(user);
        }
        let daemon = Daemon::start(&options)?;
        let relay = setting
            .is_relayed
            .then(|| Relay::start(daemon.socket(), &[]))
            .transpose()?;
        let tunnel = setting
            .is_tunnelled
            .then(|| Tunnel::at_switch(daemon.socket()))
            .transpose()?;
        Ok(Self {
            daemon,
            relay,
            tunnel,
        })
    }

    /// The socket for the guest.
    fn socket(&self) -> PathBuf {
        match (&self.relay, &self.tunnel) {
            (Some(relay), _) => relay.socket(),
            (None, Some(tunnel)) => tunnel.socket(),
            (None, None) => self.daemon.socket().to_owned(),
        }
    }

    fn runs(&mut self) -> Result<bool> {
        let relay = self.relay.as_mut().map_or(Ok(true), Relay::is_running)?;
        let tunnel = self.tunnel.as_mut();
        let tunnel = tunnel.map_or(Ok(true), Tunnel::tunnel_runs)?;
        Ok(relay && tunnel && self.daemon.is_running()?)
    }

    fn log(&self) -> String {
        match (&self.relay, &self.tunnel) {
            (Some(relay), _) => format!("{}\nits relay's:\n{}", self.daemon.log(), relay.log()),
            (None, Some(tunnel)) => format!("{}\n{}", self.daemon.log(), tunnel.log()),
            (None, None) => self.daemon.log(),
        }
    }
}

fn start_daemons(share: &Path, setting: &Setting) -> Result<(Post, Post)> {
    let first = daemon::Options::new(share).arguments(&["--xattr"]);
    let direct = daemon::Options::new(share).tag(DIRECT_TAG).arguments(&[
        "--xattr",
        "--allow-direct-io",
        "--cache=never",
    ]);
    Ok((
        Post::start(&first, setting)?,
        Post::start(&direct, setting)?,
    ))
}

fn guest_options(
    machine: Machine,
    setting: &Setting,
    [first, direct]: [&Post; 2],
    programs: Option<&Programs>,
) -> Result<guest::Options> {
    let check = tools::guest_check(machine.arch())?;
    let mut options = guest::Options::new(machine)
        .share(&first.socket(), TAG)
        .share(&direct.socket(), DIRECT_TAG)
        .program("guest-check", &check);
    options.user = setting.user;
    Ok(match programs {
        Some(programs) => programs.add_to(options),
        None => options,
    })
}
