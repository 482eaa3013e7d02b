//! How a driver uses a device.

use std::time::Duration;

use gangplank_vhost_user::client::Deadlines;

/// How a thread waits for replies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WaitMode {
    /// Sleep until the daemon notifies.
    #[default]
    Sleep,
    /// Look at the ring for at most this long if replies have nearly always come that soon, and
    /// then sleep. The thread yields its CPU all the time, and stops for a while when others need
    /// it ([`gangplank_service::busy_poll`]).
    PollFirst(Duration),
    /// Look at the ring all the time: fastest, and keeps one CPU busy. For measurements.
    BusyPoll,
}

/// A driver's options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Request queues to use; `None` for all that the daemon has.
    pub request_queues: Option<usize>,
    /// Descriptors in each ring: a power of two, 4 to 32768. With indirect descriptors as many
    /// requests can be in flight, without them a quarter.
    pub queue_size: u16,
    /// Use indirect descriptors if the daemon offers them.
    pub indirect: bool,
    /// Ask for notifications by index if the daemon offers that (`VIRTIO_F_EVENT_IDX`).
    pub event_idx: bool,
    /// Bytes of shared memory for file data and other large buffers. The host provides a page when
    /// it is first touched.
    pub buffers: u64,
    /// How threads wait for replies.
    pub waiting: WaitMode,
    /// How long a call may take, unless its session has another limit.
    pub limit: Duration,
    /// How long the daemon may take to answer while the device is set up.
    pub deadlines: Deadlines,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            request_queues: None,
            queue_size: 128,
            indirect: true,
            event_idx: true,
            buffers: 128 << 20,
            waiting: WaitMode::Sleep,
            limit: Duration::from_secs(30),
            deadlines: Deadlines::default(),
        }
    }
}
