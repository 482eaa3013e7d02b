//! The events that end the threads of a device's rings.
#![allow(unsafe_code)] // lends a descriptor to a type that thinks it owns it

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use vmm_sys_util::event::{EventConsumer, EventNotifier};

/// One event for each thread of a device, all made before the first thread is, since a thread that has none goes on for ever.
///
/// vhost-user-backend 0.24 turns the consumer that it is given into a bare number at once (`VringEpollHandler::new`) and
/// never closes it, so each guest would leave as many descriptors behind as it had rings. The descriptors are kept here
/// and closed with the device.
pub(super) struct ExitEvents {
    events: Vec<OwnedFd>,
    /// The other end of each event, until it is given away.
    notifiers: Mutex<Vec<Option<OwnedFd>>>,
}

impl ExitEvents {
    /// Events for so many threads.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn new(threads: usize) -> io::Result<Self> {
        let events = (0..threads)
            .map(|_| Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
            .collect::<io::Result<Vec<_>>>()?;
        let notifiers = events
            .iter()
            .map(|event| event.try_clone().map(Some))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            events,
            notifiers: Mutex::new(notifiers),
        })
    }

    /// Lends the consuming end of a thread's event; once for each thread, and for `VhostUserBackend::exit_event` alone.
    pub(super) fn take(&self, thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let consumer = self.events.get(thread)?.as_raw_fd();
        let mut notifiers = self
            .notifiers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let notifier = notifiers.get_mut(thread)?.take()?.into_raw_fd();
        // SAFETY: the number is open, and whoever gets the consumer makes a number of it again instead of closing it.
        let consumer = unsafe { EventConsumer::from_raw_fd(consumer) };
        // SAFETY: the number was just given up by its owner.
        let notifier = unsafe { EventNotifier::from_raw_fd(notifier) };
        Some((consumer, notifier))
    }

    /// Ends all threads that were started: vhost-user-backend forgets those it has when it cannot start another.
    pub(super) fn stop_threads(&self) {
        for event in &self.events {
            // A counter that is full already ends the thread as well.
            let _ = rustix::io::write(event, &1u64.to_ne_bytes());
        }
    }
}
