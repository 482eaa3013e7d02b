//! Commands on a byte stream, to a node or to the switch.

mod accept_backoff;
mod frames;
mod outbox;
mod poll;

pub(crate) use accept_backoff::AcceptBackoff;
pub(crate) use frames::{FrameError, Frames};
pub(crate) use outbox::{Outbox, SendError, Traffic, proxy_command};
pub(crate) use poll::{MAX_POLL_WAIT, poll_for};
