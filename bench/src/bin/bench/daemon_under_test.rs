//! The daemons that are measured: their command lines, and starting them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gangplank_tests::packages;
use gangplank_tests::process::{self, User};
use gangplank_tests::tools;
use tempfile::TempDir;

use crate::device::{Device, Waiting};
use crate::placement::Processors;

/// How long a daemon may take to make its socket.
const LIMIT: Duration = Duration::from_secs(20);

/// How long to sleep between two looks for a socket, which is how exact start-up times are.
const LOOK: Duration = Duration::from_micros(200);

/// Where Debian's package has the daemon that QEMU brought before version 8.
const C_DAEMON: &str = "usr/lib/qemu/virtiofsd";

/// The daemon the others are compared with.
pub(crate) const OURS: &str = "gangplankd";

/// A daemon by name and command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DaemonUnderTest {
    /// What it is called.
    pub(crate) name: String,
    /// Its command line, in which `{socket}` and `{share}` stand for paths and `{queues}` for the
    /// number of request queues.
    pub(crate) command: Vec<String>,
}

impl DaemonUnderTest {
    /// From `NAME=COMMAND`, words between blanks.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (name, command) = text.split_once('=').ok_or("it has to be NAME=COMMAND")?;
        for place in ["{socket}", "{share}"] {
            if !command.contains(place) {
                return Err(format!("the command has to say where {place} goes"));
            }
        }
        Ok(Self {
            name: name.to_owned(),
            command: command.split_whitespace().map(str::to_owned).collect(),
        })
    }

    fn new(name: &str, program: &Path, arguments: &[&str]) -> Self {
        let program = program.display().to_string();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned());
        Self {
            name: name.to_owned(),
            command: std::iter::once(program).chain(arguments).collect(),
        }
    }

    /// Whether it can be told to have several request queues.
    pub(crate) fn has_queues(&self) -> bool {
        self.command.iter().any(|word| word.contains("{queues}"))
    }

    /// Starts it with `share`, runs it beside the driver or apart, and opens a session.
    pub(crate) fn start(
        &self,
        share: &Path,
        queues: usize,
        processors: &Processors,
        apart: bool,
        waiting: Waiting,
    ) -> Result<Running> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-bench-")
            .tempdir()?;
        let socket = dir.path().join("fs.sock");
        let mut words = self.command.iter().map(|word| {
            word.replace("{socket}", &socket.display().to_string())
                .replace("{share}", &share.display().to_string())
                .replace("{queues}", &queues.to_string())
        });
        let program = words.next().context("an empty command line")?;
        let mut command: Command = process::tied(program, None);
        let log = dir.path().join("log");
        command
            .args(words)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(File::create(dir.path().join("stdout"))?)
            .stderr(File::create(&log)?);
        let started = Instant::now();
        let child = process::spawn(command)?;
        let mut child = Kept(child);
        let ready = child
            .wait_for(&socket)
            .and_then(|()| processors.pin_daemon(child.0.id(), apart))
            .and_then(|()| Device::open(&socket, queues, waiting));
        let told = || fs::read_to_string(&log).unwrap_or_default();
        let device = ready.with_context(|| format!("starting {}\n{}", self.name, told()))?;
        let start_up = started.elapsed();
        // Threads it had started before it was pinned, and their children.
        processors.pin_daemon(child.0.id(), apart)?;
        Ok(Running {
            device,
            child,
            start_up,
            log,
            _dir: dir,
        })
    }
}

/// A daemon that is running, with a device; killed when dropped.
pub(crate) struct Running {
    /// The device it serves. Closed first: the other end leaves by itself.
    pub(crate) device: Device,
    child: Kept,
    /// From its start to the first answer.
    pub(crate) start_up: Duration,
    log: PathBuf,
    _dir: TempDir,
}

impl Running {
    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// What it has said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

struct Kept(Child);

impl Kept {
    /// Nobody connects to find out whether it listens: a connection is a guest.
    fn wait_for(&mut self, socket: &Path) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !socket.exists() {
            if let Some(status) = self.0.try_wait()? {
                bail!("it ended at once: {status}");
            }
            ensure!(Instant::now() < deadline, "no socket within {LIMIT:?}");
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        process::kill_group(&mut self.0);
    }
}

/// gangplankd and its peers, as far as they are to be had; `missing` is told of those that are not.
pub(crate) fn defaults(mut missing: impl FnMut(&str)) -> Result<Vec<DaemonUnderTest>> {
    let sandbox = if User::is_root() {
        "--sandbox=chroot"
    } else {
        missing("nobody changes the root directory: that takes root");
        "--sandbox=none"
    };
    let mut daemons = vec![DaemonUnderTest::new(
        OURS,
        &tools::gangplankd()?,
        &[
            "--socket-path={socket}",
            "--shared-dir={share}",
            "--num-request-queues={queues}",
            sandbox,
        ],
    )];
    match tools::virtiofsd() {
        Ok(program) => daemons.push(DaemonUnderTest::new(
            "virtiofsd",
            &program,
            &["--socket-path={socket}", "--shared-dir={share}", sandbox],
        )),
        Err(error) => missing(&format!("virtiofsd 1.14.0 is left out: {error:#}")),
    }
    match c_daemon() {
        _ if !User::is_root() => missing("the C virtiofsd is left out: it takes root"),
        Ok(program) => daemons.push(DaemonUnderTest::new(
            "virtiofsd-c",
            &program,
            &[
                "--socket-path={socket}",
                "-o",
                "source={share},sandbox=chroot",
            ],
        )),
        Err(error) => missing(&format!("the C virtiofsd is left out: {error:#}")),
    }
    Ok(daemons)
}

/// The virtiofsd that came with QEMU until version 7.2: Debian 12 has it. Its libraries are the
/// host's.
fn c_daemon() -> Result<PathBuf> {
    let installed = Path::new("/").join(C_DAEMON);
    if installed.exists() {
        return Ok(installed);
    }
    let unpacked = packages::unpacked("qemu-system-common", tools::host_arch())?;
    let program = unpacked.join(C_DAEMON);
    ensure!(
        program.exists(),
        "this Debian's qemu-system-common has none; Debian 12's has"
    );
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_says_where_socket_and_share_go() {
        let parsed = DaemonUnderTest::parse("mine=/bin/mine --socket={socket} -o source={share}");
        let parsed = parsed.expect("both are there");
        assert_eq!(parsed.name, "mine");
        assert_eq!(parsed.command.len(), 4);
        assert!(!parsed.has_queues());
        for wrong in ["/bin/mine", "mine=/bin/mine", "mine=/bin/mine {socket}"] {
            assert!(DaemonUnderTest::parse(wrong).is_err(), "{wrong}");
        }
    }
}
