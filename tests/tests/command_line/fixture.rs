//! The daemon with any command line, in a directory of its own.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use gangplank_tests::process::{self, User};
use gangplank_tests::tools;
use gangplank_tests::wait;
use rustix::process::Signal;
use tempfile::TempDir;

/// Limit for the daemon to be ready, and to end.
const LIMIT: Duration = Duration::from_secs(60);

/// The log's text when the daemon is ready.
const READY: &str = "waiting for guests";

/// A directory with a share, in which the daemon is started.
pub(crate) struct Fixture {
    dir: TempDir,
    program: PathBuf,
    user: Option<User>,
}

impl Fixture {
    /// A fixture of the user who runs the tests.
    pub(crate) fn new() -> Result<Self> {
        Self::of(None)
    }

    /// A fixture in which `user`, if given, runs the daemon.
    pub(crate) fn of(user: Option<User>) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-launch-")
            .tempdir()?;
        fs::create_dir(dir.path().join("share"))?;
        let mut program = tools::gangplankd()?;
        if let Some(user) = user {
            for path in [dir.path().to_owned(), dir.path().join("share")] {
                chown(path, Some(user.uid), Some(user.gid))?;
            }
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
            // The user may not be able to enter the build directory.
            let copy = dir.path().join("gangplankd");
            process::copy_program(&program, &copy).context("copying the daemon for its user")?;
            program = copy;
        }
        Ok(Self { dir, program, user })
    }

    /// The daemon's program.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the fixture's directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The daemon with `arguments`, to run in the fixture's directory.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = process::tied(&self.program, self.user);
        command
            .args(arguments)
            .current_dir(self.path())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    /// Runs the daemon until it ends by itself.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<Ended> {
        self.finish(self.command(arguments))
    }

    /// Runs a command until it ends by itself.
    pub(crate) fn finish(&self, command: Command) -> Result<Ended> {
        let mut running = Running::spawn(command, self.path())?;
        running.end()
    }

    /// Starts the daemon and waits until it is ready.
    pub(crate) fn start(&self, arguments: &[&str]) -> Result<Running> {
        self.start_command(self.command(arguments))
    }

    /// Starts a command and waits until the daemon that it becomes is ready.
    pub(crate) fn start_command(&self, command: Command) -> Result<Running> {
        let mut running = Running::spawn(command, self.path())?;
        running.wait_until_ready()?;
        Ok(running)
    }

    /// Starts the daemon on `fs.sock` for `share`, with more `arguments`.
    pub(crate) fn serve(&self, arguments: &[&str]) -> Result<Running> {
        let mut all = vec!["--socket-path=fs.sock", "--shared-dir=share"];
        all.extend(arguments);
        self.start(&all)
    }
}

/// The end of a daemon.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) output: String,
    pub(crate) errors: String,
}

/// A running daemon. It is killed with all its processes on drop.
pub(crate) struct Running {
    child: Child,
    output: PathBuf,
    errors: PathBuf,
}

impl Running {
    fn spawn(mut command: Command, dir: &Path) -> Result<Self> {
        // A fixture may start several daemons.
        let unique = format!("{:?}", Instant::now()).replace(|c: char| !c.is_ascii_digit(), "");
        let (output, errors) = (
            dir.join(format!("output{unique}")),
            dir.join(format!("errors{unique}")),
        );
        command
            .stdout(File::create(&output)?)
            .stderr(File::create(&errors)?);
        let described = format!("{command:?}");
        let child = process::spawn(command).with_context(|| format!("starting {described}"))?;
        Ok(Self {
            child,
            output,
            errors,
        })
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let waited = wait::until("the daemon is ready", LIMIT, || {
            let is_ready = self.log().contains(READY);
            wait::ready(&mut self.child, is_ready)
        });
        waited.with_context(|| self.log())
    }

    /// The process ID of the started process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process that accepts connections. After the death of one, waits for the next.
    pub(crate) fn acceptor_pid(&self) -> Result<u32> {
        let found = wait::until_found("there is an acceptor", LIMIT, || {
            Ok(process::children_named(self.pid(), "acceptor")?.pop())
        });
        found.with_context(|| self.log())
    }

    /// Connects as a guest's frontend, and waits until its confined worker has answered.
    pub(crate) fn connect(&self) -> Result<Connection> {
        let keepers = || process::children_named(self.pid(), "keeper_");
        let earlier = keepers()?;
        let stream = UnixStream::connect(self.errors.with_file_name("fs.sock"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut connection = Connection {
            keeper: 0,
            worker: 0,
            stream,
        };
        connection.get_features()?;
        let keeper = keepers()?
            .into_iter()
            .find(|child| !earlier.contains(child));
        connection.keeper = keeper.context("there is no new keeper")?;
        let worker = child_of(connection.keeper)?;
        connection.worker = worker.context("the keeper has no worker")?;
        Ok(connection)
    }

    /// Its standard error so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// Sends it a signal and waits for its end.
    pub(crate) fn signal(mut self, signal: Signal) -> Result<Ended> {
        process::signal(&self.child, signal)?;
        self.end()
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> Result<Ended> {
        let status = process::wait_within(&mut self.child, LIMIT)
            .with_context(|| format!("waiting for the daemon's end\n{}", self.log()))?;
        Ok(Ended {
            status,
            output: fs::read_to_string(&self.output)?,
            errors: self.log(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
    }
}

/// Returns whether the tests run as root, and prints that `test` is skipped otherwise.
pub(crate) fn root_or_skip(test: &str) -> bool {
    let root = User::is_root();
    if !root {
        eprintln!("SKIPPED {test}: it needs root");
    }
    root
}

/// A connection to the daemon, and the processes that serve it.
pub(crate) struct Connection {
    pub(crate) keeper: u32,
    pub(crate) worker: u32,
    pub(crate) stream: UnixStream,
}

impl Connection {
    /// Asks for the device's features, which takes a worker that serves.
    pub(crate) fn get_features(&mut self) -> Result<()> {
        // GET_FEATURES of version 1, without a payload.
        for word in [1u32, 1, 0] {
            self.stream.write_all(&word.to_ne_bytes())?;
        }
        let reply = self.stream.read_exact(&mut [0; 20]);
        reply.context("the worker's reply")
    }
}

/// A child of a process, if it has one.
fn child_of(parent: u32) -> Result<Option<u32>> {
    Ok(process::children(parent)?.pop())
}
