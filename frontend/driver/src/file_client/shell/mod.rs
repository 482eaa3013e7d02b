//! `shell`: commands from a terminal, with history and completion, or from a script.

mod complete;
mod words;

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use gangplank_service::error_chain;
use gangplank_service::output::Output;
use rustix::fs::FileType;
use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{CompletionType, Editor};

use self::complete::Names;
use super::act;
use super::actions::FsAction;
use super::copy::host_path;
use super::error::{Error, Result};
use super::glob::Patterns;
use super::path::{LastLink, Share, components, text};

/// What is asked at a terminal.
const PROMPT: &str = "fs> ";

/// Lines that the history keeps.
const HISTORY_LEN: usize = 1000;

/// One line of a shell.
#[derive(Debug, Parser)]
#[command(name = "", no_binary_name = true, disable_version_flag = true)]
struct Line {
    #[command(subcommand)]
    command: ShellCommand,
}

/// What a shell can do.
#[derive(Debug, Subcommand)]
enum ShellCommand {
    #[command(flatten)]
    Fs(FsAction),
    /// Go to another directory of the share
    Cd {
        /// Where to
        #[arg(value_name = "PATH", default_value = "/")]
        path: OsString,
    },
    /// Show the present directory of the share
    Pwd,
    /// Go to another directory of the host
    Lcd {
        /// Where to
        #[arg(value_name = "PATH")]
        path: PathBuf,
    },
    /// Show the present directory of the host
    Lpwd,
    /// End the shell
    #[command(visible_alias = "quit")]
    Exit,
}

/// Whether the shell goes on after a command.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Line,
    End,
}

impl Share {
    /// Reads commands from standard input and carries them out. After an error it goes on with the
    /// next, unless `exit_on_error`.
    pub(super) fn shell(&self, exit_on_error: bool, out: &mut Output) -> Result<()> {
        if io::stdin().is_terminal() {
            return self.interact(out);
        }
        let mut failed = 0;
        let mut input = io::stdin().lock();
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = input.read_until(b'\n', &mut line);
            let read = read.map_err(|source| Error::Host {
                what: "read",
                path: PathBuf::from("standard input"),
                source,
            })?;
            if read == 0 {
                break;
            }
            match self.run_line(&line, out) {
                Ok(Next::Line) => {}
                Ok(Next::End) => break,
                Err(error) if error.status() == 3 => return Err(error),
                Err(error @ Error::Output(_)) => return Err(error),
                Err(error) => {
                    complain(&error);
                    failed += 1;
                    if exit_on_error {
                        break;
                    }
                }
            }
        }
        match failed {
            0 => Ok(()),
            failed => Err(Error::Script { failed }),
        }
    }

    fn interact(&self, out: &mut Output) -> Result<()> {
        let bad = |error: ReadlineError| Error::Host {
            what: "read",
            path: PathBuf::from("the terminal"),
            source: io::Error::other(error),
        };
        let config = rustyline::Config::builder()
            .completion_type(CompletionType::List)
            .build();
        let mut editor: Editor<Names<'_>, FileHistory> =
            Editor::with_config(config).map_err(bad)?;
        let _ = editor.set_max_history_size(HISTORY_LEN);
        editor.set_auto_add_history(true);
        editor.set_helper(Some(Names::new(self)));
        let history = history_file();
        if let Some(path) = &history {
            // The first shell has none.
            let _ = editor.load_history(path);
        }
        let ended = loop {
            match editor.readline(PROMPT) {
                Ok(line) => match self.run_line(line.as_bytes(), out) {
                    Ok(Next::Line) => {
                        if let Some(path) = &history {
                            // A signal may end the program at any time. The end tells of errors.
                            let _ = editor.append_history(path);
                        }
                    }
                    Ok(Next::End) => break Ok(()),
                    Err(error) if error.status() == 3 => break Err(error),
                    Err(error @ Error::Output(_)) => break Err(error),
                    Err(error) => complain(&error),
                },
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => break Ok(()),
                Err(error) => break Err(bad(error)),
            }
        };
        if let Some(path) = &history
            && let Err(error) = editor.append_history(path)
        {
            complain(&Error::Host {
                what: "write the history to",
                path: path.clone(),
                source: io::Error::other(error),
            });
        }
        ended
    }

    fn run_line(&self, line: &[u8], out: &mut Output) -> Result<Next> {
        let words = words::split(line)?;
        if words.is_empty() {
            return Ok(Next::Line);
        }
        // --no-glob holds for all lines.
        let glob = self.patterns.borrow().clone();
        if glob != Patterns::None {
            let patterns = words.iter().filter(|word| word.is_pattern);
            let patterns = patterns.map(|word| word.bytes.clone()).collect();
            *self.patterns.borrow_mut() = Patterns::Words(patterns);
        }
        let arguments = words.iter().map(|word| OsStr::from_bytes(&word.bytes));
        let next = match Line::try_parse_from(arguments) {
            Ok(line) => self.run_command(line.command, out),
            Err(error) if error.exit_code() == 0 => {
                write!(out, "{error}")?;
                Ok(Next::Line)
            }
            Err(error) => Err(Error::Line(error.to_string())),
        };
        out.flush()?;
        next
    }

    fn run_command(&self, command: ShellCommand, out: &mut Output) -> Result<Next> {
        match command {
            ShellCommand::Fs(FsAction::Shell { .. }) => Err(Error::Word {
                word: "shell".to_owned(),
                why: "this is a shell already",
            }),
            ShellCommand::Fs(FsAction::Write { .. }) if !io::stdin().is_terminal() => {
                Err(Error::Word {
                    word: "write".to_owned(),
                    why: "standard input has the commands",
                })
            }
            ShellCommand::Fs(action) => act(self, &action, out).map(|()| Next::Line),
            ShellCommand::Cd { path } => self.change_directory(path.as_bytes()),
            ShellCommand::Pwd => {
                let shown = text(&self.directory.borrow());
                writeln!(out, "{}", if shown.is_empty() { "/" } else { &shown })?;
                Ok(Next::Line)
            }
            ShellCommand::Lcd { path } => {
                std::env::set_current_dir(&path).map_err(|source| Error::Host {
                    what: "go to",
                    path,
                    source,
                })?;
                Ok(Next::Line)
            }
            ShellCommand::Lpwd => {
                let present = std::env::current_dir().map_err(|source| Error::Host {
                    what: "find",
                    path: PathBuf::from("."),
                    source,
                })?;
                writeln!(out, "{}", text(present.as_os_str().as_bytes()))?;
                Ok(Next::Line)
            }
            ShellCommand::Exit => Ok(Next::End),
        }
    }

    fn change_directory(&self, path: &[u8]) -> Result<Next> {
        let path = self.expand(path)?.swap_remove(0);
        let node = self.find(&path, LastLink::Follow)?;
        if node.kind() != FileType::Directory {
            return Err(Error::NotDirectory(text(&path)));
        }
        let mut names = match path.starts_with(b"/") {
            true => Vec::new(),
            false => components(&self.directory.borrow()).collect(),
        };
        for name in components(&path) {
            // As the walk through the share: the parent of the root is the root.
            match name.as_slice() {
                b".." => drop(names.pop()),
                _ => names.push(name),
            }
        }
        *self.directory.borrow_mut() = [b"/", names.join(&b'/').as_slice()].concat();
        Ok(Next::Line)
    }
}

fn complain(error: &Error) {
    let mut stderr = io::stderr();
    // Without a standard error the message cannot be shown anywhere.
    let _ = match error {
        Error::Line(text) => write!(stderr, "{text}"),
        Error::Several(failures) => failures
            .first()
            .iter()
            .try_for_each(|error| writeln!(stderr, "error: {}", error_chain(error)))
            .and_then(|()| match failures.more() {
                0 => Ok(()),
                more => writeln!(stderr, "error: {more} more errors"),
            }),
        error => writeln!(stderr, "error: {}", error_chain(error)),
    };
}

/// The history in the user's state directory (XDG Base Directory Specification), whose directory is
/// made here. None if there is no such directory.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").filter(|path| Path::new(path).is_absolute());
    let state = state.map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME").filter(|path| !path.is_empty())?;
        Some(PathBuf::from(home).join(".local/state"))
    })?;
    let directory = state.join("gangplank");
    let mut builder = DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .ok()?;
    Some(directory.join("fs-history"))
}

/// Names of a directory of the host that begin with `prefix`, and whether they are directories.
fn host_names(directory: &[u8], prefix: &[u8]) -> Vec<(Vec<u8>, bool)> {
    let directory = match directory {
        b"" => Path::new("."),
        path => host_path(path),
    };
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let names = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        let is_directory = entry.path().is_dir();
        name.as_bytes()
            .starts_with(prefix)
            .then(|| (name.as_bytes().to_vec(), is_directory))
    });
    names.collect()
}
