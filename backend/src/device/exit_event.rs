//! The events that end the threads of a device's rings.
#![allow(unsafe_code)] // gives a type that never closes it a descriptor owned here

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use vmm_sys_util::event::{EventConsumer, EventNotifier};

/// One exit event for each ring thread of a device.
///
/// All exist before the first thread starts, because a thread without one never ends.
///
/// vhost-user-backend 0.24 turns its consumer into a bare number at once (`VringEpollHandler::new`)
/// and never closes it, so each guest would leak one descriptor per ring. This type owns the
/// descriptors and closes them with the device.
pub(super) struct ExitEvents {
    events: Vec<OwnedFd>,
    /// A duplicate of each event, until vhost-user-backend takes it.
    notifiers: Mutex<Vec<Option<OwnedFd>>>,
}

impl ExitEvents {
    /// Creates an event for each of `threads` threads.
    ///
    /// # Errors
    /// The process is out of descriptors.
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

    /// Returns both ends of a thread's event, and `None` the second time.
    ///
    /// Only for `VhostUserBackend::exit_event`: this type closes the consumer's descriptor.
    pub(super) fn take(&self, thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let consumer = self.events.get(thread)?.as_raw_fd();
        let mut notifiers = self.notifiers.lock();
        let notifier = notifiers.get_mut(thread)?.take()?.into_raw_fd();
        // SAFETY: the descriptor is open until `self` drops, and vhost-user-backend turns the
        // consumer into a number again instead of closing it.
        let consumer = unsafe { EventConsumer::from_raw_fd(consumer) };
        // SAFETY: `into_raw_fd` above gave up the ownership of this descriptor.
        let notifier = unsafe { EventNotifier::from_raw_fd(notifier) };
        Some((consumer, notifier))
    }

    /// Ends all ring threads. vhost-user-backend drops the handles of those it started when it
    /// fails to start another.
    pub(super) fn stop_threads(&self) {
        for event in &self.events {
            // The write fails only if the counter is full, and that ends the thread as well.
            let _ = rustix::io::write(event, &1u64.to_ne_bytes());
        }
    }
}
