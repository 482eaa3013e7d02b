//! How a driver uses a device.

use std::time::Duration;

use gangplank_vhost_user::client::Deadlines;

/// How to wait for answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WaitMode {
    /// Asleep, until the daemon notifies.
    #[default]
    Sleep,
    /// Looking all the time: quickest, and takes a processor. For measurements.
    BusyPoll,
}

/// What kind of driver to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Request queues to use; all that the daemon has if `None`.
    pub request_queues: Option<usize>,
    /// Descriptors in each ring: a power of two, 4 to 32768. With indirect descriptors that many requests can be in flight,
    /// without a quarter of it.
    pub queue_size: u16,
    /// Use indirect descriptors where they are offered.
    pub indirect: bool,
    /// Ask for notifications by index where that is offered.
    pub event_idx: bool,
    /// Bytes of shared memory for file data and what else is large. The host gives them when they are used.
    pub buffers: u64,
    /// How to wait for answers.
    pub waiting: WaitMode,
    /// How long a call may take, unless its session says otherwise.
    pub limit: Duration,
    /// How long the daemon may take to be set up.
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
