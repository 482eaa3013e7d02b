//! A guest's session on a daemon's socket that goes on until it is told to end. The program is
//! static, so that it runs on any host.
//!
//!     session-check SOCKET NAME STOP
//!
//! It creates files whose names begin with NAME, one of which it removes and keeps open. Then it
//! works with them in rounds, and prints a line for each: its number, and the milliseconds that the
//! slowest round has taken so far. An error, a file that is not what it was, or a daemon that
//! closes the connection ends it with status 1. It ends by itself once the file STOP exists.
#![allow(clippy::print_stdout, reason = "a program for the console")]

use std::ffi::CString;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::{Driver, Error, NodeAndFile, Setup};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// What the file without a name contains.
const CONTENT: &[u8] = b"still here";

/// Pause between two rounds.
const PAUSE: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let socket: PathBuf = arguments.next().context("no socket given")?.into();
    let name = arguments.next().context("no name given")?;
    let stop: PathBuf = arguments.next().context("no file to stop at given")?.into();
    let mut session = Session::begin(&socket, &name)?;
    let connection = session.driver.peer.socket().try_clone()?;
    thread::spawn(move || end_with(&connection));
    let mut slowest = Duration::ZERO;
    let mut round = 0_u64;
    while !stop.exists() {
        let begun = Instant::now();
        session
            .round(round)
            .with_context(|| format!("round {round}"))?;
        slowest = slowest.max(begun.elapsed());
        round += 1;
        println!("{round} {}", slowest.as_millis());
        thread::sleep(PAUSE);
    }
    session.driver.destroy()?;
    println!("ended");
    Ok(())
}

/// Ends the program when the daemon closes the connection, whatever request it waits for.
fn end_with(connection: &UnixStream) {
    let mut polled = [PollFd::new(connection, PollFlags::empty())];
    if poll(&mut polled, None).is_ok() {
        println!("failed: the daemon has closed the connection");
        std::process::exit(1);
    }
}

/// What the guest knows and has open.
struct Session {
    driver: Driver,
    name: CString,
    unlinked: NodeAndFile,
    written: NodeAndFile,
}

impl Session {
    fn begin(socket: &Path, name: &str) -> Result<Self> {
        let mut driver = Driver::mount(socket, &Setup::default())?;
        let gone = CString::new(format!("{name}-unlinked"))?;
        let name = CString::new(format!("{name}-written"))?;
        // What an earlier session has left. CREATE makes new files alone.
        for left in [&gone, &name] {
            match driver.unlink(NodeId::ROOT, left) {
                Ok(()) | Err(Error::Errno(Errno::NOENT)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let unlinked = driver.create(NodeId::ROOT, &gone, 0o644)?;
        driver.write(unlinked, 0, CONTENT)?;
        driver.unlink(NodeId::ROOT, &gone)?;
        let written = driver.create(NodeId::ROOT, &name, 0o644)?;
        Ok(Self {
            driver,
            name,
            unlinked,
            written,
        })
    }

    fn round(&mut self, round: u64) -> Result<()> {
        let content = self.driver.read(self.unlinked, 0, 64)?;
        ensure!(content == CONTENT, "the removed file has {content:?}");
        let number = round.to_le_bytes();
        self.driver.write(self.written, 0, &number)?;
        let back = self.driver.read(self.written, 0, 64)?;
        ensure!(back == number, "{back:?} instead of {number:?}");
        let entry = self.driver.lookup(NodeId::ROOT, &self.name)?;
        let node = NodeId::new(entry.nodeid);
        ensure!(node == self.written.node, "another node has the name");
        self.driver.forget(node, 1)?;
        Ok(())
    }
}
