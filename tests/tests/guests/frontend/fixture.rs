//! A daemon with a share of its own: gangplankd, or virtiofsd where it builds.

use std::os::unix::fs::chown;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use gangplank_driver::{Driver, FuseSession, InitOptions, Options};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::process::User;
use gangplank_tests::tools;
use tempfile::TempDir;

/// Limit of a call without faults.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A daemon with a share of its own.
pub(crate) struct Fixture {
    /// The shared directory.
    pub(crate) share: TempDir,
    pub(crate) daemon: Daemon,
    /// Whether the daemon is ours.
    pub(crate) ours: bool,
}

impl Fixture {
    pub(crate) fn ours(arguments: &[&str]) -> Result<Self> {
        let share = tempfile::tempdir()?;
        let daemon = Daemon::start(&daemon::Options::new(share.path()).arguments(arguments))?;
        Ok(Self {
            share,
            daemon,
            ours: true,
        })
    }

    /// A daemon that an ordinary user runs, without namespaces. Needs root.
    pub(crate) fn of_nobody() -> Result<Self> {
        let user = User::NOBODY;
        let share = tempfile::tempdir()?;
        chown(share.path(), Some(user.uid), Some(user.gid))?;
        let options = daemon::Options::new(share.path()).user(user);
        Ok(Self {
            daemon: Daemon::start(&options.arguments(&["--sandbox=none"]))?,
            share,
            ours: true,
        })
    }

    fn virtiofsd(arguments: &[&str]) -> Result<Self> {
        let share = tempfile::tempdir()?;
        let daemon = start_virtiofsd(share.path(), arguments)?;
        Ok(Self {
            share,
            daemon,
            ours: false,
        })
    }

    /// Starts a new daemon if the old one ended with its connection, as virtiofsd does.
    pub(crate) fn serve_again(&mut self) -> Result<()> {
        if !self.ours {
            self.daemon = start_virtiofsd(self.share.path(), &[])?;
        }
        Ok(())
    }

    /// One fixture for each daemon that this machine can build.
    pub(crate) fn each(arguments: &[&str]) -> Result<Vec<Self>> {
        let mut places = vec![Self::ours(arguments)?];
        match Self::virtiofsd(arguments) {
            Ok(fixture) => places.push(fixture),
            Err(error) => eprintln!("SKIPPED virtiofsd, which does not build: {error:#}"),
        }
        Ok(places)
    }

    pub(crate) fn driver(&self, options: &Options) -> Result<Driver> {
        let options = Options {
            limit: LIMIT,
            ..*options
        };
        Driver::connect(self.daemon.socket(), &options)
            .with_context(|| format!("connecting\n{}", self.daemon.log()))
    }

    pub(crate) fn session(&self) -> Result<FuseSession> {
        Ok(self
            .driver(&Options::default())?
            .session(&InitOptions::default())?)
    }
}

fn start_virtiofsd(share: &Path, arguments: &[&str]) -> Result<Daemon> {
    let options = daemon::Options::new(share)
        .program(&tools::virtiofsd()?)
        .arguments(&["--sandbox=none"])
        .arguments(arguments);
    Daemon::start(&options)
}
