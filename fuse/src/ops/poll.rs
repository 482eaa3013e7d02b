//! POLL: readiness of an open file.

use bitflags::bitflags;

wire_struct! {
    /// POLL (7.11).
    PollIn = "fuse_poll_in", 24 bytes {
        /// The open file.
        fh: u64 => 0,
        /// Names the poll in a later notification.
        kh: u64 => 8,
        /// [`PollFlags`].
        flags: u32 => 16,
        /// `EPOLL*` events asked for (7.21).
        events: u32 => 20,
    }
}

bitflags! {
    /// Flags of POLL (`FUSE_POLL_*`).
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct PollFlags: u32 {
        /// Notify when readiness changes.
        const SCHEDULE_NOTIFY = 1 << 0;
    }
}

wire_struct! {
    /// Reply of POLL.
    PollOut = "fuse_poll_out", 8 bytes {
        /// `EPOLL*` events that hold now.
        revents: u32 => 0,
        /// Zero.
        padding: u32 => 4,
    }
}
