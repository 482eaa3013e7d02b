//! A relay under test, on a socket of its own before a daemon, with its control commands and its
//! log.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::process::{self, User};
use crate::sockets::listens;
use crate::tools;
use crate::wait;

/// Limit for the socket to appear.
const LIMIT: Duration = Duration::from_secs(20);

/// A running relay; killed when dropped.
pub struct Relay {
    child: Child,
    dir: TempDir,
}

impl Relay {
    /// Starts a relay to the daemon at `backend`, which need not exist yet, and waits until guests
    /// can connect.
    ///
    /// # Errors
    /// When it ends instead, or takes too long; with its log.
    pub fn start(backend: &Path, arguments: &[&str]) -> Result<Self> {
        Self::start_as(None, backend, arguments)
    }

    /// The same as another user.
    ///
    /// # Errors
    /// As [`Relay::start`].
    pub fn start_as(user: Option<User>, backend: &Path, arguments: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-relay-")
            .tempdir()
            .context("creating the relay's directory")?;
        let mut program = tools::frontend()?;
        if let Some(user) = user {
            chown(dir.path(), Some(user.uid), Some(user.gid))?;
            // The user may not be able to enter the build directory.
            let copy = dir.path().join("gangplank-frontend");
            process::copy_program(&program, &copy).context("copying the relay for its user")?;
            program = copy;
        }
        let mut command = process::tied(program, user);
        command
            .arg("relay")
            .arg("--listen")
            .arg(dir.path().join("guest.sock"))
            .arg("--backend")
            .arg(backend)
            .arg("--control")
            .arg(dir.path().join("control.sock"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("log"))?);
        let child = process::spawn(command).context("starting the relay")?;
        let mut relay = Self { child, dir };
        let started = wait::until("the relay listens", LIMIT, || {
            let is_ready = listens(relay.child.id(), &relay.socket());
            wait::ready(&mut relay.child, is_ready)
        });
        started.with_context(|| relay.log())?;
        Ok(relay)
    }

    /// The socket for guests.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("guest.sock")
    }

    /// Sends a control command, such as `status` or `switch SOCKET`. Returns the reply.
    ///
    /// # Errors
    /// When it does not do it; with what it says.
    pub fn tell(&self, words: &[&str]) -> Result<String> {
        let (word, rest) = words.split_first().context("nothing to tell")?;
        let output = Command::new(tools::frontend()?)
            .args(["relay", word, "--control"])
            .arg(self.dir.path().join("control.sock"))
            .args(rest)
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complained = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{words:?}: {}: {said}{complained}",
            output.status
        );
        Ok(said)
    }

    /// Waits until its status contains `text`. Returns the status.
    ///
    /// # Errors
    /// When it has not in time.
    pub fn wait_for(&self, text: &str) -> Result<String> {
        let mut status = String::new();
        let waited = wait::until(&format!("the status has {text:?}"), LIMIT, || {
            status = self.tell(&["status"])?;
            Ok(status.contains(text))
        });
        waited.with_context(|| format!("{status}\n{}", self.log()))?;
        Ok(status)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When its status cannot be asked for.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Ends it by SIGTERM. Returns its log.
    ///
    /// # Errors
    /// When it does not end, or not well.
    pub fn stop(mut self) -> Result<String> {
        process::signal(&self.child, rustix::process::Signal::TERM)?;
        let status = process::wait_within(&mut self.child, LIMIT)
            .with_context(|| format!("ending the relay by SIGTERM\n{}", self.log()))?;
        ensure!(status.success(), "{status}\n{}", self.log());
        ensure!(!self.socket().exists(), "its socket is left behind");
        Ok(self.log())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
    }
}
