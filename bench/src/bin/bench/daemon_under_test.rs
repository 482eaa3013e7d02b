//! The measured daemons: their command lines, and how they start.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gangplank_tests::packages;
use gangplank_tests::process::{self, User};
use gangplank_tests::sockets::listens;
use gangplank_tests::tools;
use tempfile::TempDir;

use crate::device::{Device, Waiting};
use crate::metrics_reader::MetricsReader;
use crate::placement::Processors;

/// Limit for a daemon to create its socket.
const LIMIT: Duration = Duration::from_secs(20);

/// Interval between two checks for the socket, and so the error of start-up times.
const LOOK: Duration = Duration::from_micros(200);

/// Path, in Debian's package, of the daemon that came with QEMU before version 8.
const C_DAEMON: &str = "usr/lib/qemu/virtiofsd";

/// The name of the daemon that the others are compared with.
pub(crate) const OURS: &str = "gangplankd";

/// A daemon by name and command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DaemonUnderTest {
    /// Its name.
    pub(crate) name: String,
    /// Its command line. `{socket}` and `{share}` stand for paths, `{queues}` for the number of
    /// request queues, and `{metrics}` for the path of a socket that is read while it is measured.
    pub(crate) command: Vec<String>,
}

impl DaemonUnderTest {
    /// Parses `NAME=COMMAND`. Blanks separate words.
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

    /// Whether its command line sets the number of request queues.
    pub(crate) fn has_queues(&self) -> bool {
        self.command.iter().any(|word| word.contains("{queues}"))
    }

    /// Starts the daemon on `share`, pins it beside the driver or apart from it, and opens a
    /// session.
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
        let metrics = dir.path().join("metrics.sock");
        let mut words = self.command.iter().map(|word| {
            word.replace("{socket}", &socket.display().to_string())
                .replace("{metrics}", &metrics.display().to_string())
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
            .and_then(|()| {
                let connecting = Instant::now();
                let device = Device::open(&socket, queues, waiting)?;
                Ok((device, connecting.elapsed()))
            });
        let told = || fs::read_to_string(&log).unwrap_or_default();
        let (device, first_reply) =
            ready.with_context(|| format!("starting {}\n{}", self.name, told()))?;
        let start_up = started.elapsed();
        // Threads that started before the daemon was pinned, and their children.
        processors.pin_daemon(child.0.id(), apart)?;
        let has_metrics = self.command.iter().any(|word| word.contains("{metrics}"));
        let reader = has_metrics
            .then(|| MetricsReader::start(metrics))
            .transpose()?;
        Ok(Running {
            device,
            _reader: reader,
            child,
            start_up,
            first_reply,
            socket,
            log,
            _dir: dir,
        })
    }
}

/// A running daemon with a device. It is killed on drop.
pub(crate) struct Running {
    /// The device it serves. It is closed first, so that the daemon can end by itself.
    pub(crate) device: Device,
    /// Reads its metrics, if it tells any.
    _reader: Option<MetricsReader>,
    child: Kept,
    /// Time from its start to the first reply.
    pub(crate) start_up: Duration,
    /// Time from connect(2) to the first reply.
    pub(crate) first_reply: Duration,
    socket: PathBuf,
    log: PathBuf,
    _dir: TempDir,
}

impl Running {
    /// Its process ID.
    pub(crate) fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// The socket that it listens on.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

struct Kept(Child);

impl Kept {
    /// Waits until it listens at the socket.
    fn wait_for(&mut self, socket: &Path) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !listens(self.0.id(), socket) {
            if let Some(status) = self.0.try_wait()? {
                bail!("the daemon ended during its start: {status}");
            }
            ensure!(
                Instant::now() < deadline,
                "the daemon does not listen within {LIMIT:?}"
            );
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

/// gangplankd and those peers that this machine can build or download. Calls `missing` for each of
/// the others.
pub(crate) fn defaults(mut missing: impl FnMut(&str)) -> Result<Vec<DaemonUnderTest>> {
    let sandbox = if User::is_root() {
        "--sandbox=chroot"
    } else {
        missing("no daemon changes its root directory, because that needs root");
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

/// Fetches the virtiofsd that came with QEMU until version 7.2, from Debian 12. It uses the host's
/// libraries.
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
