//! Telling a thread that waits to end.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Said once, and heard by every wait from then on.
#[derive(Debug)]
pub struct Stop(EventFd);

/// How a wait ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Waited {
    /// It was told to end.
    Stopped,
    /// The connection has gone.
    HungUp,
    /// The time is over.
    TimedOut,
}

/// What an event is of.
const STOP: u64 = 0;
const LINE: u64 = 1;

impl Stop {
    /// Not said yet. Fails as `eventfd` does.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map(Self)
    }

    /// Says it.
    pub fn say(&self) {
        // Fails only where it was said as often as a counter counts.
        let _ = self.0.write(1);
    }

    /// Waits for it to be said, for `line` to be hung up if there is one, but no longer than `limit` if there is one.
    pub fn wait(&self, line: Option<&OwnedFd>, limit: Option<Duration>) -> io::Result<Waited> {
        let epoll = Epoll::new()?;
        let said = EpollEvent::new(EventSet::IN, STOP);
        epoll.ctl(ControlOperation::Add, self.0.as_raw_fd(), said)?;
        if let Some(line) = line {
            let hung_up = EpollEvent::new(EventSet::READ_HANG_UP, LINE);
            epoll.ctl(ControlOperation::Add, line.as_raw_fd(), hung_up)?;
        }
        let limit = limit.map_or(-1, |limit| {
            i32::try_from(limit.as_millis()).unwrap_or(i32::MAX)
        });
        let mut events = [EpollEvent::default(); 2];
        loop {
            match epoll.wait(limit, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(0) => return Ok(Waited::TimedOut),
                Ok(count) => {
                    let stopped = events.iter().take(count).any(|event| event.data() == STOP);
                    return Ok(match stopped {
                        true => Waited::Stopped,
                        false => Waited::HungUp,
                    });
                }
            }
        }
    }
}
