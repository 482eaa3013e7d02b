//! Single commands to QEMU's monitor (QEMU Machine Protocol), each on a connection of its own.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Limit for QEMU to listen and to connect.
const STARTING: Duration = Duration::from_secs(30);

/// Lets a QEMU that waits before it makes its devices (`--preconfig`) go on once all its sockets
/// are connected.
///
/// # Errors
/// When they are not in time.
pub(super) fn begin(socket: &Path) -> Result<()> {
    let deadline = Instant::now() + STARTING;
    loop {
        match execute(socket, "query-chardev") {
            Ok(sockets) if !sockets.contains("disconnected:") => break,
            answer => ensure!(Instant::now() < deadline, "QEMU does not begin: {answer:?}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
    execute(socket, "x-exit-preconfig").map(drop)
}

/// Limit for a guest to move to another QEMU on a busy machine.
const MIGRATING: Duration = Duration::from_secs(240);

/// Moves the running guest to the QEMU that waits at the socket `to`, and waits until it has left.
///
/// # Errors
/// When it stays, with QEMU's reason.
pub(super) fn migrate(socket: &Path, to: &Path) -> Result<()> {
    let uri = format!("{{\"uri\":\"unix:{}\"}}", to.display());
    execute_with(socket, "migrate", &uri)?;
    let deadline = Instant::now() + MIGRATING;
    loop {
        let answer = execute(socket, "query-migrate")?;
        if answer.contains("\"completed\"") {
            return Ok(());
        }
        ensure!(
            !answer.contains("\"failed\"") && Instant::now() < deadline,
            "the guest does not migrate: {answer}"
        );
        thread::sleep(Duration::from_millis(100));
    }
}

/// Executes the argument-less `command`, for example `system_reset`. Returns the answer.
///
/// # Errors
/// When QEMU cannot be reached or refuses it.
pub(super) fn execute(socket: &Path, command: &str) -> Result<String> {
    execute_with(socket, command, "{}")
}

/// [`execute`] with `arguments`, a JSON object.
fn execute_with(socket: &Path, command: &str, arguments: &str) -> Result<String> {
    let stream = UnixStream::connect(socket)
        .with_context(|| format!("connecting to QEMU at {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut next = || {
        lines
            .next()
            .context("QEMU closed its monitor")?
            .context("reading QEMU's monitor")
    };
    next()?; // the greeting
    let mut answer = String::new();
    for (name, arguments) in [("qmp_capabilities", "{}"), (command, arguments)] {
        let request = format!("{{\"execute\":\"{name}\",\"arguments\":{arguments}}}\n");
        (&stream).write_all(request.as_bytes())?;
        // Events may come before the answer.
        loop {
            let line = next()?;
            if line.contains("\"return\"") {
                answer = line;
                break;
            }
            if line.contains("\"error\"") {
                bail!("QEMU refused {name}: {line}");
            }
        }
    }
    Ok(answer)
}
