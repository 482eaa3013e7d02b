//! Programs that a socket unit of systemd starts. `systemd-socket-activate` listens as systemd does,
//! starts the program at the first connection, and passes the socket.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::TAG;
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::wait;
use gangplank_tests::{process, tools};
use rustix::process::Signal;

/// Limit for a socket to appear, for a program to say something, and to end.
const LIMIT: Duration = Duration::from_secs(60);

/// A program behind a socket; killed when dropped.
struct Activated {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Activated {
    /// `program` with `arguments` behind the socket `name` in `dir`.
    fn new(dir: &Path, name: &str, program: &Path, arguments: &[&OsStr]) -> Result<Self> {
        let (socket, log) = (dir.join(name), dir.join(format!("{name}.log")));
        let mut command = process::tied("systemd-socket-activate", None);
        command
            .arg("--listen")
            .arg(&socket)
            .arg(format!("--fdname={name}"))
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(File::create(&log)?);
        let child = process::spawn(command).context("starting systemd-socket-activate")?;
        let activated = Self { child, socket, log };
        process::wait_for_listener(&activated.child, &activated.socket, LIMIT)?;
        Ok(activated)
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn wait_for_log(&self, words: &str) -> Result<()> {
        let waited = wait::until(&format!("the log has {words:?}"), LIMIT, || {
            Ok(self.log().contains(words))
        });
        waited.with_context(|| self.log())
    }
}

impl Drop for Activated {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
    }
}

/// A guest is served by a relay and a daemon, each of which its connection starts. The daemon hands
/// the guest over to another program at a reload, and ends with its guest.
pub(crate) fn sockets_of_a_service_manager_serve_a_guest() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let share = dir.path().join("share");
    fs::create_dir(&share)?;
    let arguments = ["--shared-dir".as_ref(), share.as_os_str()];
    let mut daemon = Activated::new(dir.path(), "fs.sock", &tools::gangplankd()?, &arguments)?;
    let arguments = [
        "relay".as_ref(),
        "--backend".as_ref(),
        daemon.socket.as_os_str(),
    ];
    let mut relay = Activated::new(dir.path(), "relay.sock", &tools::frontend()?, &arguments)?;

    let logs = |daemon: &Activated, relay: &Activated| {
        format!("daemon:\n{}\nrelay:\n{}", daemon.log(), relay.log())
    };
    let options = Options::new(Machine::Uml).share(&relay.socket, TAG);
    let mut guest = Guest::boot(&options).with_context(|| logs(&daemon, &relay))?;
    let mounted = guest.mount(TAG, "/mnt");
    mounted.with_context(|| logs(&daemon, &relay))?;
    guest.sh("echo content >/mnt/file")?;
    ensure!(fs::read_to_string(share.join("file"))? == "content\n");
    process::signal(&daemon.child, Signal::HUP)?;
    daemon.wait_for_log("reload 1 is done")?;
    ensure!(guest.sh("cat /mnt/file")? == "content\n");
    guest.power_off()?;

    process::signal(&relay.child, Signal::TERM)?;
    for ended in [&mut relay.child, &mut daemon.child] {
        let status = process::wait_within(ended, LIMIT)?;
        ensure!(status.success(), "{status}");
    }
    // The sockets are systemd's.
    ensure!(relay.socket.exists() && daemon.socket.exists());
    Ok(())
}
