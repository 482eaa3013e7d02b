//! An operator's command to a running relay: a line of text on its control socket, and the answer.
//!
//! ```text
//!   status | status-json | pause | resume | switch SOCKET | switch-without-state SOCKET
//! ```
//!
//! The answer begins with `ok` or `error`, and has one line for each guest; that to `status-json`
//! has one JSON object.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::device::Files;

/// Bytes of a command at most: the longest word, and a path of up to 4096 bytes (PATH_MAX).
const MAX_COMMAND_LEN: u64 = 4200;

/// Bytes of an answer at most: some kilobytes for each of 256 guests.
const MAX_ANSWER_LEN: u64 = 1 << 20;

/// Time that an operator's program has to send its command, and to take the answer.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// A command, which the relay runs for each guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Tell the phase of its device.
    Status,
    /// The same, as JSON.
    StatusJson,
    /// Stop its rings.
    Pause,
    /// Start them again.
    Resume,
    /// Replace its daemon by another.
    Switch {
        /// The other daemon's socket.
        socket: PathBuf,
        /// What happens to open files.
        files: Files,
    },
}

/// A command to one guest.
#[derive(Debug)]
pub(super) struct GuestCommand {
    /// The guest's number.
    pub(super) guest: u64,
    /// The command.
    pub(super) command: Command,
    /// Takes the guest's number and the result.
    pub(super) answer: Sender<(u64, Result<String, String>)>,
}

impl GuestCommand {
    pub(super) fn answer(&self, answer: Result<String, String>) {
        // The receiver may have stopped waiting.
        let _ = self.answer.send((self.guest, answer));
    }
}

impl Command {
    /// Reads a line; None if it is not a command.
    pub(super) fn decode(line: &[u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut words = line.splitn(2, |byte| *byte == b' ');
        let (word, rest) = (words.next()?, words.next());
        let socket = || {
            let path = rest.filter(|path| path.first() == Some(&b'/'))?;
            Some(PathBuf::from(OsStr::from_bytes(path)))
        };
        Some(match (word, rest) {
            (b"status", None) => Self::Status,
            (b"status-json", None) => Self::StatusJson,
            (b"pause", None) => Self::Pause,
            (b"resume", None) => Self::Resume,
            (b"switch", Some(_)) => Self::Switch {
                socket: socket()?,
                files: Files::Kept,
            },
            (b"switch-without-state", Some(_)) => Self::Switch {
                socket: socket()?,
                files: Files::Lost,
            },
            _ => return None,
        })
    }

    /// The line that [`Command::decode`] reads.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (word, path) = match self {
            Self::Status => ("status", None),
            Self::StatusJson => ("status-json", None),
            Self::Pause => ("pause", None),
            Self::Resume => ("resume", None),
            Self::Switch {
                socket,
                files: Files::Kept,
            } => ("switch", Some(socket)),
            Self::Switch {
                socket,
                files: Files::Lost,
            } => ("switch-without-state", Some(socket)),
        };
        let mut line = word.as_bytes().to_vec();
        if let Some(path) = path {
            line.push(b' ');
            line.extend_from_slice(path.as_os_str().as_bytes());
        }
        line.push(b'\n');
        line
    }
}

/// Reads an operator's command; None if the line is not one.
pub(super) fn receive(stream: &UnixStream) -> io::Result<Option<Command>> {
    stream.set_read_timeout(Some(COMMAND_TIMEOUT))?;
    stream.set_write_timeout(Some(COMMAND_TIMEOUT))?;
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_COMMAND_LEN)).read_until(b'\n', &mut line)?;
    if !line.ends_with(b"\n") {
        // Its path may be cut off as well.
        return Err(io::Error::other("it is cut off"));
    }
    Ok(Command::decode(&line))
}

/// Sends a command to the relay whose control socket is at `path`. Returns whether it succeeded,
/// and the answer's text.
pub(super) fn send(path: &Path, command: &Command, limit: Duration) -> io::Result<(bool, String)> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(&command.encode())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER_LEN).read_to_string(&mut answer)?;
    if !answer.ends_with('\n') {
        return Err(io::Error::other("the relay's answer is cut off"));
    }
    match answer.split_once('\n') {
        Some(("ok", text)) => Ok((true, text.to_owned())),
        Some(("error", text)) => Ok((false, text.to_owned())),
        _ => Err(io::Error::other(
            "the relay sent something else than an answer",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_as_they_are_written() {
        for command in [
            Command::Status,
            Command::StatusJson,
            Command::Pause,
            Command::Resume,
            Command::Switch {
                socket: "/run/new fs.sock".into(),
                files: Files::Kept,
            },
            Command::Switch {
                socket: "/run/new.sock".into(),
                files: Files::Lost,
            },
        ] {
            assert_eq!(Command::decode(&command.encode()), Some(command));
        }
    }

    /// No silent loss: the relay does not run a command of which only a part has come.
    #[test]
    fn command_that_is_cut_off_is_none() {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(b"switch /run/new").unwrap();
        drop(near);
        let error = receive(&far).unwrap_err();
        assert_eq!(error.to_string(), "it is cut off");
    }

    /// No silent loss: an answer of which only a part has come is an error.
    #[test]
    fn answer_that_is_cut_off_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        for (answer, is_whole) in [
            ("ok\nguest 1: paused\n", true),
            ("ok\nguest 1: pau", false),
            ("ok", false),
        ] {
            let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
            let relay = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                assert_eq!(receive(&stream).unwrap(), Some(Command::Pause));
                stream.write_all(answer.as_bytes()).unwrap();
            });
            let sent = send(&path, &Command::Pause, COMMAND_TIMEOUT);
            assert_eq!(sent.is_ok(), is_whole, "{sent:?}");
            relay.join().unwrap();
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn other_lines_are_no_commands() {
        for line in [
            "",
            "\n",
            "stop",
            "status now",
            "switch",
            "switch ",
            "switch relative.sock",
            " pause",
        ] {
            assert_eq!(Command::decode(line.as_bytes()), None, "{line:?}");
        }
    }
}
