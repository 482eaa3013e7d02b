//! What the supervisor does at a reload, and what it leaves to the program that it becomes.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::Child;
use std::str::FromStr;
use std::time::{Duration, Instant};

use gangplank_service::owned_file::FileId;
use gangplank_service::readiness;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Pid;

use super::SUPERVISE;
use super::channel::{Arrived, Channel, Message, unexpected};
use super::program::Program;
use crate::sandbox::Supervisor;
use crate::socket::Files;
use crate::sys::process;

/// How long the new program may take until it is ready to take the guests over. They are served
/// meanwhile.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the guests may take to be handed over. They wait meanwhile.
const TAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a service manager shows of a daemon that serves.
pub const SERVING: &str = "Serving guests";

/// What a supervisor needs to reload.
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
        let predecessor = std::mem::replace(supervisor, successor.supervisor);
        predecessor.kill();
        if let Err(error) = supervisor.channel().send(&Message::Go, &[]) {
            // It has ended, and so does this process.
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

    fn start_successor(&self, supervisor: &Supervisor) -> Result<Successor, String> {
        let failed = |error: io::Error| error.to_string();
        let (channel, theirs) = Channel::pair().map_err(failed)?;
        let (old, new) = Channel::pair().map_err(failed)?;
        let told = supervisor
            .channel()
            .send(&Message::HandOver, &[old.as_fd()]);
        told.map_err(failed)?;
        drop(old);
        let mut child = start(&self.program, &theirs, &new)
            .map_err(|error| format!("cannot start {:?}: {error}", self.program.path()))?;
        drop((theirs, new));
        let mut acceptor = None;
        let taken = take_over(&channel, &mut child, &mut acceptor);
        // It has ended by itself, unless it failed or is no such program.
        if taken.is_err() {
            let _ = child.kill();
        }
        let status = child.wait();
        let program = match (taken, acceptor) {
            (Ok(program), Some(_)) => Ok(program),
            (Err(reason), acceptor) => Err((reason, acceptor)),
            (Ok(_), None) => Err(("it has started no acceptor".to_owned(), None)),
        };
        match program {
            Ok(program) => {
                let acceptor = acceptor.ok_or("it has started no acceptor")?;
                let supervisor = Supervisor::new(acceptor, channel);
                Ok(Successor {
                    supervisor: supervisor.map_err(|error| error.to_string())?,
                    program,
                })
            }
            Err((reason, Some(acceptor))) => {
                match Supervisor::new(acceptor, channel) {
                    Ok(supervisor) => supervisor.kill(),
                    Err(error) => log::error!("cannot end the new program: {error}"),
                }
                Err(reason)
            }
            Err((reason, None)) => match status {
                Ok(status) if !status.success() => {
                    Err(format!("{reason} (the new program: {status})"))
                }
                _ => Err(reason),
            },
        }
    }

    /// Returns only if that fails.
    fn become_program(&self, supervisor: &Supervisor, program: &OwnedFd) -> io::Error {
        let inherited = Inherited {
            channel: supervisor.channel().as_fd().as_raw_fd(),
            acceptor: supervisor.child().as_raw_nonzero().get(),
            lock: self
                .files
                .as_ref()
                .map_or(-1, |files| files.lock().as_raw_fd()),
            socket: self.files.as_ref().and_then(Files::socket_id),
            count: self.count,
        };
        let passed = [Some(supervisor.channel().as_fd())]
            .into_iter()
            .chain([self.files.as_ref().map(Files::lock)]);
        let passed: Vec<_> = passed.flatten().collect();
        let mark = |flags| {
            let marked = passed
                .iter()
                .map(|descriptor| fcntl_setfd(descriptor, flags));
            marked.collect::<Result<(), _>>()
        };
        if let Err(error) = mark(FdFlags::empty()) {
            return error.into();
        }
        let error = self
            .program
            .become_program(program.as_fd(), &inherited.to_string());
        let _ = mark(FdFlags::CLOEXEC);
        error
    }
}

/// Starts the program, which inherits the two channels.
fn start(program: &Program, supervisor: &Channel, predecessor: &Channel) -> io::Result<Child> {
    let channels = [supervisor, predecessor];
    for channel in channels {
        fcntl_setfd(channel, FdFlags::empty())?;
    }
    let [supervisor, predecessor] = channels.map(|channel| channel.as_fd().as_raw_fd());
    program.start(&format!("{supervisor},{predecessor}"))
}

/// Waits until the new program holds all guests. Returns its file. `acceptor` is its acceptor as
/// soon as it has one.
fn take_over(
    channel: &Channel,
    child: &mut Child,
    acceptor: &mut Option<Pid>,
) -> Result<OwnedFd, String> {
    let deadline = Instant::now() + START_TIMEOUT;
    let Arrived {
        message,
        descriptors,
    } = next(channel, deadline)?;
    let Message::Started { acceptor: number } = message else {
        return Err(unexpected(&message).to_string());
    };
    let launched = Pid::from_raw(number).ok_or("the new program's process id is invalid")?;
    *acceptor = Some(launched);
    let program = descriptors.into_iter().next();
    let program = program.ok_or("the new program has not passed its file")?;
    child.wait().map_err(|error| error.to_string())?;
    channel
        .send(&Message::Known, &[])
        .map_err(|error| error.to_string())?;
    expect(channel, &Message::Prepared, deadline)?;
    expect(channel, &Message::Placed, Instant::now() + TAKE_TIMEOUT)?;
    Ok(program)
}

fn expect(channel: &Channel, expected: &Message, deadline: Instant) -> Result<(), String> {
    let message = next(channel, deadline)?.message;
    match message == *expected {
        true => Ok(()),
        false => Err(unexpected(&message).to_string()),
    }
}

fn next(channel: &Channel, deadline: Instant) -> Result<Arrived, String> {
    channel
        .expect(Some(deadline))
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => "the new program has ended".to_owned(),
            io::ErrorKind::TimedOut => {
                "the new program does not take the guests over in time".to_owned()
            }
            _ => error.to_string(),
        })
}

/// What a supervisor leaves to the program that it becomes: numbers of descriptors and processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// The channel to the acceptor.
    channel: RawFd,
    /// The acceptor.
    acceptor: i32,
    /// The locked pid file; -1 if there is none.
    lock: RawFd,
    /// The socket's file.
    socket: Option<FileId>,
    /// How often guests were handed over.
    count: u32,
}

/// What a program supervises that a supervisor has become.
#[derive(Debug)]
pub struct Supervised {
    /// The channel to the acceptor.
    pub channel: Channel,
    /// The acceptor.
    pub acceptor: Pid,
    /// The locked pid file.
    pub lock: Option<OwnedFd>,
    /// The socket's file.
    pub socket: Option<FileId>,
    /// How often guests were handed over.
    pub count: u32,
}

impl Supervised {
    /// What the process supervised before it became this program. Must be called once, before the
    /// process opens descriptors.
    ///
    /// # Errors
    /// It is malformed, or a descriptor is not open.
    pub fn inherited() -> io::Result<Option<Self>> {
        let Some(text) = std::env::var_os(SUPERVISE) else {
            return Ok(None);
        };
        let invalid = |_| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{SUPERVISE} is malformed"),
            )
        };
        let text = text.into_string().map_err(|_| invalid(()))?;
        let inherited: Inherited = text.parse().map_err(|()| invalid(()))?;
        let lock = match inherited.lock {
            -1 => None,
            lock => Some(Channel::from_inherited(process::adopt(lock)?)?.into_inner()),
        };
        Ok(Some(Self {
            channel: Channel::from_inherited(process::adopt(inherited.channel)?)?,
            acceptor: Pid::from_raw(inherited.acceptor).ok_or_else(|| invalid(()))?,
            lock,
            socket: inherited.socket,
            count: inherited.count,
        }))
    }
}

impl fmt::Display for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (device, inode) = self.socket.map_or((0, 0), FileId::numbers);
        let Self {
            channel,
            acceptor,
            lock,
            count,
            ..
        } = self;
        write!(f, "{channel},{acceptor},{lock},{device},{inode},{count}")
    }
}

impl FromStr for Inherited {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let numbers: Result<Vec<i128>, _> = text.split(',').map(str::parse).collect();
        let [channel, acceptor, lock, device, inode, count] = numbers.map_err(drop)?[..] else {
            return Err(());
        };
        let number = |number: i128| RawFd::try_from(number).map_err(drop);
        let long = |number: i128| u64::try_from(number).map_err(drop);
        let socket = FileId::from_numbers(long(device)?, long(inode)?);
        Ok(Self {
            channel: number(channel)?,
            acceptor: number(acceptor)?,
            lock: number(lock)?,
            socket: (inode != 0).then_some(socket),
            count: u32::try_from(count).map_err(drop)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_to_the_next_program_comes_back() {
        let inherited = Inherited {
            channel: 5,
            acceptor: 4242,
            lock: -1,
            socket: Some(FileId::from_numbers(u64::MAX, 7)),
            count: 3,
        };
        assert_eq!(inherited.to_string().parse(), Ok(inherited));
        let without = Inherited {
            socket: None,
            lock: 8,
            ..inherited
        };
        assert_eq!(without.to_string().parse(), Ok(without));
        for malformed in ["", "1,2", "1,2,3,4,5,x", "1,2,3,4,5,-1"] {
            assert!(malformed.parse::<Inherited>().is_err(), "{malformed}");
        }
    }
}
