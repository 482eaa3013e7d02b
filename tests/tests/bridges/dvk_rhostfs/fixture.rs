//! A daemon with a share, a server on it, and clients of that.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_dvk::abi::{DcId, Endpoint};
use gangplank_dvk::endpoint::Carrier;
use gangplank_dvk::rhostfs::server::{Credentials, Options, Server};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::wait;
use tempfile::TempDir;

use crate::client::Client;
use crate::loopback_carrier::LoopbackCarrier;

/// The server's endpoint, and the original client's.
pub(crate) const SERVER: Endpoint = Endpoint::from_raw(1);
pub(crate) const CLIENT: Endpoint = Endpoint::from_raw(10);

/// Limit for what must come.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn dc() -> DcId {
    DcId::new(0).expect("there is always a first")
}

/// The first port of two nodes that know each other, of four that no other test has. The kernel
/// gives none of them to a connection (`ip_local_port_range`), as it could give a port that was
/// free a moment ago.
pub(crate) fn ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(25_000);
    NEXT.fetch_add(4, Ordering::Relaxed)
}

/// A running server. It stops on drop.
pub(crate) struct Serving {
    server: Arc<Server>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    /// Serves `options` on `carrier`.
    pub(crate) fn start(carrier: &dyn Carrier, options: &Options) -> Result<Self> {
        let endpoint = carrier.bind(dc(), SERVER, "rhostfsd")?;
        let server = Arc::new(Server::start(endpoint, options)?);
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (server, stop) = (Arc::clone(&server), Arc::clone(&stop));
            move || server.run(&stop)
        });
        Ok(Self {
            server,
            stop,
            thread: Some(thread),
        })
    }
}

impl Serving {
    /// Waits until its daemon is in use.
    pub(crate) fn wait(&self) -> Result<()> {
        ensure!(self.server.wait_for_daemon(LIMIT), "no daemon");
        Ok(())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server has not panicked");
        }
    }
}

/// A daemon with a share, and a server on it.
pub(crate) struct Fixture {
    pub(crate) share: TempDir,
    pub(crate) carrier: LoopbackCarrier,
    pub(crate) daemon: Daemon,
    _serving: Serving,
}

impl Fixture {
    pub(crate) fn new() -> Result<Self> {
        Self::with(&[], |_| ())
    }

    /// A fixture with further daemon arguments, whose server options `choose` changes.
    pub(crate) fn with(arguments: &[&str], choose: impl FnOnce(&mut Options)) -> Result<Self> {
        let share = tempfile::tempdir()?;
        Self::on(share, arguments, choose)
    }

    /// A fixture on an existing share.
    pub(crate) fn on(
        share: TempDir,
        arguments: &[&str],
        choose: impl FnOnce(&mut Options),
    ) -> Result<Self> {
        let options = daemon::Options::new(share.path()).arguments(arguments);
        Self::behind(share, &options, choose)
    }

    /// A fixture with a daemon of these options.
    pub(crate) fn behind(
        share: TempDir,
        daemon: &daemon::Options,
        choose: impl FnOnce(&mut Options),
    ) -> Result<Self> {
        let daemon = Daemon::start(daemon)?;
        let carrier = LoopbackCarrier::default();
        let mut options = options(daemon.socket());
        choose(&mut options);
        let serving = Serving::start(&carrier, &options)?;
        serving.wait().with_context(|| daemon.log())?;
        Ok(Self {
            share,
            carrier,
            daemon,
            _serving: serving,
        })
    }

    /// An original client.
    pub(crate) fn client(&self) -> Client {
        self.client_at(CLIENT, 100)
    }

    /// A client of that endpoint and process.
    pub(crate) fn client_at(&self, endpoint: Endpoint, pid: i32) -> Client {
        Client::new(self.carrier.bind_as(dc(), endpoint, pid), SERVER)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.share.path().join(name)
    }

    /// Makes a file of the share.
    pub(crate) fn put(&self, name: &str, contents: &[u8]) -> Result<()> {
        std::fs::write(self.path(name), contents).context("making a file of the share")
    }
}

/// The default options of servers here.
pub(crate) fn options(socket: &Path) -> Options {
    Options {
        credentials: Credentials { uid: 0, gid: 0 },
        ..Options::new(socket.to_owned())
    }
}

/// Waits until `holds`.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    wait::until(what, LIMIT, || Ok(holds()))
}
