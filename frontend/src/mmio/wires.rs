//! The eventfds between guest and device: one per queue for its kicks, one for the interrupt line.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::hypervisor::{Port, PortError};

/// A device's eventfds, made and connected once for as long as its port lives: a hypervisor need not be able to disconnect
/// one, so they outlast every driver and every process at the other end.
#[derive(Debug)]
pub struct Wires {
    kicks: Vec<OwnedFd>,
    call: OwnedFd,
}

impl Wires {
    /// Makes one kick per queue and the interrupt, and connects them at `port`.
    pub fn connect<P: Port + ?Sized>(port: &P, queues: u16) -> Result<Self, PortError> {
        let wires = Self::new(queues).map_err(|source| PortError::Failed {
            doing: "make eventfds for kicks and interrupts",
            source,
        })?;
        for (queue, kick) in (0..queues).zip(&wires.kicks) {
            port.connect_kick(queue, kick.as_fd())?;
        }
        port.connect_interrupt(wires.call.as_fd())?;
        Ok(wires)
    }

    /// Eventfds for `queues` queues that nothing is connected to.
    pub fn new(queues: u16) -> io::Result<Self> {
        let new = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self {
            kicks: (0..queues).map(|_| new()).collect::<Result<_, _>>()?,
            call: new()?,
        })
    }

    /// What a queue's kicks come through: for the device's `SET_VRING_KICK`.
    pub fn kick(&self, queue: u16) -> Option<BorrowedFd<'_>> {
        self.kicks.get(usize::from(queue)).map(AsFd::as_fd)
    }

    /// What raises the interrupt line, for all queues: for the device's `SET_VRING_CALL`.
    pub fn call(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    /// Kicks a queue as the guest would; nothing if there is no such queue. A kick that is pending already says the same,
    /// so a full counter is no error.
    pub fn signal_kick(&self, queue: u16) {
        if let Some(kick) = self.kick(queue) {
            add_one(kick);
        }
    }

    /// Raises the interrupt line.
    pub(super) fn signal_call(&self) {
        add_one(self.call());
    }

    /// How often the interrupt line was raised since this was last asked, by anybody.
    pub(super) fn take_calls(&self) -> u64 {
        take(self.call())
    }

    /// How often a queue was kicked since this was last asked.
    #[cfg(test)]
    pub(super) fn take_kicks(&self, queue: u16) -> u64 {
        self.kick(queue).map_or(0, take)
    }

    /// Forgets kicks and interrupts that nobody has looked at.
    pub(super) fn drain(&self) {
        for kick in &self.kicks {
            take(kick.as_fd());
        }
        take(self.call());
    }
}

/// Neither blocks nor fails but for a counter about to overflow, which is as good as signalled.
fn add_one(eventfd: BorrowedFd<'_>) {
    let written = retry(|| rustix::io::write(eventfd, &1u64.to_ne_bytes()));
    debug_assert!(matches!(written, Ok(8) | Err(Errno::AGAIN)), "{written:?}");
}

/// The counter, which is 0 afterwards.
fn take(eventfd: BorrowedFd<'_>) -> u64 {
    let mut counter = [0; 8];
    match retry(|| rustix::io::read(eventfd, &mut counter)) {
        Ok(_) => u64::from_ne_bytes(counter),
        Err(_) => 0, // EAGAIN: it is 0
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}
