//! Commands on a stream of bytes, whether that goes to a node or to the switch.

mod door;
mod frames;
mod outbox;
mod poll;

pub(crate) use door::Door;
pub(crate) use frames::{FrameError, Frames};
pub(crate) use outbox::{Broken, Outbox, Traffic, proxys};
pub(crate) use poll::{NAP, poll_for};
