//! `--reload`: has the daemon of a socket reload, and waits for the outcome.
//!
//! The daemon is found by the pid file beside its socket. It writes the outcome of each reload into
//! another file there, `<socket>.reload`: its process id, the time, and `ok` or the reason.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use thiserror::Error;

/// How long to wait for the outcome: longer than the daemon tries.
const TIMEOUT: Duration = Duration::from_secs(45);

/// How often to look for it.
const INTERVAL: Duration = Duration::from_millis(10);

/// What the outcome's file is called behind the socket's name.
pub const SUFFIX: &str = ".reload";

/// Why the daemon has not reloaded.
#[derive(Debug, Error)]
pub enum Error {
    /// No daemon has the socket.
    #[error("no gangplankd serves {socket:?}: {pid_file:?} names no running process")]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// The file with its process id.
        pid_file: PathBuf,
    },
    /// The daemon cannot be signalled.
    #[error("cannot signal process {pid}, which serves {socket:?}")]
    Signal {
        /// The socket.
        socket: PathBuf,
        /// The daemon.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// The new program was refused, or could not take over.
    #[error("not reloaded, the running program goes on: {0}")]
    Refused(String),
    /// It says nothing.
    #[error(
        "process {0} has not said within {limit} s whether it has reloaded",
        limit = TIMEOUT.as_secs()
    )]
    Silent(i32),
    /// It has ended.
    #[error("process {0} has ended while it reloaded")]
    Ended(i32),
}

/// The outcome of a reload, as it is written.
#[must_use]
pub fn text(count: u32, outcome: &Result<(), String>) -> String {
    let pid = std::process::id();
    let outcome = match outcome {
        Ok(()) => "ok",
        Err(reason) => &reason.replace('\n', " "),
    };
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    format!("{pid} {count} {} {outcome}\n", now.as_nanos())
}

/// Has the daemon that listens on `socket` reload.
///
/// # Errors
/// [`enum@Error`], worded for the operator.
pub fn request(socket: &Path) -> Result<(), Error> {
    let pid_file = beside(socket, ".pid");
    let outcome = beside(socket, SUFFIX);
    let pid = std::fs::read_to_string(&pid_file).ok();
    let pid = pid.and_then(|text| text.trim().parse().ok());
    let Some(pid) = pid.and_then(Pid::from_raw) else {
        return Err(Error::NotRunning {
            socket: socket.to_owned(),
            pid_file,
        });
    };
    let number = pid.as_raw_nonzero().get();
    let before = std::fs::read_to_string(&outcome).ok();
    kill_process(pid, Signal::HUP).map_err(|error| match error {
        Errno::SRCH => Error::NotRunning {
            socket: socket.to_owned(),
            pid_file,
        },
        error => Error::Signal {
            socket: socket.to_owned(),
            pid: number,
            source: error.into(),
        },
    })?;
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        let now = std::fs::read_to_string(&outcome).ok();
        if let Some(text) = now.filter(|now| before.as_ref() != Some(now)) {
            return parse(&text);
        }
        if test_kill_process(pid) == Err(Errno::SRCH) {
            return Err(Error::Ended(number));
        }
        thread::sleep(INTERVAL);
    }
    Err(Error::Silent(number))
}

fn parse(text: &str) -> Result<(), Error> {
    match text.trim_end().splitn(4, ' ').nth(3) {
        Some("ok") => Ok(()),
        reason => Err(Error::Refused(reason.unwrap_or(text).to_owned())),
    }
}

fn beside(socket: &Path, suffix: &str) -> PathBuf {
    let mut path = OsString::from(socket);
    path.push(suffix);
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outcome_comes_back_as_it_was_written() {
        assert!(parse(&text(1, &Ok(()))).is_ok());
        let reason = "it has\nversion 2";
        let error = parse(&text(2, &Err(reason.to_owned()))).unwrap_err();
        assert!(error.to_string().ends_with("it has version 2"), "{error}");
    }

    #[test]
    fn a_socket_without_a_daemon_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = request(&directory.path().join("fs.sock")).unwrap_err();
        assert!(error.to_string().contains("fs.sock"), "{error}");
    }
}
