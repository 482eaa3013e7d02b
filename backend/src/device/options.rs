//! What the operator chooses about the virtio-fs device.

/// How the device presents itself to a guest and serves its queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The name a guest mounts by: 1 to [`Options::MAX_TAG_LEN`] bytes of UTF-8.
    pub tag: String,
    /// Request queues announced in the device configuration, 1 to
    /// [`Options::MAX_REQUEST_QUEUES`], the
    /// high-priority queue not counted.
    pub num_request_queues: u16,
    /// Largest ring accepted on any queue, in descriptors: a power of two up to
    /// [`Options::MAX_QUEUE_SIZE`].
    pub max_queue_size: u16,
    /// Threads that may serve requests of one device beside its queue workers; 0 serves each
    /// request on the worker of its queue.
    pub thread_pool_size: usize,
}

impl Options {
    /// Longest tag the device configuration can hold, in bytes (virtio 1.2, 5.11.4: `tag[36]`).
    pub const MAX_TAG_LEN: usize = 36;

    /// Most request queues one device may announce.
    ///
    /// vhost-user backends number their queues in a 64-bit mask, and the high-priority queue takes
    /// one of them.
    pub const MAX_REQUEST_QUEUES: u16 = 63;

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
        }
    }
}
