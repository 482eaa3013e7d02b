//! The eventfds between guest and device: one per queue for its kicks, one for the interrupt line.

use std::io;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::hypervisor::{Port, PortError};

/// A device's eventfds, made and connected once for as long as its port lives: a hypervisor need not be able to disconnect
/// one, so they outlast every driver and every process at the other end.
#[derive(Debug)]
pub struct Wires {
    kicks: Vec<EventFd>,
    call: EventFd,
}

impl Wires {
    /// Makes one kick per queue and the interrupt, and connects them at `port`.
    pub fn connect<P: Port + ?Sized>(port: &P, queues: u16) -> Result<Self, PortError> {
        let wires = Self::new(queues).map_err(|source| PortError::Failed {
            doing: "make eventfds for kicks and interrupts",
            source,
        })?;
        for (queue, kick) in (0..queues).zip(&wires.kicks) {
            port.connect_kick(queue, kick)?;
        }
        port.connect_interrupt(&wires.call)?;
        Ok(wires)
    }

    /// Disconnects all that [`Wires::connect`] has connected at `port`, as far as that can be done; the first failure.
    pub fn disconnect<P: Port + ?Sized>(&self, port: &P) -> Result<(), PortError> {
        let mut done = port.disconnect_interrupt(&self.call);
        for (queue, kick) in (0..).zip(&self.kicks) {
            done = done.and(port.disconnect_kick(queue, kick));
        }
        done
    }

    /// Eventfds for `queues` queues that nothing is connected to.
    pub fn new(queues: u16) -> io::Result<Self> {
        let new = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK);
        Ok(Self {
            kicks: (0..queues).map(|_| new()).collect::<Result<_, _>>()?,
            call: new()?,
        })
    }

    /// What a queue's kicks come through: for the device's `SET_VRING_KICK`.
    pub fn kick(&self, queue: u16) -> Option<&EventFd> {
        self.kicks.get(usize::from(queue))
    }

    /// What raises the interrupt line, for all queues: for the device's `SET_VRING_CALL`.
    pub fn call(&self) -> &EventFd {
        &self.call
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
        add_one(&self.call);
    }

    /// How often the interrupt line was raised since this was last asked, by anybody.
    pub(super) fn take_calls(&self) -> u64 {
        take(&self.call)
    }

    /// How often a queue was kicked since this was last asked.
    #[cfg(test)]
    pub(super) fn take_kicks(&self, queue: u16) -> u64 {
        self.kick(queue).map_or(0, take)
    }

    /// Forgets kicks and interrupts that nobody has looked at.
    pub(super) fn drain(&self) {
        for kick in &self.kicks {
            take(kick);
        }
        take(&self.call);
    }
}

/// Fails only where the counter is about to overflow, which is as good as signalled.
fn add_one(eventfd: &EventFd) {
    let _ = eventfd.write(1);
}

/// The counter, which is 0 afterwards: reading fails only where it is 0.
fn take(eventfd: &EventFd) -> u64 {
    eventfd.read().unwrap_or(0)
}
