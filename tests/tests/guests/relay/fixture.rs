//! A guest behind a relay with replaceable daemons.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::relay::Relay;
use gangplank_tests::tools;
use tempfile::TempDir;

/// The kind of daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Gangplankd,
    Virtiofsd,
}

/// A relay, the share, and the path of its daemon's socket.
pub(crate) struct Fixture {
    pub(crate) relay: Relay,
    pub(crate) share: TempDir,
    socket_dir: TempDir,
}

impl Fixture {
    /// A relay without a daemon, with `arguments`.
    pub(crate) fn new(arguments: &[&str]) -> Result<Self> {
        let socket_dir = tempfile::tempdir()?;
        Ok(Self {
            relay: Relay::start(&socket_dir.path().join("fs.sock"), arguments)?,
            share: tempfile::tempdir()?,
            socket_dir,
        })
    }

    /// Starts a daemon of the share that the relay does not find yet.
    pub(crate) fn daemon(&self, kind: Kind, arguments: &[&str]) -> Result<Daemon> {
        let options = daemon::Options::new(self.share.path()).arguments(arguments);
        Daemon::start(&match kind {
            Kind::Gangplankd => options,
            Kind::Virtiofsd => options.program(&tools::virtiofsd()?),
        })
    }

    /// Links a daemon's socket to the path that the relay uses.
    pub(crate) fn put(&self, daemon: &Daemon) -> Result<()> {
        let path = self.socket_dir.path().join("fs.sock");
        let new = self.socket_dir.path().join("new");
        symlink(daemon.socket(), &new)?;
        std::fs::rename(new, path).context("linking the daemon's socket to the relay's path")
    }

    /// A guest behind the relay.
    pub(crate) fn boot(&self, machine: Machine) -> Result<Guest> {
        let options = Options::new(machine).share(&self.relay.socket(), TAG);
        Guest::boot(&options).with_context(|| self.relay.log())
    }

    /// `name` in the share, on the host.
    pub(crate) fn host(&self, name: &str) -> PathBuf {
        self.share.path().join(name)
    }
}

/// A daemon's socket, as an argument.
pub(crate) fn socket_of(daemon: &Daemon) -> Result<&str> {
    let path: &Path = daemon.socket();
    path.to_str().context("a path that is no text")
}
