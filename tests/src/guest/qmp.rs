//! One command to QEMU's monitor (QEMU Machine Protocol), on a connection of its own.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Executes the argument-less `command`, for example `system_reset`.
///
/// # Errors
/// When QEMU cannot be reached or refuses it.
pub(super) fn execute(socket: &Path, command: &str) -> Result<()> {
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
    for name in ["qmp_capabilities", command] {
        (&stream).write_all(format!("{{\"execute\":\"{name}\"}}\n").as_bytes())?;
        // Events may come before the answer.
        loop {
            let line = next()?;
            if line.contains("\"return\"") {
                break;
            }
            if line.contains("\"error\"") {
                bail!("QEMU refused {name}: {line}");
            }
        }
    }
    Ok(())
}
