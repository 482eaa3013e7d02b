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
    /// Whether the threads of the pool are started as requests need them.
    pub thread_pool_grows: bool,
    /// Most threads of the device beside those of its rings and the few that manage it, at least
    /// [`Options::min_threads`]: those of the pool, those for requests that would make others wait
    /// for a disk, and those that wait for locks.
    pub max_threads: usize,
    /// How long a queue worker polls for a likely next request before it sleeps; zero never polls.
    pub busy_poll: Duration,
    /// How much the guest may do a second.
    pub limits: Limits,
    /// Most bytes of guest memory that the frontend may have mapped.
    pub max_guest_memory: u64,
    /// Most regions of guest memory, 1 to [`Options::MAX_MEMORY_REGIONS`].
    pub max_memory_regions: u16,
    /// Whether QEMU may have more than 8 regions (CONFIGURE_MEM_SLOTS). It then does not survive a
    /// restart of the daemon: after it has reconnected, it does not send its regions again.
    pub has_slots_for_qemu: bool,
}

/// Limits of one guest, over all of its rings. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Operations a second.
    pub operations: Option<Rate>,
    /// Bytes of file data a second.
    pub bytes: Option<Rate>,
}

/// A rate and how far a guest that has rested may exceed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units a second, at least 1.
    pub per_second: u64,
    /// Units at once after a pause, at least 1.
    pub burst: u64,
}

impl Rate {
    /// A rate of `per_second` with this burst, or with that of a tenth of a second.
    #[must_use]
    pub fn new(per_second: u64, burst: Option<u64>) -> Self {
        Self {
            per_second,
            burst: burst.unwrap_or_else(|| (per_second / 10).max(1)),
        }
    }
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

    /// Number of rings of each device, the high-priority queue included.
    #[must_use]
    pub fn rings(&self) -> u64 {
        let request_queues = self
            .num_request_queues
            .clamp(Self::MIN_REQUEST_QUEUES, Self::MAX_REQUEST_QUEUES);
        u64::from(request_queues) + 1
    }

    /// Most threads for requests that would make others wait for a disk. This is the number of
    /// requests that a disk gets at a time, whatever the number of CPUs.
    const BLOCKING_THREADS: usize = 16;

    /// Least [`Options::max_threads`] with a pool of this size: a thread for disks, one that waits
    /// for a lock and one that tries the locks of further requests.
    #[must_use]
    pub const fn min_threads(thread_pool_size: usize) -> usize {
        thread_pool_size.saturating_add(3)
    }

    /// Default of [`Options::max_threads`] with a pool of this size: 64, or as many more as leave
    /// half of them to requests that wait.
    #[must_use]
    pub const fn default_threads(thread_pool_size: usize) -> usize {
        const DEFAULT: usize = 64;
        if thread_pool_size > DEFAULT / 2 {
            thread_pool_size.saturating_add(DEFAULT / 2)
        } else {
            DEFAULT
        }
    }

    /// Most threads of a pool with this [`Options::max_threads`].
    #[must_use]
    pub const fn pool_room(max_threads: usize) -> usize {
        max_threads.saturating_sub(Self::min_threads(0))
    }

    /// Threads for requests that would make others wait for a disk; at least one.
    #[must_use]
    pub fn blocking_threads(&self) -> usize {
        let rest = self.max_threads.saturating_sub(self.thread_pool_size);
        (rest / 2).clamp(1, Self::BLOCKING_THREADS)
    }

    /// Threads that wait for locks, without the one that tries the locks of further requests; at
    /// least one.
    #[must_use]
    pub fn lock_threads(&self) -> usize {
        let others = self.thread_pool_size + self.blocking_threads() + 1;
        self.max_threads.saturating_sub(others).max(1)
    }

    /// Default of [`Options::max_guest_memory`]: 8 TiB, a sixteenth of a process's address space on
    /// x86-64 with 4 levels of page tables.
    pub const MAX_GUEST_MEMORY: u64 = 8 << 40;

    /// Most regions that a device supports: vhost-user-backend's reply to GET_MAX_MEM_SLOTS.
    pub const MAX_MEMORY_REGIONS: u16 = 509;

    /// Regions that every frontend can have (QEMU: `VHOST_MEMORY_BASELINE_NREGIONS`).
    pub const BASELINE_REGIONS: u16 = 8;

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
            thread_pool_grows: false,
            max_threads: Self::default_threads(0),
            busy_poll: Duration::from_micros(200),
            limits: Limits::default(),
            max_guest_memory: Self::MAX_GUEST_MEMORY,
            max_memory_regions: Self::MAX_MEMORY_REGIONS,
            has_slots_for_qemu: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threads_of_all_kinds_are_no_more_than_permitted() {
        for thread_pool_size in [0, 1, 8, 32, 33, 1000] {
            let default = Options::default_threads(thread_pool_size);
            for max_threads in [
                Options::min_threads(thread_pool_size),
                default,
                default + 100,
            ] {
                let options = Options {
                    thread_pool_size,
                    max_threads,
                    ..Options::default()
                };
                let (blocking, locks) = (options.blocking_threads(), options.lock_threads());
                assert!(blocking > 0 && locks > 0, "{options:?}");
                assert_eq!(thread_pool_size + blocking + locks + 1, max_threads);
            }
        }
        let options = Options::default();
        assert_eq!(
            (options.blocking_threads(), options.lock_threads()),
            (16, 47)
        );
    }
}
