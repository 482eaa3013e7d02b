//! A daemon of several shares, each of them a directory with a file of its name.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::{Driver, Setup};
use gangplank_tests::process::{self, children, children_named};
use gangplank_tests::tools;
use gangplank_tests::wait;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Limit for whatever a daemon does, on a slow and busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The daemon; killed when dropped.
pub(crate) struct Fixture {
    pub(crate) child: Child,
    dir: TempDir,
}

impl Fixture {
    /// Starts a daemon with a control socket and metrics, and waits until it serves.
    pub(crate) fn start(tags: &[&str], arguments: &[&str]) -> Result<Self> {
        let mut fixture = Self::spawn(tags, arguments, &[])?;
        fixture.wait_for_log("gangplank_backend::shares::daemon] serving ")?;
        Ok(fixture)
    }

    /// Starts a daemon with these variables, which may not serve. An argument may have the place
    /// holder `{}` for the fixture's directory.
    pub(crate) fn spawn(
        tags: &[&str],
        arguments: &[&str],
        variables: &[(&str, String)],
    ) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-shares-")
            .tempdir()?;
        for below in ["sockets", "files"] {
            fs::create_dir(dir.path().join(below))?;
        }
        for tag in tags {
            make_share(dir.path(), tag)?;
        }
        let mut command = process::tied(tools::gangplankd()?, None);
        let place = dir.path().display().to_string();
        command
            .args(arguments.iter().map(|text| text.replace("{}", &place)))
            .arg(format!("--socket-dir={place}/sockets"))
            .arg(format!("--control={place}/control"))
            .arg(format!("--metrics={place}/metrics"))
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(std::process::Stdio::null())
            .stderr(File::create(dir.path().join("log"))?);
        let child = process::spawn(command)?;
        Ok(Self { child, dir })
    }

    /// A path in the fixture's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn socket(&self, tag: &str) -> PathBuf {
        self.path(&format!("sockets/{tag}.sock"))
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub(crate) fn wait_for_log(&mut self, words: &str) -> Result<()> {
        let waited = wait::until(&format!("the log has {words:?}"), LIMIT, || {
            let is_there = self.log().contains(words);
            wait::ready(&mut self.child, is_there)
        });
        waited.with_context(|| self.log())
    }

    /// Waits until `holds` does.
    pub(crate) fn wait_until(&self, what: &str, holds: impl FnMut() -> Result<bool>) -> Result<()> {
        wait::until(what, LIMIT, holds).with_context(|| self.log())
    }

    /// A guest of a share.
    pub(crate) fn driver(&self, tag: &str) -> Result<Driver> {
        let mounted = Driver::mount(&self.socket(tag), &Setup::default());
        mounted.with_context(|| format!("mounting {tag}\n{}", self.log()))
    }

    /// `gangplankd share` with `words`, which may have the place holder.
    pub(crate) fn share(&self, words: &[&str]) -> Result<Output> {
        let place = self.dir.path().display().to_string();
        Ok(Command::new(tools::gangplankd()?)
            .arg("share")
            .args(words.iter().map(|text| text.replace("{}", &place)))
            .arg(format!("--control={place}/control"))
            .output()?)
    }

    /// The same, done.
    pub(crate) fn share_done(&self, words: &[&str]) -> Result<()> {
        let output = self.share(words)?;
        ensure!(output.status.success(), "{output:?}\n{}", self.log());
        Ok(())
    }

    /// The same, refused with `hint` among its words.
    pub(crate) fn share_refused(&self, words: &[&str], hint: &str) -> Result<()> {
        let output = self.share(words)?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{words:?} is done");
        ensure!(text.contains(hint), "{words:?}: {text}");
        Ok(())
    }

    /// A share, as a list has it.
    pub(crate) fn listed(&self, tag: &str) -> Result<Option<Value>> {
        let output = self.share(&["list", "--json"])?;
        ensure!(output.status.success(), "{output:?}\n{}", self.log());
        let list: Value = serde_json::from_slice(&output.stdout)?;
        let mut list = list.as_array().context("a list")?.iter();
        Ok(list.find(|one| one["tag"] == tag).cloned())
    }

    /// The first process of a share.
    pub(crate) fn supervisor(&self, tag: &str) -> Result<u32> {
        let listed = self.listed(tag)?.context("no such share")?;
        let process = listed["process"].as_u64().context("no process")?;
        Ok(process.try_into()?)
    }

    /// The acceptor of a share.
    pub(crate) fn acceptor(&self, tag: &str) -> Result<u32> {
        let found = children_named(self.supervisor(tag)?, "acceptor")?;
        found.first().copied().context("no acceptor")
    }

    /// The worker of the guest of a share with one guest.
    pub(crate) fn worker(&self, tag: &str) -> Result<u32> {
        let keepers = children_named(self.supervisor(tag)?, "keeper_")?;
        let keeper = keepers.first().context("no guest")?;
        children(*keeper)?.first().copied().context("no worker")
    }

    /// `gangplankd status` with `words`.
    pub(crate) fn status(&self, words: &[&str]) -> Result<String> {
        let output = Command::new(tools::gangplankd()?)
            .arg("status")
            .args(words)
            .arg("--control")
            .arg(self.path("control"))
            .output()?;
        ensure!(output.status.success(), "{output:?}\n{}", self.log());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Ends the daemon by SIGTERM, and checks that it leaves nothing.
    pub(crate) fn end(mut self) -> Result<()> {
        process::signal(&self.child, Signal::TERM)?;
        let status = self.wait()?;
        ensure!(status.success(), "{status}\n{}", self.log());
        self.has_left_nothing()
    }

    /// Waits until it ends.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        process::wait_within(&mut self.child, LIMIT).with_context(|| self.log())
    }

    /// Checks that neither sockets nor pid files are there.
    pub(crate) fn has_left_nothing(&self) -> Result<()> {
        let mut left: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(self.path("sockets"))? {
            left.push(entry?.path());
        }
        left.extend(["control", "metrics"].map(|name| self.path(name)));
        let mut paths = vec![PathBuf::from("/run"), std::env::temp_dir()];
        paths.extend(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from));
        let private = format!("gangplankd-{}", self.child.id());
        left.extend(paths.iter().map(|path| path.join(&private)));
        left.retain(|path| path.exists());
        ensure!(left.is_empty(), "{left:?} are left\n{}", self.log());
        Ok(())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
        // A killed daemon leaves the directory of its own sockets, if root has run it here.
        let private = format!("/run/gangplankd-{}", self.child.id());
        let _ = fs::remove_dir_all(private);
    }
}

fn make_share(place: &Path, tag: &str) -> Result<()> {
    let directory = place.join(tag);
    fs::create_dir(&directory)?;
    fs::write(directory.join(format!("of_{tag}")), tag)?;
    Ok(())
}

/// A guest's work: it writes a file, and reads it back.
pub(crate) fn work(driver: &mut Driver, name: &std::ffi::CStr) -> Result<()> {
    let file = driver.create(NodeId::ROOT, name, 0o600)?;
    driver.write(file, 0, b"content")?;
    ensure!(driver.read(file, 0, 100)? == b"content");
    driver.release(file)?;
    driver.unlink(NodeId::ROOT, name)?;
    Ok(())
}

/// Sends a signal to a process by its number.
pub(crate) fn signal(process: u32, signal: Signal) -> Result<()> {
    let process = Pid::from_raw(process.try_into()?).context("a process")?;
    kill_process(process, signal)?;
    Ok(())
}
