//! Signals that must end no daemon, sent to one.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::wait;

/// Signals whose default ends a program or does nothing, by number: SIGUSR2, SIGPIPE, SIGALRM,
/// SIGSTKFLT, SIGCHLD, SIGCONT, SIGURG, SIGXCPU, SIGXFSZ, SIGVTALRM, SIGPROF, SIGWINCH, SIGIO,
/// SIGPWR, and all real-time signals. Beside SIGTERM, SIGINT, SIGQUIT and SIGKILL, which end a
/// daemon, those are left out that stop one or say that it has a fault.
pub const SILENT: &str = "12 13 14 16 17 18 23 24 25 26 27 28 29 30 32 33 34 35 36 37 38 39 40 41 \
                          42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64";

/// At which signals a daemon writes its status to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusAt {
    /// At SIGUSR1. It reloads at SIGHUP.
    Usr1,
    /// At SIGUSR1 and at SIGHUP.
    Usr1AndHup,
}

/// Time for a status to be in the log.
const LIMIT: Duration = Duration::from_secs(20);

/// What a line of a status in the log has.
const STATUS: &str = "status: ";

/// Sends each harmless signal to process `pid`, and then those at which it writes its status to the
/// log, which `log` reads.
///
/// # Errors
/// There is no such status in time, as when a signal has ended the process.
pub fn survive(pid: u32, status: StatusAt, log: impl Fn() -> String) -> Result<()> {
    send(pid, SILENT)?;
    let asking: &[&str] = match status {
        StatusAt::Usr1 => &["USR1"],
        // As under nohup(1).
        StatusAt::Usr1AndHup if ignores_hangup(pid)? => &["USR1"],
        StatusAt::Usr1AndHup => &["USR1", "HUP"],
    };
    for signal in asking {
        let before = log().matches(STATUS).count();
        send(pid, signal)?;
        let what = format!("there is a status after SIG{signal}");
        wait::until(&what, LIMIT, || Ok(log().matches(STATUS).count() != before))
            .with_context(&log)?;
    }
    Ok(())
}

/// Sends a process signals, by names or numbers. A library of system calls knows the C library's
/// numbers alone.
fn send(pid: u32, signals: &str) -> Result<()> {
    let script = format!("for signal in {signals}; do kill -$signal {pid} || exit; done");
    let status = Command::new("sh").args(["-c", &script]).status()?;
    ensure!(status.success(), "signals to process {pid}: {status}");
    Ok(())
}

fn ignores_hangup(pid: u32) -> Result<bool> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .context("no ignored signals")?;
    Ok(u64::from_str_radix(ignored.trim(), 16)? & 1 != 0)
}
