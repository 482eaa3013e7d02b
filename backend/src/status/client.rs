//! `gangplankd status`: asks a running daemon and shows what it says.

use std::io::{self, IsTerminal, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gangplank_service::deadline_io;
use thiserror::Error;

use super::model::{Status, VERSION};
use super::{answer, table, watch};
use crate::args::StatusArgs;

/// How long the daemon may take to answer: longer than it waits for its keepers.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of a reply. A guest has at most some 10 KiB.
const MAX_REPLY: usize = 64 << 20;

/// Why there is no status.
#[derive(Debug, Error)]
pub enum Error {
    /// Nothing answers.
    #[error("cannot ask the daemon at {path:?}; is it running with --control={}?", path.display())]
    Ask {
        /// The control socket.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The answer is something else.
    #[error("what listens at {path:?} gave no status of a gangplankd: {what}")]
    Answer {
        /// The control socket.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Standard output, or the terminal.
    #[error("cannot show the status")]
    Show(#[source] io::Error),
    /// There is no terminal.
    #[error("--watch needs a terminal; use --json in scripts")]
    NoTerminal,
}

/// Shows the status.
///
/// # Errors
/// [`enum@Error`].
pub fn run(args: &StatusArgs) -> Result<(), Error> {
    let path = args.control();
    if args.watch {
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            return Err(Error::NoTerminal);
        }
        // Before the screen changes.
        let first = ask(&path)?;
        return watch::run(first, || ask(&path)).map_err(Error::Show);
    }
    let status = ask(&path)?;
    let mut text = match args.json {
        true => serde_json::to_string_pretty(&status).map_err(|error| Error::Show(error.into()))?,
        false => table::table(&status),
    };
    if args.json {
        text.push('\n');
    }
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(Error::Show),
    }
}

/// Asks the daemon once.
///
/// # Errors
/// [`Error::Ask`], [`Error::Answer`].
pub fn ask(path: &Path) -> Result<Status, Error> {
    let failed = |source| Error::Ask {
        path: path.to_owned(),
        source,
    };
    let wrong = |what: String| Error::Answer {
        path: path.to_owned(),
        what,
    };
    let stream = UnixStream::connect(path).map_err(failed)?;
    let deadline = Instant::now() + TIMEOUT;
    let request = format!("{}\n", answer::REQUEST);
    deadline_io::write_all(stream.as_fd(), request.as_bytes(), deadline).map_err(failed)?;
    stream.shutdown(Shutdown::Write).map_err(failed)?;
    let reply = deadline_io::read_to_end(stream.as_fd(), MAX_REPLY, deadline).map_err(failed)?;
    let value: serde_json::Value =
        serde_json::from_slice(&reply).map_err(|error| wrong(error.to_string()))?;
    if let Some(error) = value.get("error").and_then(serde_json::Value::as_str) {
        return Err(wrong(error.to_owned()));
    }
    let status: Status = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
    match status.version {
        VERSION => Ok(status),
        other => Err(wrong(format!(
            "its status has version {other}, not {VERSION}"
        ))),
    }
}
