//! The program that makes the next acceptor, with the same arguments: at a reload the one that is
//! at this program's path then, otherwise the running one.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use super::{SUPERVISE, TAKEOVER};
use crate::status::sockets::VARIABLE;
use crate::sys::process;

/// Where the program is and how it was started.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    /// The value of [`VARIABLE`] for the next program, if it is to have one.
    status: Option<String>,
}

/// Which version of the program is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The one that is at the path now.
    AtPath,
    /// The one that the calling process runs, also if its file was replaced or removed.
    Running,
}

/// The file of the running program (proc(5)).
const RUNNING: &str = "/proc/self/exe";

impl Program {
    /// The running program.
    ///
    /// Its path is the one that it was started by, so that a link may lead to another file later.
    ///
    /// # Errors
    /// Its path is not known.
    pub fn running() -> io::Result<Self> {
        let arguments: Vec<OsString> = env::args_os().collect();
        let name = arguments.first().map(OsString::as_os_str);
        let path = match name.and_then(find) {
            Some(path) => path,
            None => env::current_exe()?,
        };
        Ok(Self {
            path,
            arguments,
            status: None,
        })
    }

    /// Passes sockets for status and metrics on, which the process must keep inheritable.
    pub fn pass_status(&mut self, status: Option<String>) {
        self.status = status;
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts the program, with `takeover` as the value of [`TAKEOVER`].
    ///
    /// # Errors
    /// Those of execve(2).
    pub fn start(&self, version: Version, takeover: &str) -> io::Result<Child> {
        use std::os::unix::process::CommandExt;

        let mut command = match version {
            Version::AtPath => Command::new(&self.path),
            Version::Running => Command::new(RUNNING),
        };
        if let Some((name, arguments)) = self.arguments.split_first() {
            command.arg0(name).args(arguments);
        }
        command.env_remove(SUPERVISE).env(TAKEOVER, takeover);
        command.env_remove(VARIABLE);
        if let Some(status) = &self.status {
            command.env(VARIABLE, status);
        }
        command.spawn()
    }

    /// Becomes the program in `file`, with `supervise` as the value of [`SUPERVISE`]. Returns only
    /// if that fails.
    #[must_use]
    pub fn become_program(&self, file: BorrowedFd<'_>, supervise: &str) -> io::Error {
        let variable = |name: &OsStr, value: &OsStr| {
            let mut text = name.as_bytes().to_vec();
            text.push(b'=');
            text.extend(value.as_bytes());
            CString::new(text)
        };
        let kept = env::vars_os().filter(|(name, _)| {
            [SUPERVISE, TAKEOVER, VARIABLE]
                .iter()
                .all(|other| name != other)
        });
        let variables = kept.map(|(name, value)| variable(&name, &value));
        let variables = variables.chain([variable(SUPERVISE.as_ref(), supervise.as_ref())]);
        let status = self.status.as_deref();
        let status = status.map(|status| variable(VARIABLE.as_ref(), status.as_ref()));
        let variables = variables.chain(status);
        let arguments = self.arguments.iter().cloned();
        let arguments = arguments.map(|argument| CString::new(argument.into_vec()));
        // Neither can have a zero byte: they come from there.
        match (
            arguments.collect::<Result<Vec<_>, _>>(),
            variables.collect::<Result<Vec<_>, _>>(),
        ) {
            (Ok(arguments), Ok(variables)) => process::execute(file, &arguments, &variables),
            _ => io::ErrorKind::InvalidInput.into(),
        }
    }
}

/// The absolute path of the running program by the name that it was started by, if that leads to
/// it.
fn find(name: &OsStr) -> Option<PathBuf> {
    let running = std::fs::metadata(RUNNING).ok()?;
    let is_running = |path: &PathBuf| {
        std::fs::metadata(path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (running.dev(), running.ino()))
    };
    let candidates: Vec<PathBuf> = if name.as_bytes().contains(&b'/') {
        vec![std::path::absolute(name).ok()?]
    } else {
        let directories = env::var_os("PATH")?;
        env::split_paths(&directories)
            .map(|directory| directory.join(name))
            .collect()
    };
    candidates.into_iter().find(is_running)
}
