//! The daemon under test, on a socket of its own, with its log.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{self, User};
use crate::sockets::listens;
use crate::tools;
use crate::wait;

/// Limit for the socket to appear, and for the daemon to end after SIGTERM.
const LIMIT: Duration = Duration::from_secs(20);

/// The default tag of a test daemon.
pub const TAG: &str = "myfs";

/// How to start a daemon.
#[derive(Clone, Debug)]
pub struct Options {
    share: PathBuf,
    tag: String,
    arguments: Vec<String>,
    user: Option<User>,
    program: Option<PathBuf>,
    environment: Vec<(String, PathBuf)>,
}

impl Options {
    /// A daemon that shares `share` and has no further options.
    #[must_use]
    pub fn new(share: &Path) -> Self {
        Self {
            share: share.to_owned(),
            tag: TAG.to_owned(),
            arguments: Vec::new(),
            user: None,
            program: None,
            environment: Vec::new(),
        }
    }

    /// The same run by another program that takes virtiofsd's options.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// The same with a path in a variable of its environment.
    #[must_use]
    pub fn variable(mut self, name: &str, path: &Path) -> Self {
        self.environment.push((name.to_owned(), path.to_owned()));
        self
    }

    /// The same announcing `tag` instead of [`TAG`].
    #[must_use]
    pub fn tag(mut self, tag: &str) -> Self {
        tag.clone_into(&mut self.tag);
        self
    }

    /// The same with `arguments` appended to its command line.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// The same run as `user`, who has to own the share.
    #[must_use]
    pub const fn user(mut self, user: User) -> Self {
        self.user = Some(user);
        self
    }
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    dir: TempDir,
}

impl Daemon {
    /// Starts the daemon and waits until it listens. A test connection would count as a guest.
    ///
    /// # Errors
    /// When it ends instead, or takes too long; with its log.
    pub fn start(options: &Options) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-daemon-")
            .tempdir()
            .context("creating the daemon's directory")?;
        let socket = dir.path().join("fs.sock");
        let child = spawn(dir.path(), &socket, options)?;
        let mut daemon = Self { child, socket, dir };
        daemon.wait_for_socket()?;
        Ok(daemon)
    }

    /// Kills it with all its processes, and starts another on the same socket. The log begins anew.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn replace(&mut self, options: &Options) -> Result<()> {
        self.kill();
        // The dead one still listens until its last process is gone.
        let deadline = Instant::now() + LIMIT;
        while listens(self.child.id(), &self.socket) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child = spawn(self.dir.path(), &self.socket, options)?;
        self.wait_for_socket()
    }

    /// Has it end by SIGTERM, and waits for that.
    ///
    /// # Errors
    /// It does not end in time, or fails.
    pub fn terminate(&mut self) -> Result<()> {
        process::signal(&self.child, Signal::TERM)?;
        let status = self.wait()?;
        ensure!(status.success(), "{status}\n{}", self.log());
        Ok(())
    }

    /// Has it reload by `gangplankd --reload`. Returns what that says.
    ///
    /// # Errors
    /// The command cannot be built or started.
    pub fn ask_to_reload(&self) -> Result<Output> {
        let socket = format!("--socket-path={}", self.socket.display());
        let mut command = Command::new(tools::gangplankd()?);
        Ok(command.args(["--reload", &socket]).output()?)
    }

    /// Has it reload.
    ///
    /// # Errors
    /// It has not; with its log.
    pub fn reload(&self) -> Result<()> {
        let output = self.ask_to_reload()?;
        ensure!(output.status.success(), "{output:?}\n{}", self.log());
        Ok(())
    }

    /// Kills it with all its processes, at once.
    pub fn kill(&mut self) {
        process::kill_group(&mut self.child);
    }

    /// Its vhost-user socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process id on the host.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal` to it and all the processes it has started.
    ///
    /// # Errors
    /// When it was already reaped.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        process::signal_group(&self.child, signal).context("signalling the daemon's processes")
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When its status cannot be asked for.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// How many descriptors it and the processes it started have open.
    ///
    /// # Errors
    /// When the process table cannot be read.
    pub fn descriptors(&self) -> Result<usize> {
        process::as_root(|| open_descriptors(self.child.id()))?
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it does not in time; with its log.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        process::wait_within(&mut self.child, LIMIT)
            .with_context(|| format!("waiting for the daemon to end\n{}", self.log()))
    }

    /// Ends it by SIGTERM; returns its exit status and its log.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(mut self) -> Result<(ExitStatus, String)> {
        process::signal(&self.child, Signal::TERM)?;
        let status = process::wait_within(&mut self.child, LIMIT)
            .with_context(|| format!("ending the daemon by SIGTERM\n{}", self.log()))?;
        Ok((status, self.log()))
    }

    fn wait_for_socket(&mut self) -> Result<()> {
        let waited = wait::until("the daemon listens", LIMIT, || {
            // The socket's file appears a moment before the daemon listens.
            let is_ready = listens(self.child.id(), &self.socket);
            wait::ready(&mut self.child, is_ready)
        });
        waited.with_context(|| self.log())
    }
}

/// Starts a daemon, with its log in `dir`.
fn spawn(dir: &Path, socket: &Path, options: &Options) -> Result<Child> {
    if let Some(user) = options.user {
        chown(dir, Some(user.uid), Some(user.gid))?;
    }
    let program = match &options.program {
        Some(program) => program.clone(),
        None => tools::gangplankd()?,
    };
    let program = match options.user {
        // The user may not be able to enter the build directory.
        Some(_) => {
            let copy = dir.join("gangplankd");
            // A process of the daemon before may still be ending, and its file cannot be written.
            let _ = fs::remove_file(&copy);
            process::copy_program(&program, &copy).context("copying the daemon for its user")?;
            copy
        }
        None => program,
    };
    let mut command = process::tied(&program, options.user);
    command
        .arg(format!("--socket-path={}", socket.display()))
        .arg(format!("--shared-dir={}", options.share.display()))
        .arg(format!("--tag={}", options.tag))
        .args(&options.arguments)
        .envs(options.environment.iter().map(|(name, path)| (name, path)))
        .current_dir(dir)
        .stdin(std::process::Stdio::null())
        .stdout(File::create(dir.join("stdout"))?)
        .stderr(File::create(dir.join("log"))?);
    let described = format!("{command:?}");
    process::spawn(command).with_context(|| format!("starting the daemon: {described}"))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
    }
}

/// Open descriptors of `pid` and all its descendants. Processes that share one table of descriptors
/// (clone(2), CLONE_FILES) list the same, which counts once.
fn open_descriptors(pid: u32) -> Result<usize> {
    let mut tables = BTreeSet::new();
    for process in process::with_descendants(pid) {
        let mut table = Vec::new();
        let list = match fs::read_dir(format!("/proc/{process}/fd")) {
            // A guest's processes may end at any time.
            Err(_) if process != pid => continue,
            list => list.with_context(|| format!("the descriptors of process {process}"))?,
        };
        for entry in list {
            let Ok(entry) = entry else { break };
            // A descriptor may be closed while the list is read.
            let target = fs::read_link(entry.path()).unwrap_or_default();
            table.push((entry.file_name(), target));
        }
        table.sort();
        tables.insert(table);
    }
    Ok(tables.iter().map(Vec::len).sum())
}
