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
    /// There is no such share.
    #[error("the daemon has no share {0:?}; gangplankd share list shows what it has")]
    NoShare(String),
    /// A screen is of one share.
    #[error("the daemon has several shares: pass --share <TAG> with --watch")]
    Several,
}

/// Shows the status.
///
/// # Errors
/// [`enum@Error`].
pub fn run(args: &StatusArgs) -> Result<(), Error> {
    let path = args.control();
    let look = || choose(ask(&path)?, args.share.as_deref());
    if args.watch {
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            return Err(Error::NoTerminal);
        }
        // Before the screen changes.
        let first = look()?;
        if first.shares.is_some() {
            return Err(Error::Several);
        }
        return watch::run(first, look).map_err(Error::Show);
    }
    let status = look()?;
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

/// The status of one share, if `tag` names it.
fn choose(status: Status, tag: Option<&str>) -> Result<Status, Error> {
    let Some(tag) = tag else {
        return Ok(status);
    };
    let mut shares = match status.shares {
        Some(shares) => shares.into_iter(),
        None => vec![status].into_iter(),
    };
    let found = shares.find(|share| share.tag == tag);
    found.ok_or_else(|| Error::NoShare(tag.to_owned()))
}

/// Sends one line to the control socket at `path`. Returns what comes back: at most `most` bytes,
/// within `limit`.
///
/// # Errors
/// Nothing answers there, or not in time; `InvalidData` beyond `most` bytes.
pub fn exchange(path: &Path, line: &str, most: usize, limit: Duration) -> io::Result<Vec<u8>> {
    let stream = UnixStream::connect(path)?;
    let deadline = Instant::now() + limit;
    let line = format!("{line}\n");
    deadline_io::write_all(stream.as_fd(), line.as_bytes(), deadline)?;
    stream.shutdown(Shutdown::Write)?;
    deadline_io::read_to_end(stream.as_fd(), most, deadline)
}

/// Asks the daemon once.
///
/// # Errors
/// [`Error::Ask`], [`Error::Answer`].
pub fn ask(path: &Path) -> Result<Status, Error> {
    ask_within(path, TIMEOUT)
}

/// The same with another limit of the time that the daemon may take.
///
/// # Errors
/// As [`ask`].
pub fn ask_within(path: &Path, limit: Duration) -> Result<Status, Error> {
    let failed = |source| Error::Ask {
        path: path.to_owned(),
        source,
    };
    let wrong = |what: String| Error::Answer {
        path: path.to_owned(),
        what,
    };
    let reply = exchange(path, answer::REQUEST, MAX_REPLY, limit).map_err(failed)?;
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
