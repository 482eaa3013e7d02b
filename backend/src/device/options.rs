//! The operator's options of the virtio-fs device.

use std::time::Duration;

/// How the device presents itself to a guest and serves its queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The name a guest mounts by: 1 to [`Options::MAX_TAG_LEN`] bytes of UTF-8.
    pub tag: String,
    /// Request queues announced in the device configuration, 1 to
    /// [`Options::MAX_REQUEST_QUEUES`]; the high-priority queue does not count.
    pub num_request_queues: u16,
    /// Largest ring accepted on any queue, in descriptors: a power of two up to
    /// [`Options::MAX_QUEUE_SIZE`].
    pub max_queue_size: u16,
    /// Threads that serve the requests of one device in place of its queue workers; 0 serves each
    /// request on the worker of its queue.
    pub thread_pool_size: usize,
    /// How long a queue worker polls for a likely next request before it sleeps; zero never polls.
    pub busy_poll: Duration,
    /// Most guests at a time; the daemon refuses further connections.
    pub max_guests: usize,
}

impl Options {
    /// Longest tag the device configuration can hold, in bytes (virtio 1.2, 5.11.4: `tag[36]`).
    pub const MAX_TAG_LEN: usize = 36;

    /// Most request queues one device may announce.
    ///
    /// vhost-user-backend numbers the queues in a 64-bit mask (`queues_per_thread`), and the
    /// high-priority queue takes one bit.
    pub const MAX_REQUEST_QUEUES: u16 = 63;

    /// Request queues that each device has at least, whatever it announces: QEMU takes its number
    /// of queues from an option of its own and refuses to start if the daemon has fewer.
    pub const MIN_REQUEST_QUEUES: u16 = 8;

    /// How many guests can share `descriptors` open file descriptors; at least one.
    #[must_use]
    pub fn guests_for(&self, descriptors: u64) -> usize {
        let rings = u64::from(self.num_request_queues.max(Self::MIN_REQUEST_QUEUES)) + 1;
        // Each ring has an epoll instance, a kick, a call and two exit events. Each guest has three
        // sockets and its memory regions.
        let each = rings * 5 + 16;
        usize::try_from((descriptors / each).max(1)).unwrap_or(usize::MAX)
    }

    /// Largest ring a split virtqueue can have (virtio 1.2, 2.7).
    pub const MAX_QUEUE_SIZE: u16 = 32768;
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tag: "myfs".to_owned(),
            num_request_queues: 1,
            max_queue_size: 1024,
            thread_pool_size: 0,
            busy_poll: Duration::from_micros(200),
            max_guests: 64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_daemon_has_room_for_a_guest_and_a_large_one_for_hundreds() {
        let options = Options::default();
        assert_eq!(options.guests_for(0), 1);
        assert_eq!(options.guests_for(256), 4);
        assert_eq!(options.guests_for(16384), 268);
        let many_queues = Options {
            num_request_queues: 63,
            ..options
        };
        assert_eq!(many_queues.guests_for(16384), 48);
    }
}
