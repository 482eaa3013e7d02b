//! Other daemons of the host that is cut off: one with a share of the cluster and one of a local
//! directory, and one on a mount whose client of MooseFS gives up after a few seconds.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{GetattrIn, NodeId, Operation};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::driver::{Driver, Error, NodeAndFile, Setup, Ticket};
use gangplank_tests::moosefs::Cluster;
use gangplank_tests::{process, tools};
use rustix::io::Errno;
use serde_json::Value;
use tempfile::TempDir;

/// Seconds after which the impatient client of MooseFS gives a request up.
const IMPATIENT: u32 = 5;

/// Limit for the daemon to start, and for a request after the cut.
const LIMIT: Duration = Duration::from_secs(60);

/// The age that the oldest request has at least when the other daemons have warned.
const OLD: Duration = Duration::from_secs(8);

/// The daemons and their guests.
pub(super) struct OtherDaemons {
    /// Of both shares.
    shares: TwoShares,
    /// Guests of both shares.
    far: Driver,
    near: Driver,
    /// Another guest of the cluster's share, which leaves during the cut.
    leaving: Driver,
    /// The request of the first one that waits.
    waiting: Option<Ticket>,
    /// The guest of the impatient mount, and its file.
    impatient: Driver,
    file: NodeAndFile,
    _daemon: Daemon,
}

impl OtherDaemons {
    pub(super) fn start(cluster: &mut Cluster, host: usize) -> Result<Self> {
        let shares = TwoShares::start(&cluster.path(host))?;
        let guest_of = |socket: &Path| Driver::mount(socket, &Setup::default());
        let far = guest_of(&shares.socket("far")).with_context(|| shares.log())?;
        let near = guest_of(&shares.socket("near")).with_context(|| shares.log())?;
        let leaving = guest_of(&shares.socket("far")).with_context(|| shares.log())?;
        let path = cluster.mount_again(host, &format!("mfstimeout={IMPATIENT}"))?;
        let daemon = Daemon::start(&daemon::Options::new(&path))?;
        let mut impatient = guest_of(daemon.socket()).with_context(|| daemon.log())?;
        let file = impatient.create(NodeId::ROOT, c"impatient", 0o600)?;
        impatient.write(file, 0, b"before")?;
        impatient.fsync(file)?;
        Ok(Self {
            shares,
            far,
            near,
            leaving,
            waiting: None,
            impatient,
            file,
            _daemon: daemon,
        })
    }

    /// The share of the local directory is served, a session of the cluster's ends, and
    /// requests fail with EIO where the client of MooseFS gives up.
    pub(super) fn go_on_while_cut(&mut self) -> Result<()> {
        let getattr = Operation::Getattr(GetattrIn::default());
        self.waiting = Some(self.far.submit(1, NodeId::ROOT, getattr, &[], 4096)?);
        for _ in 0..20 {
            let file = self.near.create(NodeId::ROOT, c"local", 0o600)?;
            self.near.write(file, 0, b"content")?;
            ensure!(self.near.read(file, 0, 100)? == b"content");
            self.near.release(file)?;
            self.near.unlink(NodeId::ROOT, c"local")?;
        }
        let waits = (self.leaving).submit(1, NodeId::ROOT, getattr, &[], 4096)?;
        self.leaving.destroy().context("ending a session")?;
        ensure!(!self.leaving.is_finished(&waits)?, "it was answered");
        let reloaded = self.shares.reload("near")?;
        ensure!(reloaded.status.success(), "{reloaded:?}");

        let gave_up = self.impatient.getattr(self.file.node, None);
        is_io_error(gave_up.err(), "GETATTR")?;
        let written = self.impatient.write(self.file, 0, b"during");
        let written = written.and_then(|_| self.impatient.fsync(self.file));
        is_io_error(written.err(), "FSYNC after a write")
    }

    /// The status has the oldest request, and the metrics of it.
    pub(super) fn tell_the_oldest_request(&mut self) -> Result<()> {
        let status = self.shares.status()?;
        let shares = status["shares"].as_array().context("shares")?;
        let of = |tag: &str| shares.iter().find(|share| share["tag"] == tag);
        let far = of("far").context("no share")?;
        let oldest = &far["guests"][0]["oldest"];
        let age = oldest["age_ns"].as_u64().map(Duration::from_nanos);
        ensure!(age > Some(OLD), "{far}");
        let near = of("near").context("no share")?;
        ensure!(near["guests"][0]["oldest"].is_null(), "{near}");
        Ok(())
    }

    /// After the cut: what waited is answered, and what was given up works again.
    pub(super) fn are_served_again(&mut self) -> Result<()> {
        let waiting = self.waiting.take().context("no request waits")?;
        self.far.finish_within(waiting, LIMIT)?;
        // Its client of MooseFS connects again soon.
        let begun = std::time::Instant::now();
        let mut number = 0;
        // The file whose write was given up keeps that error while it is open. Others have none.
        let file = loop {
            number += 1;
            match writes_anew(&mut self.impatient, number) {
                Ok(file) => break file,
                Err(error) => ensure!(begun.elapsed() < LIMIT, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let content = self.impatient.read(file, 0, 100)?;
        ensure!(content == b"after!", "the file has {content:?}");
        Ok(())
    }
}

/// A new file is written.
fn writes_anew(guest: &mut Driver, number: u32) -> Result<NodeAndFile> {
    guest.getattr(NodeId::ROOT, None)?;
    let file = guest.create(
        NodeId::ROOT,
        &CString::new(format!("patient{number}"))?,
        0o600,
    )?;
    guest.write(file, 0, b"after!")?;
    guest.fsync(file)?;
    Ok(file)
}

fn is_io_error(error: Option<Error>, what: &str) -> Result<()> {
    match error {
        Some(Error::Errno(Errno::IO)) => Ok(()),
        other => anyhow::bail!("{what} gives {other:?}, not EIO"),
    }
}

/// A daemon with the shares `far`, on the cluster, and `near`, a local directory.
struct TwoShares {
    child: Child,
    dir: TempDir,
}

impl TwoShares {
    fn start(cluster: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-shares-")
            .tempdir()?;
        fs::create_dir(dir.path().join("near"))?;
        let mut command = process::tied(tools::gangplankd()?, None);
        command
            .arg(format!("--share=far={}", cluster.display()))
            .arg(format!("--share=near={}/near", dir.path().display()))
            .arg(format!("--socket-dir={}", dir.path().display()))
            .arg(format!("--control={}/control", dir.path().display()))
            .stdin(Stdio::null())
            .stderr(File::create(dir.path().join("log"))?);
        let shares = Self {
            child: process::spawn(command)?,
            dir,
        };
        for tag in ["far", "near"] {
            let started = process::wait_for_listener(&shares.child, &shares.socket(tag), LIMIT);
            started.with_context(|| shares.log())?;
        }
        Ok(shares)
    }

    fn socket(&self, tag: &str) -> PathBuf {
        self.dir.path().join(format!("{tag}.sock"))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn status(&self) -> Result<Value> {
        let mut command = Command::new(tools::gangplankd()?);
        command.args(["status", "--json", "--control"]);
        let output = command.arg(self.dir.path().join("control")).output()?;
        ensure!(output.status.success(), "{output:?}\n{}", self.log());
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn reload(&self, tag: &str) -> Result<std::process::Output> {
        let socket = format!("--socket-path={}", self.socket(tag).display());
        let mut command = Command::new(tools::gangplankd()?);
        Ok(command.args(["--reload", &socket]).output()?)
    }
}

impl Drop for TwoShares {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
        // A killed daemon leaves the directory of its own sockets.
        let _ = fs::remove_dir_all(format!("/run/gangplankd-{}", self.child.id()));
    }
}
