//! `gangplank-guest watch`: reads changes and wakes watchers.
#![allow(clippy::print_stderr)] // what --verbose asks for

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gangplank_events::{Line, UnknownLine};
use gangplank_service::signals;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::Errno;
use thiserror::Error;

use crate::args::WatchArgs;
use crate::rescan::{Time, rescan};
use crate::wake::Waker;

/// The file of changes in a share.
const EVENTS: &str = ".gangplank/events";

/// Bytes that are read at a time.
const BUFFER_LEN: usize = 64 * 1024;

/// Why the program ends.
#[derive(Debug, Error)]
pub enum Error {
    /// The mount cannot be opened.
    #[error("cannot open {}", .0.display())]
    Mount(PathBuf, #[source] io::Error),
    /// There is no file of changes.
    #[error(
        "{} is no share whose daemon tells changes: start gangplankd with --events", .0.display()
    )]
    NoEvents(PathBuf),
    /// Another process wakes watchers.
    #[error("another process wakes the watchers of {} already", .0.display())]
    Busy(PathBuf),
    /// The file of changes cannot be opened.
    #[error("cannot open {EVENTS} in {}", .0.display())]
    Open(PathBuf, #[source] io::Error),
    /// The file of changes cannot be read.
    #[error("cannot read changes")]
    Read(#[source] io::Error),
    /// The daemon speaks another version.
    #[error(transparent)]
    Format(#[from] UnknownLine),
    /// Signals cannot be taken over.
    #[error("cannot take over signals")]
    Signals(#[source] io::Error),
}

/// What has happened so far.
#[derive(Debug, Default)]
struct Counts {
    /// Changes that the daemon told.
    changes: AtomicU64,
    /// Those of which no watcher could be told.
    failures: AtomicU64,
    /// Times that changes were lost, and the attributes were looked at instead.
    rescans: AtomicU64,
}

impl Counts {
    /// Writes them to standard error at each signal that asks for a status.
    fn tell_at_signals(self: &Arc<Self>, mountpoint: &Path) -> io::Result<()> {
        let (counts, mountpoint) = (Arc::clone(self), mountpoint.to_owned());
        signals::at_status_signals(move || {
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            eprintln!(
                "gangplank-guest: status: {}: {} changes, {} of them woke no watcher, {} rescans",
                mountpoint.display(),
                count(&counts.changes),
                count(&counts.failures),
                count(&counts.rescans)
            );
        })
    }
}

fn add_one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Wakes watchers until that fails.
///
/// # Errors
/// See [`enum@Error`].
pub fn run(args: &WatchArgs) -> Result<Infallible, Error> {
    let path = &args.mountpoint;
    let counts = Arc::new(Counts::default());
    counts.tell_at_signals(path).map_err(Error::Signals)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, path, flags, Mode::empty())
        .map_err(|error| Error::Mount(path.clone(), error.into()))?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let events = openat(&root, EVENTS, flags, Mode::empty()).map_err(|error| match error {
        Errno::NOENT | Errno::NOTDIR => Error::NoEvents(path.clone()),
        Errno::BUSY => Error::Busy(path.clone()),
        error => Error::Open(path.clone(), error.into()),
    })?;
    let mut waker = Waker::new(&root, &events);
    let mut buffer = vec![0; BUFFER_LEN];
    // The host's time when changes were read last: what came before is known.
    let mut heard = None;
    loop {
        let length = match rustix::io::read(&events, &mut buffer[..]) {
            Ok(0) => return Err(Error::Read(io::ErrorKind::UnexpectedEof.into())),
            Ok(length) => length,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(Error::Read(error.into())),
        };
        let now = host_time(&events).map_err(Error::Read)?;
        let lines = buffer.get(..length).unwrap_or_default();
        for line in lines.split(|byte| *byte == b'\n') {
            if line.is_empty() {
                continue;
            }
            let parsed = Line::parse(line)?;
            if args.verbose && parsed != Line::Idle {
                eprintln!("{}", String::from_utf8_lossy(line));
            }
            match parsed {
                Line::Header | Line::Idle => {}
                // Whoever begins to watch has just looked.
                Line::Rescan => {
                    if let Some(since) = heard {
                        add_one(&counts.rescans);
                        rescan(&mut waker, &root, since);
                    }
                }
                Line::Change {
                    kind,
                    path,
                    is_directory,
                } => {
                    let told = waker.wake(kind, &path, is_directory);
                    add_one(&counts.changes);
                    if let Err(error) = told {
                        add_one(&counts.failures);
                        if args.verbose {
                            eprintln!("no watcher was woken: {error}");
                        }
                    }
                }
            }
        }
        heard = Some(now);
    }
}

/// The host's time, which the file has for its own.
fn host_time(events: &OwnedFd) -> io::Result<Time> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    let stat = statx(events.as_fd(), "", flags, StatxFlags::BASIC_STATS)?;
    Ok(Time::of(&stat.stx_mtime))
}
