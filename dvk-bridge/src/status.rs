//! The status socket: shows the state of a running program to each program that connects.
//!
//! The state is sent without being asked for, as text. A program whose own end of the connection has
//! an abstract name that begins with `JSON_NAME` gets a JSON object instead: so the sender never
//! waits for a question.

use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gangplank_sandbox::seccomp::Seccomp;
use gangplank_service::logging;
use gangplank_service::signals::{STATUS, TERMINATION};
use gangplank_service::unix_listener::{BindError, OwnedListener};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::fd::OwnedFd;
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
use serde_json::{Value, json};

use crate::carrier::stream::{AcceptBackoff, MAX_POLL_WAIT, poll_for};
use crate::sandbox::{self, Needs};

/// Time limit to read a status.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest status that is read, in bytes.
const MAX_STATUS_SIZE: u64 = 4 << 20;

/// Beginning of the abstract name of a socket whose program wants JSON.
const JSON_NAME: &[u8] = b"gangplank-json-";

/// A part of a program that reports its state.
pub trait Report: Send + Sync {
    /// Appends its state as lines.
    fn report(&self, to: &mut String);

    /// Its state as an object, with names that stay. `kind` says what it is.
    fn json(&self) -> Value;
}

/// Why a status cannot be served or read.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The socket cannot be created.
    #[error("cannot report the status")]
    Listen(#[from] BindError),
    /// The thread that reports the status does not start.
    #[error("cannot report the status at {}", path.display())]
    Start {
        /// The socket.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The program cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] gangplank_sandbox::Error),
    /// The status cannot be read.
    #[error("cannot ask {} for a status", path.display())]
    Ask {
        /// The socket.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
}

/// A thread that serves the status until this is dropped.
pub struct StatusServer {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl StatusServer {
    /// Serves the state of all `parts`, in order, at `path`.
    pub fn start(path: &Path, parts: Vec<Arc<dyn Report>>) -> Result<Self, StatusError> {
        Self::start_at(path, listen(path)?, parts)
    }

    /// As [`Self::start`], with the socket that [`listen`] has created at `path`.
    pub(crate) fn start_at(
        path: &Path,
        listener: OwnedListener,
        parts: Vec<Arc<dyn Report>>,
    ) -> Result<Self, StatusError> {
        let failed = |source| StatusError::Start {
            path: path.to_owned(),
            source,
        };
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = Arc::new(stop.map_err(|error| failed(error.into()))?);
        let stopped = stop.clone();
        let thread = thread::Builder::new().name("status".to_owned());
        let thread = thread.spawn(move || serve(&listener, &stopped, &parts));
        Ok(Self {
            stop,
            thread: Some(thread.map_err(failed)?),
        })
    }
}

impl Drop for StatusServer {
    fn drop(&mut self) {
        // An eventfd whose counter is full wakes the thread as well.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // The thread returns nothing.
            let _ = thread.join();
        }
    }
}

fn serve(listener: &OwnedListener, stop: &OwnedFd, parts: &[Arc<dyn Report>]) {
    let mut backoff = AcceptBackoff::default();
    loop {
        let mut ready = [
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(listener, backoff.interest()),
        ];
        let waited = poll_for(&mut ready, backoff.paused_for().unwrap_or(MAX_POLL_WAIT));
        let [stopped, asked] = &ready;
        if waited.is_err() || !stopped.revents().is_empty() {
            return;
        }
        if asked.revents().is_empty() {
            continue;
        }
        let told = tell(listener, |form| match form {
            Form::Text => text(parts),
            Form::Json => json(parts.iter().map(|part| part.json()).collect()),
        });
        if let Err(error) = told
            && backoff.failed(&error)
        {
            log::debug!("cannot report the status: {error}");
        }
    }
}

/// The state of all `parts`.
fn text(parts: &[Arc<dyn Report>]) -> String {
    let mut text = String::new();
    for part in parts {
        part.report(&mut text);
    }
    text
}

/// The object of a whole program.
pub(crate) fn json(parts: Vec<Value>) -> String {
    let object = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "process": std::process::id(),
        "parts": parts,
    });
    format!("{object}\n")
}

/// How a program wants the status.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Form {
    Text,
    Json,
}

/// Blocks the signals that [`await_end`] waits for, for this thread and all that it starts. So it
/// is called before any thread starts: all leave the signals to the one that waits for them.
///
/// # Errors
/// `pthread_sigmask(3)`'s.
pub(crate) fn block_signals() -> io::Result<SigSet> {
    let signals = SigSet::from_iter(TERMINATION.into_iter().chain(STATUS));
    signals.thread_block()?;
    Ok(signals)
}

/// Waits for one of `signals`, which are blocked in all threads. One of [`STATUS`] writes the state
/// of all `parts` to the log, and the wait goes on.
pub(crate) fn await_end(signals: &SigSet, parts: &[Arc<dyn Report>]) -> Result<Signal, Errno> {
    loop {
        let signal = signals.wait()?;
        if !STATUS.contains(&signal) {
            return Ok(signal);
        }
        logging::log_status(&text(parts));
    }
}

/// Listens at `path`, for the program's own user alone. Replaces a socket without a listener.
pub(crate) fn listen(path: &Path) -> Result<OwnedListener, StatusError> {
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(OwnedListener::bind(path, Some(mode))?)
}

/// Sends the status to the next connection, in its form, as far as it is accepted at once, so that
/// a slow reader delays nobody.
pub(crate) fn tell(
    listener: &OwnedListener,
    status: impl FnOnce(Form) -> String,
) -> io::Result<()> {
    let (mut who, address) = listener.accept()?;
    let name = address.as_abstract_name();
    let form = match name.is_some_and(|name| name.starts_with(JSON_NAME)) {
        true => Form::Json,
        false => Form::Text,
    };
    who.set_nonblocking(true)?;
    who.write_all(status(form).as_bytes())
}

/// Reads the status of the program with the status socket `path`, as text.
pub fn ask(path: &Path) -> Result<String, StatusError> {
    read(path, connect(path, Form::Text)?)
}

fn connect(path: &Path, form: Form) -> Result<UnixStream, StatusError> {
    let connected = match form {
        Form::Text => UnixStream::connect(path),
        Form::Json => connect_for_json(path),
    };
    connected.map_err(|source| StatusError::Ask {
        path: path.to_owned(),
        source,
    })
}

fn connect_for_json(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Any name that nobody else has.
    let mut name = JSON_NAME.to_vec();
    let mut unique = [0; 8];
    getrandom::fill(&mut unique).map_err(io::Error::other)?;
    name.extend(unique);
    bind(&socket, &SocketAddrUnix::new_abstract_name(&name)?)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

fn read(path: &Path, stream: UnixStream) -> Result<String, StatusError> {
    let ask = || {
        stream.set_read_timeout(Some(STATUS_TIMEOUT))?;
        let mut text = Vec::new();
        stream.take(MAX_STATUS_SIZE).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    ask().map_err(|source| StatusError::Ask {
        path: path.to_owned(),
        source,
    })
}

/// `status`: shows the state of another program.
#[derive(Clone, Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct StatusArgs {
    /// The status socket that the program was given
    #[arg(value_name = "SOCKET")]
    pub socket: PathBuf,

    /// Write a JSON object
    #[arg(long)]
    pub json: bool,
}

/// Prints a program's status.
pub fn run(args: &StatusArgs, seccomp: Seccomp, to: &mut impl Write) -> Result<(), StatusError> {
    let form = match args.json {
        true => Form::Json,
        false => Form::Text,
    };
    let stream = connect(&args.socket, form)?;
    sandbox::confine(seccomp, &Needs::default())?;
    let text = read(&args.socket, stream)?;
    // The reader may have closed its end early.
    let _ = to.write_all(text.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use tempfile::TempDir;

    use super::*;

    struct Part(&'static str);

    impl Report for Part {
        fn report(&self, to: &mut String) {
            to.push_str(self.0);
        }

        fn json(&self) -> Value {
            json!({ "kind": self.0.trim() })
        }
    }

    #[test]
    fn every_client_gets_all_parts_in_order() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("status");
        // A socket that an earlier run has left.
        drop(UnixListener::bind(&path).unwrap());
        let parts: Vec<Arc<dyn Report>> = vec![Arc::new(Part("one\n")), Arc::new(Part("two\n"))];
        let server = StatusServer::start(&path, parts).unwrap();
        for _ in 0..2 {
            assert_eq!(ask(&path).unwrap(), "one\ntwo\n");
            let stream = connect(&path, Form::Json).unwrap();
            let object: Value = serde_json::from_str(&read(&path, stream).unwrap()).unwrap();
            assert_eq!(
                object["parts"],
                json!([{ "kind": "one" }, { "kind": "two" }])
            );
            assert_eq!(object["process"], std::process::id());
        }
        let second = StatusServer::start(&path, Vec::new());
        assert!(matches!(
            second,
            Err(StatusError::Listen(BindError::InUse { .. }))
        ));
        drop(server);
        assert!(matches!(ask(&path), Err(StatusError::Ask { .. })));
    }

    #[test]
    fn other_files_are_not_removed() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("notes");
        std::fs::write(&path, "precious").unwrap();
        let refused = StatusServer::start(&path, Vec::new());
        assert!(matches!(refused, Err(StatusError::Listen(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
