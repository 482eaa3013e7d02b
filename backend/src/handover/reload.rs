//! What the supervisor does at a reload, and when an acceptor has died: it starts a program that
//! makes the next acceptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use gangplank_service::readiness;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Pid;

use super::channel::{Arrived, Channel, Message, unexpected};
use super::inherited;
use super::program::{Program, Version};
use crate::socket::Files;
use crate::supervisor::{Held, Supervisor};

/// How long the new program may take until it is ready to take the guests over. They are served
/// meanwhile.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the guests may take to be handed over. They wait meanwhile.
const TAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a program that was killed may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// What a service manager shows of a daemon that serves.
pub const SERVING: &str = "Serving guests";

/// What a supervisor needs to start the next acceptor.
#[derive(Debug)]
pub struct Reloader {
    /// What to start.
    pub program: Program,
    /// The socket's files.
    pub files: Option<Files>,
    /// How often guests were handed over.
    pub count: u32,
}

/// A new tree of processes that holds all guests, and waits for the old one to end.
struct Successor {
    supervisor: Supervisor,
    /// The new program's file.
    program: OwnedFd,
}

impl Reloader {
    /// Puts a new acceptor, of the program that is at the path now, in the place of `supervisor`'s,
    /// and makes this process that program. If that fails, all is as before, and the log and the
    /// report for `--reload` say why.
    pub fn reload(&mut self, supervisor: &mut Supervisor) {
        let begun = Instant::now();
        log::info!("reloading: starting {:?}", self.program.path());
        readiness::reloading();
        let successor = match self.start_successor(supervisor) {
            Ok(successor) => successor,
            Err(reason) => {
                log::error!("not reloaded, the running program goes on: {reason}");
                self.report(&Err(reason));
                readiness::ready(SERVING);
                return;
            }
        };
        let mut predecessor = std::mem::replace(supervisor, successor.supervisor);
        supervisor.take_over_holding(&mut predecessor);
        predecessor.kill();
        if let Err(error) = supervisor.send(&Message::Go, &[]) {
            // It has died, and the next acceptor goes on.
            log::error!("the new program does not serve: {error}");
        }
        self.count += 1;
        let took = begun.elapsed().as_millis();
        log::info!("reload {} is done, within {took} ms", self.count);
        self.report(&Ok(()));
        let error = self.become_program(supervisor, &successor.program);
        log::warn!("the supervisor is still the program from before: {error}");
    }

    fn report(&self, outcome: &Result<(), String>) {
        if let Some(files) = &self.files {
            files.report_reload(self.count, outcome);
        }
    }

    /// Starts the program that is at the path now, which takes over from `supervisor`'s acceptor.
    fn start_successor(&self, supervisor: &Supervisor) -> Result<Successor, String> {
        let failed = |error: io::Error| error.to_string();
        let (old, new) = Channel::pair().map_err(failed)?;
        let told = supervisor.send(&Message::HandOver, &[&old]);
        told.map_err(failed)?;
        drop(old);
        let held = supervisor.held().without_keepers().map_err(failed)?;
        self.start(Version::AtPath, new, held, || Ok(()))
    }

    /// Starts the running program, which makes an acceptor in the place of `supervisor`'s, which
    /// has died. All keepers go on.
    ///
    /// # Errors
    /// Why there is no other acceptor, in words.
    pub fn replace_acceptor(&self, supervisor: &mut Supervisor) -> Result<(), String> {
        let failed = |error: io::Error| error.to_string();
        let (old, new) = Channel::pair().map_err(failed)?;
        let held = Held::default();
        let introduce = || supervisor.held().introduce(&old);
        let successor = self.start(Version::Running, new, held, introduce)?;
        supervisor.go_on_with(successor.supervisor);
        supervisor.send(&Message::Go, &[]).map_err(failed)
    }

    /// Starts a program, which takes over from what is at the other end of `predecessor`, as soon
    /// as `introduce` says what there is. Returns when it holds everything.
    fn start(
        &self,
        version: Version,
        predecessor: Channel,
        held: Held,
        introduce: impl FnOnce() -> io::Result<()>,
    ) -> Result<Successor, String> {
        let failed = |error: io::Error| error.to_string();
        let (channel, theirs) = Channel::pair().map_err(failed)?;
        let mut child = start(&self.program, version, &theirs, &predecessor)
            .map_err(|error| format!("cannot start {:?}: {error}", self.program.path()))?;
        drop((theirs, predecessor));
        let introduced = introduce().map_err(failed);
        let started = introduced.and_then(|()| await_start(channel, &mut child, held));
        // It has ended by itself, unless it failed or is no such program.
        let status = match &started {
            Ok(_) => child.wait().map(Some),
            Err(_) => end(&mut child),
        };
        let (mut supervisor, program) = started.map_err(|reason| match status {
            Ok(Some(status)) if !status.success() => {
                format!("{reason} (the new program: {status})")
            }
            _ => reason,
        })?;
        match await_guests(&mut supervisor) {
            Ok(()) => Ok(Successor {
                supervisor,
                program,
            }),
            Err(reason) => {
                supervisor.kill();
                Err(reason)
            }
        }
    }

    /// Returns only if that fails.
    fn become_program(&self, supervisor: &Supervisor, program: &OwnedFd) -> io::Error {
        let left = match inherited::Inherited::leave(supervisor, self.files.as_ref(), self.count) {
            Ok(left) => left,
            Err(error) => return error,
        };
        let error = self
            .program
            .become_program(program.as_fd(), &left.to_string());
        left.take_back();
        error
    }
}

/// Kills the program and waits for its end; `None` if it waits itself for storage that does not
/// answer, which no signal ends.
fn end(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let _ = child.kill();
    let deadline = Instant::now() + END_TIMEOUT;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(None)
}

/// Starts the program, which inherits the two channels.
fn start(
    program: &Program,
    version: Version,
    supervisor: &Channel,
    predecessor: &Channel,
) -> io::Result<Child> {
    let channels = [supervisor, predecessor];
    for channel in channels {
        fcntl_setfd(channel, FdFlags::empty())?;
    }
    let [supervisor, predecessor] = channels.map(|channel| channel.as_fd().as_raw_fd());
    program.start(version, &format!("{supervisor},{predecessor}"))
}

/// Waits until the new program has an acceptor. Returns that and the program's file.
fn await_start(
    channel: Channel,
    child: &mut Child,
    held: Held,
) -> Result<(Supervisor, OwnedFd), String> {
    let arrived = channel.expect(Some(Instant::now() + START_TIMEOUT));
    let Arrived {
        message,
        descriptors,
    } = arrived.map_err(in_words)?;
    let Message::Started { acceptor } = message else {
        return Err(unexpected(&message).to_string());
    };
    let acceptor = Pid::from_raw(acceptor).ok_or("the new program's process id is invalid")?;
    let supervisor = Supervisor::new(acceptor, channel, held);
    let mut supervisor = supervisor.map_err(|error| error.to_string())?;
    let program = descriptors.into_iter().next();
    let known = program.ok_or("the new program has not passed its file".to_owned());
    let known = known.and_then(|program| {
        child.wait().map_err(|error| error.to_string())?;
        let sent = supervisor.send(&Message::Known, &[]);
        sent.map_err(|error| error.to_string())?;
        Ok(program)
    });
    match known {
        Ok(program) => Ok((supervisor, program)),
        Err(reason) => {
            supervisor.kill_acceptor();
            Err(reason)
        }
    }
}

/// Waits until the new program holds all guests.
fn await_guests(supervisor: &mut Supervisor) -> Result<(), String> {
    let mut expect = |expected: &Message, limit: Duration| {
        let message = supervisor.expect(Some(Instant::now() + limit));
        match message.map_err(in_words)? {
            message if message == *expected => Ok(()),
            message => Err(unexpected(&message).to_string()),
        }
    };
    expect(&Message::Prepared, START_TIMEOUT)?;
    expect(&Message::Placed, TAKE_TIMEOUT)
}

fn in_words(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the new program has ended".to_owned(),
        io::ErrorKind::TimedOut => {
            "the new program does not take the guests over in time".to_owned()
        }
        _ => error.to_string(),
    }
}
