//! `gangplankd share`: asks a running daemon to change what it shares.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::clients::COMMAND_TIMEOUT;
use super::file;
use super::request::{Listed, PREFIX, Reply, Request};
use super::share::{self, Origin, Share};
use crate::args::{ShareArgs, ShareCommand};
use crate::status::client::exchange;

/// How long the daemon may take to answer: longer than it waits itself.
const TIMEOUT: Duration = COMMAND_TIMEOUT.saturating_add(Duration::from_secs(10));

/// Most bytes of a reply.
const MAX_REPLY: usize = 16 << 20;

/// Why it is not done.
#[derive(Debug, Error)]
pub enum Error {
    /// The share as typed.
    #[error(transparent)]
    Share(#[from] share::Error),
    /// The share's file.
    #[error(transparent)]
    File(#[from] file::Error),
    /// The working directory, which relative paths are relative to.
    #[error(
        "cannot find the working directory, which relative paths of a share begin at: pass \
         absolute ones"
    )]
    Directory(#[source] io::Error),
    /// Nothing answers.
    #[error("cannot ask the daemon at {path:?}; is it running with --control={}?", path.display())]
    Ask {
        /// The control socket.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The daemon refuses it.
    #[error("{0}")]
    Refused(String),
    /// The answer is something else, as that of a daemon of one share.
    #[error("the daemon at {path:?} does not serve several shares (--share, --shares-dir): {what}")]
    Answer {
        /// The control socket.
        path: PathBuf,
        /// What it says.
        what: String,
    },
    /// Standard output.
    #[error("cannot show the shares")]
    Show(#[source] io::Error),
}

/// Carries out the command.
///
/// # Errors
/// [`enum@Error`].
pub fn run(args: &ShareArgs) -> Result<(), Error> {
    let (control, request) = match &args.command {
        ShareCommand::Add {
            control,
            share,
            file,
        } => {
            let mut share = match (share, file) {
                (Some(text), _) => Share::parse(text, Origin::Command)?,
                (None, Some(path)) => file::read(path)?,
                // The parser demands one of them.
                (None, None) => Share::parse("", Origin::Command)?,
            };
            share.make_absolute().map_err(Error::Directory)?;
            (control, Request::Add(share))
        }
        ShareCommand::Remove {
            control,
            tag,
            force,
        } => {
            let (tag, force) = (tag.clone(), *force);
            (control, Request::Remove { tag, force })
        }
        ShareCommand::List { control, .. } => (control, Request::List),
    };
    let shares = match ask(control, &request)? {
        Reply::Done => return Ok(()),
        Reply::Error(reason) => return Err(Error::Refused(reason)),
        Reply::Shares(shares) => shares,
    };
    let text = match &args.command {
        ShareCommand::List { json: true, .. } => {
            let text = serde_json::to_string_pretty(&shares);
            text.map_err(|error| Error::Show(error.into()))? + "\n"
        }
        _ => table(&shares),
    };
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(Error::Show),
    }
}

fn ask(path: &Path, request: &Request) -> Result<Reply, Error> {
    let failed = |source| Error::Ask {
        path: path.to_owned(),
        source,
    };
    let wrong = |what: String| Error::Answer {
        path: path.to_owned(),
        what,
    };
    let json = serde_json::to_string(request).map_err(|error| failed(error.into()))?;
    let line = format!("{PREFIX}{json}");
    let reply = exchange(path, &line, MAX_REPLY, TIMEOUT).map_err(failed)?;
    serde_json::from_slice(&reply).map_err(|error| match reply.is_empty() {
        true => wrong("it has closed the connection".to_owned()),
        false => wrong(error.to_string()),
    })
}

fn table(shares: &[Listed]) -> String {
    let width = |of: fn(&Listed) -> usize, least: usize| {
        shares.iter().map(of).max().unwrap_or(0).max(least)
    };
    let tags = width(|one| one.tag.len(), 3);
    let directories = width(|one| one.shared_dir.as_os_str().len(), 9);
    let mut text = String::new();
    // Writing into a string does not fail.
    let _ = writeln!(
        text,
        "{:tags$}  {:10}  {:>6}  {:directories$}  socket",
        "tag", "state", "guests", "directory"
    );
    for one in shares {
        let guests = one
            .guests
            .map_or("-".to_owned(), |guests| guests.to_string());
        let socket = match &one.socket {
            Some(path) => path.display().to_string(),
            None => "of the service manager".to_owned(),
        };
        let _ = writeln!(
            text,
            "{:tags$}  {:10}  {guests:>6}  {:directories$}  {socket}",
            one.tag,
            one.state,
            one.shared_dir.display().to_string()
        );
        if let Some(reason) = &one.reason {
            let _ = writeln!(text, "{:tags$}  {reason}", "");
        }
    }
    text
}
