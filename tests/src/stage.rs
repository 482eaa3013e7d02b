//! One guest on one or two shares of running daemons, with what trials do to them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::daemon::{self, Daemon, TAG};
use crate::guest::{self, Guest, Machine};
use crate::tools;

/// Tag of the second share, whose daemon lets `O_DIRECT` through and caches nothing.
pub const DIRECT_TAG: &str = "direct";

/// Where the guest mounts the first share.
pub const MOUNT: &str = "/mnt";

/// A guest with the daemons that serve it and the host directory they share.
pub struct Stage {
    guest: Option<Guest>,
    options: guest::Options,
    daemon: Daemon,
    /// Kept for the guest's second device.
    direct: Daemon,
    share: TempDir,
}

impl Stage {
    /// A stage for `machine`; its guest boots when first asked for.
    ///
    /// # Errors
    /// When a daemon does not start or a program for the guest does not build.
    pub fn new(machine: Machine) -> Result<Self> {
        let share = tempfile::Builder::new()
            .prefix("gangplank-share-")
            .tempdir()?;
        let (daemon, direct) = start_daemons(share.path())?;
        let options = guest_options(machine, &daemon, &direct)?;
        Ok(Self {
            guest: None,
            options,
            daemon,
            direct,
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

    /// The daemon of the first share.
    pub const fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// The guest with the first share on [`MOUNT`]: booted, or replaced when it is stuck, and
    /// mounted as necessary.
    ///
    /// # Errors
    /// When it does not boot or mount; with its console and the daemon's log.
    pub fn guest(&mut self) -> Result<&mut Guest> {
        if self.daemons_run().is_err() {
            // The trial that ended them has failed already; the next ones have their own chance.
            self.guest = None;
            (self.daemon, self.direct) = start_daemons(self.share.path())?;
            self.options = guest_options(self.options.machine, &self.daemon, &self.direct)?;
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
        Ok(self.guest.insert(guest))
    }

    /// Kills the guest at once; the next call of [`Stage::guest`] boots another.
    pub fn kill_guest(&mut self) {
        if let Some(guest) = self.guest.take() {
            guest.kill();
        }
    }

    /// Fails unless both daemons still run.
    ///
    /// # Errors
    /// With their logs when one has ended.
    pub fn daemons_run(&mut self) -> Result<()> {
        let (first, second) = (self.daemon.is_running()?, self.direct.is_running()?);
        ensure!(first && second, "a daemon ended\n{}", self.logs());
        Ok(())
    }

    fn logs(&self) -> String {
        format!(
            "daemon's log:\n{}\nsecond daemon's log:\n{}",
            self.daemon.log(),
            self.direct.log()
        )
    }
}

fn start_daemons(share: &Path) -> Result<(Daemon, Daemon)> {
    let daemon = Daemon::start(&daemon::Options::new(share).arguments(&["--xattr"]))?;
    let direct = Daemon::start(&daemon::Options::new(share).tag(DIRECT_TAG).arguments(&[
        "--xattr",
        "--allow-direct-io",
        "--cache=never",
    ]))?;
    Ok((daemon, direct))
}

fn guest_options(machine: Machine, daemon: &Daemon, direct: &Daemon) -> Result<guest::Options> {
    let check = tools::guest_check(machine.arch())?;
    Ok(guest::Options::new(machine)
        .share(daemon.socket(), TAG)
        .share(direct.socket(), DIRECT_TAG)
        .program("guest-check", &check))
}
