//! The eventfds between guest and device: one per queue for its kicks, one for the interrupt line.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::hypervisor::{Port, PortError};

/// A device's eventfds. They are connected once and live as long as the device's port: a hypervisor
/// need not be able to disconnect them, so they outlive every driver and every backend.
#[derive(Debug)]
pub struct EventFds {
    kicks: Vec<EventFd>,
    call: EventFd,
    /// Interrupts that were taken off the counter of `call` so far.
    calls: AtomicU64,
}

impl EventFds {
    /// Makes a kick for each queue and the interrupt, and connects them at `port`.
    pub fn connect<P: Port + ?Sized>(port: &P, queues: u16) -> Result<Self, PortError> {
        let eventfds = Self::new(queues).map_err(|source| PortError::Failed {
            doing: "make eventfds for kicks and interrupts",
            source,
        })?;
        eventfds.connect_to(port)?;
        Ok(eventfds)
    }

    /// The eventfds of a predecessor.
    pub fn of(kicks: Vec<EventFd>, call: EventFd) -> Self {
        Self {
            kicks,
            call,
            calls: AtomicU64::new(0),
        }
    }

    /// Connects them at `port`. They may be connected there already.
    pub fn connect_to<P: Port + ?Sized>(&self, port: &P) -> Result<(), PortError> {
        for (queue, kick) in (0..).zip(&self.kicks) {
            port.connect_kick(queue, kick)?;
        }
        port.connect_interrupt(&self.call)
    }

    /// Disconnects everything that [`EventFds::connect`] has connected at `port`. Goes on after an
    /// error, and returns the first one.
    pub fn disconnect<P: Port + ?Sized>(&self, port: &P) -> Result<(), PortError> {
        let mut done = port.disconnect_interrupt(&self.call);
        for (queue, kick) in (0..).zip(&self.kicks) {
            done = done.and(port.disconnect_kick(queue, kick));
        }
        done
    }

    /// Eventfds for `queues` queues that are not connected to anything.
    pub fn new(queues: u16) -> io::Result<Self> {
        let new = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK);
        let kicks = (0..queues).map(|_| new()).collect::<Result<_, _>>()?;
        Ok(Self::of(kicks, new()?))
    }

    /// The eventfd of a queue's kicks, for SET_VRING_KICK.
    pub fn kick(&self, queue: u16) -> Option<&EventFd> {
        self.kicks.get(usize::from(queue))
    }

    /// The eventfd that raises the interrupt line, for SET_VRING_CALL of all queues.
    pub fn call(&self) -> &EventFd {
        &self.call
    }

    /// Kicks a queue as the guest would, if it exists. A full counter is a pending kick already.
    pub fn signal_kick(&self, queue: u16) {
        if let Some(kick) = self.kick(queue) {
            add_one(kick);
        }
    }

    /// Raises the interrupt line. The guest takes it for used buffers.
    pub fn signal_call(&self) {
        add_one(&self.call);
    }

    /// Interrupts since the last call, from any source.
    pub(super) fn take_calls(&self) -> u64 {
        let taken = take(&self.call);
        self.calls.fetch_add(taken, Ordering::Relaxed);
        taken
    }

    /// Interrupts so far, from any source: this process alone reads the counter. `None` if the
    /// system does not report it. Must not be called while another thread takes interrupts.
    pub fn calls(&self) -> Option<u64> {
        let taken = self.calls.load(Ordering::Relaxed);
        Some(taken.saturating_add(look(&self.call)?))
    }

    /// For each queue, the kicks that the backend has not taken yet; `None` if the system does not
    /// report them.
    pub fn kicks_waiting(&self) -> Vec<Option<u64>> {
        self.kicks.iter().map(look).collect()
    }

    /// Takes the kicks of a queue, and returns their number. Only the process that works on the
    /// queue may do so.
    pub fn take_kicks(&self, queue: u16) -> u64 {
        self.kick(queue).map_or(0, take)
    }

    /// Discards pending kicks and interrupts.
    pub(super) fn drain(&self) {
        for kick in &self.kicks {
            take(kick);
        }
        self.take_calls();
    }
}

/// Fails only if the counter is full, and then the eventfd is signalled anyway.
fn add_one(eventfd: &EventFd) {
    let _ = eventfd.write(1);
}

/// Takes the counter, which is 0 afterwards. Reading fails only if it is 0.
fn take(eventfd: &EventFd) -> u64 {
    eventfd.read().unwrap_or(0)
}

/// The counter, unchanged (proc(5), `/proc/pid/fdinfo`).
fn look(eventfd: &EventFd) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", eventfd.as_raw_fd())).ok()?;
    let count = info
        .lines()
        .find_map(|line| line.strip_prefix("eventfd-count:"))?;
    u64::from_str_radix(count.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_at_kicks_takes_none_of_them() {
        let eventfds = EventFds::new(2).unwrap();
        for _ in 0..18 {
            eventfds.signal_kick(1);
        }
        assert_eq!(eventfds.kicks_waiting(), [Some(0), Some(18)]);
        assert_eq!(eventfds.take_kicks(1), 18);
    }

    #[test]
    fn interrupts_are_counted_whether_the_guest_has_looked_or_not() {
        let eventfds = EventFds::new(1).unwrap();
        eventfds.signal_call();
        eventfds.call().write(2).unwrap();
        assert_eq!(eventfds.take_calls(), 3);
        eventfds.signal_call();
        assert_eq!(eventfds.calls(), Some(4));
        eventfds.drain();
        assert_eq!(eventfds.calls(), Some(4));
    }
}
