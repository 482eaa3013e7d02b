//! Logs to systemd's journal, with fields, where standard error is the journal.
//!
//! The native protocol is a datagram of `NAME=value` lines; a value of several lines has its length
//! before it (systemd's `docs/JOURNAL_NATIVE_PROTOCOL.md`). The published crates for it send each
//! datagram to the socket's path, which a confined process does not reach. This one connects once.

use std::env;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;

use log::{Log, Metadata, Record};

use super::guest::guest;
use super::severity;

/// Where the journal takes messages.
const SOCKET: &str = "/run/systemd/journal/socket";

/// Most bytes of a message's text. The journal refuses datagrams that are larger than a socket's
/// buffer, which has some 200 KiB.
const MAX_TEXT: usize = 48 * 1024;

/// How to reach the journal.
pub(super) enum Journal {
    /// By datagrams.
    Native(UnixDatagram),
    /// By lines on standard error that begin with the priority (`sd-daemon(3)`), since the socket
    /// cannot be reached.
    Lines,
}

impl Journal {
    /// The journal, if standard error is its stream.
    pub(super) fn of_stderr() -> Option<Self> {
        let named = env::var("JOURNAL_STREAM").ok()?;
        let stat = rustix::fs::fstat(rustix::stdio::stderr()).ok()?;
        if !is_named(&named, stat.st_dev, stat.st_ino) {
            return None;
        }
        let connected = UnixDatagram::unbound().and_then(|socket| {
            socket.connect(SOCKET)?;
            Ok(socket)
        });
        Some(connected.map_or(Self::Lines, Self::Native))
    }
}

/// Whether `JOURNAL_STREAM` names a file of this device and number.
fn is_named(named: &str, device: u64, inode: u64) -> bool {
    named == format!("{device}:{inode}")
}

/// Logs what a filter admits to the journal.
pub(super) struct JournalLog {
    pub(super) journal: Journal,
    pub(super) filter: env_logger::Logger,
    pub(super) program: &'static str,
    /// Which one of several of the program logs.
    pub(super) instance: Option<String>,
    /// The process that the operator has started.
    pub(super) pid: u32,
}

impl Log for JournalLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.filter.matches(record) {
            return;
        }
        let text = record.args().to_string();
        if let Journal::Native(socket) = &self.journal {
            let message = self.message(record, &text);
            // If the journal has gone, its stream may still be there.
            if socket.send(&message).is_ok() {
                return;
            }
        }
        let level = severity(record.level());
        let mut lines = String::new();
        for line in text.lines() {
            // Writing to a string does not fail.
            let _ = match &self.instance {
                Some(instance) => writeln!(lines, "<{level}>{instance}: {line}"),
                None => writeln!(lines, "<{level}>{line}"),
            };
        }
        let _ = io::stderr().write_all(lines.as_bytes());
    }

    fn flush(&self) {}
}

impl JournalLog {
    /// The datagram of a message.
    fn message(&self, record: &Record<'_>, text: &str) -> Vec<u8> {
        let end = text.floor_char_boundary(MAX_TEXT);
        let mut message = Vec::with_capacity(text.len().min(MAX_TEXT) + 256);
        put(&mut message, "MESSAGE", &text[..end]);
        let level = severity(record.level()).to_string();
        put(&mut message, "PRIORITY", &level);
        put(&mut message, "SYSLOG_IDENTIFIER", self.program);
        put(&mut message, "SYSLOG_PID", &self.pid.to_string());
        if let Some(guest) = guest() {
            put(&mut message, "GANGPLANK_GUEST", &guest.to_string());
        }
        if let Some(instance) = &self.instance {
            put(&mut message, "GANGPLANK_SHARE", instance);
        }
        if let Some(file) = record.file() {
            put(&mut message, "CODE_FILE", file);
        }
        if let Some(line) = record.line() {
            put(&mut message, "CODE_LINE", &line.to_string());
        }
        put(&mut message, "CODE_MODULE", record.target());
        message
    }
}

fn put(message: &mut Vec<u8>, name: &str, value: &str) {
    message.extend(name.as_bytes());
    if value.contains('\n') {
        message.push(b'\n');
        message.extend((value.len() as u64).to_le_bytes());
    } else {
        message.push(b'=');
    }
    message.extend(value.as_bytes());
    message.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::thread;

    use log::Level;

    use super::*;

    fn log(journal: Journal) -> JournalLog {
        JournalLog {
            journal,
            filter: env_logger::Builder::new()
                .filter_level(log::LevelFilter::Info)
                .build(),
            program: "gangplankd",
            instance: None,
            pid: 7,
        }
    }

    fn record<'a>(level: Level, args: std::fmt::Arguments<'a>) -> Record<'a> {
        Record::builder()
            .level(level)
            .target("device::worker")
            .file(Some("worker.rs"))
            .line(Some(12))
            .args(args)
            .build()
    }

    #[test]
    fn a_message_has_its_fields() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let log = log(Journal::Native(ours));
        thread::Builder::new()
            .name("guest_3".to_owned())
            .spawn(move || log.log(&record(Level::Warn, format_args!("one line"))))
            .unwrap()
            .join()
            .unwrap();
        let mut buffer = [0; 4096];
        let len = theirs.recv(&mut buffer).unwrap();
        let expected = "MESSAGE=one line\nPRIORITY=4\nSYSLOG_IDENTIFIER=gangplankd\nSYSLOG_PID=7\n\
                        GANGPLANK_GUEST=3\nCODE_FILE=worker.rs\nCODE_LINE=12\n\
                        CODE_MODULE=device::worker\n";
        assert_eq!(std::str::from_utf8(&buffer[..len]).unwrap(), expected);
    }

    #[test]
    fn lines_that_a_message_has_are_no_fields() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let log = log(Journal::Native(ours));
        log.log(&record(Level::Error, format_args!("a\nPRIORITY=7")));
        let mut buffer = [0; 4096];
        let len = theirs.recv(&mut buffer).unwrap();
        let begin = b"MESSAGE\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=7\nPRIORITY=3\n";
        assert_eq!(&buffer[..begin.len()], begin);
        assert!(len > begin.len());
    }

    #[test]
    fn what_the_filter_refuses_is_not_sent() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        log(Journal::Native(ours)).log(&record(Level::Debug, format_args!("detail")));
        assert!(theirs.recv(&mut [0; 16]).is_err());
    }

    #[test]
    fn the_stream_is_named_by_device_and_inode() {
        assert!(is_named("9:4711", 9, 4711));
        for named in ["", "9", "9:", "9:4712", "8:4711", "9:4711 "] {
            assert!(!is_named(named, 9, 4711), "{named}");
        }
    }
}
