//! The eventfds of a device: those that the guest's stores signal, and those that raise its
//! interrupt line.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use parking_lot::{Mutex, MutexGuard};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

use super::abi::{DATAMATCH, IOEVENTFD_DEASSIGN, IRQFD_DEASSIGN};

/// The eventfds of a device.
pub struct EventFds {
    kicks: Mutex<Vec<IoEventFd>>,
    irqs: Mutex<Vec<(u64, OwnedFd)>>,
    /// Edge-triggered: readable once after each signal.
    line: OwnedFd,
    /// The eventfd by which the driver itself raises the line.
    own: OwnedFd,
}

#[derive(Debug)]
struct IoEventFd {
    /// The identity of the eventfd, independent of the descriptor.
    identity: u64,
    event: OwnedFd,
    address: u64,
    len: u64,
    data: Option<u64>,
}

/// An access that may be a kick.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kick {
    pub(super) address: u64,
    pub(super) width: u64,
    /// The whole register of a write; `None` for a read.
    pub(super) written: Option<u64>,
}

/// The argument of IOEVENTFD, as in the caller's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct IoEventFdArgument {
    pub(super) file: i32,
    pub(super) flags: u32,
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) data: u64,
}

impl IoEventFdArgument {
    pub(super) fn decode(bytes: &[u8; 32]) -> Self {
        let word = |at: usize| -> u64 {
            let (words, _) = bytes.as_chunks();
            u64::from_le_bytes(words.get(at).copied().unwrap_or_default())
        };
        let halves = |at: usize| {
            let low = u32::try_from(word(at) & 0xffff_ffff).unwrap_or_default();
            (low, u32::try_from(word(at) >> 32).unwrap_or_default())
        };
        let (file, flags) = halves(0);
        Self {
            file: file.cast_signed(),
            flags,
            address: word(1),
            len: halves(2).0,
            data: word(3),
        }
    }
}

impl EventFds {
    pub(super) fn new() -> Result<Self> {
        let own = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let line = epoll::create(CreateFlags::CLOEXEC)?;
        watch(&line, &own)?;
        Ok(Self {
            kicks: Mutex::default(),
            irqs: Mutex::default(),
            line,
            own,
        })
    }

    fn kicks(&self) -> MutexGuard<'_, Vec<IoEventFd>> {
        self.kicks.lock()
    }

    fn irqs(&self) -> MutexGuard<'_, Vec<(u64, OwnedFd)>> {
        self.irqs.lock()
    }

    /// Whether the kernel's own client handles the access, which depends on its range alone. The
    /// client signals the first matching entry. If none matches, the access has no effect.
    pub(super) fn takes(&self, kick: &Kick) -> bool {
        let kicks = self.kicks();
        let covers = |entry: &IoEventFd| {
            let offset = kick.address.checked_sub(entry.address);
            offset.is_some_and(|offset| offset.saturating_add(kick.width) <= entry.len)
        };
        if !kicks.iter().any(covers) {
            return false;
        }
        let fits = |entry: &&IoEventFd| {
            entry.address == kick.address
                && kick.width <= entry.len
                && kick
                    .written
                    .is_some_and(|value| entry.data.is_none_or(|data| data == value))
        };
        if let Some(entry) = kicks.iter().find(fits) {
            // A full counter is as good as one more signal.
            let _ = rustix::io::write(&entry.event, &1u64.to_ne_bytes());
        }
        true
    }

    /// IOEVENTFD with the driver's faults: DEASSIGN removes the entry and then assigns it again.
    pub(super) fn ioeventfd(
        &self,
        argument: &IoEventFdArgument,
        event: OwnedFd,
    ) -> Result<(), Errno> {
        let identity = identity(&event)?;
        let mut kicks = self.kicks();
        if argument.flags & IOEVENTFD_DEASSIGN != 0 {
            kicks.retain(|entry| entry.identity != identity);
        }
        if !matches!(argument.len, 1 | 2 | 4 | 8) {
            return Err(Errno::INVAL);
        }
        let data = (argument.flags & DATAMATCH != 0).then_some(argument.data);
        let same = |entry: &IoEventFd| {
            (entry.identity, entry.address, entry.data) == (identity, argument.address, data)
        };
        if kicks.iter().any(same) {
            return Err(Errno::EXIST);
        }
        kicks.push(IoEventFd {
            identity,
            event,
            address: argument.address,
            len: argument.len.into(),
            data,
        });
        Ok(())
    }

    /// IRQFD.
    pub(super) fn irqfd(&self, flags: u32, event: OwnedFd) -> Result<(), Errno> {
        let identity = identity(&event)?;
        let mut irqs = self.irqs();
        let known = irqs.iter().position(|(other, _)| *other == identity);
        match (flags & IRQFD_DEASSIGN != 0, known) {
            (false, Some(_)) => return Err(Errno::BUSY),
            (false, None) => {
                watch(&self.line, &event)?;
                irqs.push((identity, event));
            }
            (true, Some(at)) => {
                let (_, event) = irqs.swap_remove(at);
                epoll::delete(&self.line, &event)?;
            }
            (true, None) => {}
        }
        Ok(())
    }

    /// Raises the interrupt line without an eventfd.
    pub(super) fn raise(&self) {
        let _ = rustix::io::write(&self.own, &1u64.to_ne_bytes());
    }

    /// Waits until the interrupt line was raised since the last call. Returns whether it was. Two
    /// raises between two calls count as one.
    ///
    /// # Errors
    /// The host does not tell.
    pub fn interrupted(&self, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let limit = Timespec::try_from(left)?;
            let mut events = Vec::with_capacity(64);
            match epoll::wait(
                &self.line,
                rustix::buffer::spare_capacity(&mut events),
                Some(&limit),
            ) {
                Ok(count) => return Ok(count > 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The number of eventfds that the guest's stores signal, and of those that raise the line.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.kicks().len(), self.irqs().len())
    }

    /// Fails unless the numbers match: see [`EventFds::counts`].
    ///
    /// # Errors
    /// There are not.
    pub fn expect(&self, counts: (usize, usize)) -> Result<()> {
        let are = self.counts();
        ensure!(
            are == counts,
            "{are:?} ioeventfds and irqfds where {counts:?} were expected"
        );
        Ok(())
    }
}

/// Each signal is an event of its own, unless one is pending already. The counter is not read.
fn watch(line: impl AsFd, event: impl AsFd) -> Result<(), Errno> {
    epoll::add(
        line,
        event,
        EventData::new_u64(0),
        EventFlags::IN | EventFlags::ET,
    )
}

/// The identity of an eventfd (proc(5), `fdinfo`), or EINVAL for another file.
fn identity(event: &OwnedFd) -> Result<u64, Errno> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", event.as_raw_fd()));
    let info = info.map_err(|_| Errno::BADF)?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("eventfd-id:"));
    line.and_then(|id| id.trim().parse().ok())
        .ok_or(Errno::INVAL)
}
