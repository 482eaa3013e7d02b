//! A guest that sends what User Mode Linux sends, a relay, and a daemon that records what it
//! receives, all in one process.

mod daemon_failures;
mod fake_daemon;
mod fake_guest;
mod replacement;
mod setup;
mod successor;

use std::time::Duration;

use gangplank_vhost_user::Deadline;
use gangplank_vhost_user::message::FrontendReq;

use super::daemon::Limits;

/// Time that every step of a test has.
const LIMIT: Duration = Duration::from_secs(10);

fn soon() -> Deadline {
    Deadline::after(LIMIT)
}

const LIMITS: Limits = Limits {
    connect: LIMIT,
    answer: LIMIT,
    state: LIMIT,
};

/// VERSION_1, protocol features, EVENT_IDX, INDIRECT_DESC.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28;

/// The order in which every daemon accepts the messages of a ring.
const RING: [FrontendReq; 6] = [
    FrontendReq::SET_VRING_NUM,
    FrontendReq::SET_VRING_ADDR,
    FrontendReq::SET_VRING_BASE,
    FrontendReq::SET_VRING_CALL,
    FrontendReq::SET_VRING_KICK,
    FrontendReq::SET_VRING_ENABLE,
];

const NEGOTIATION: [FrontendReq; 6] = [
    FrontendReq::SET_OWNER,
    FrontendReq::GET_FEATURES,
    FrontendReq::GET_PROTOCOL_FEATURES,
    FrontendReq::SET_PROTOCOL_FEATURES,
    FrontendReq::GET_QUEUE_NUM,
    FrontendReq::GET_CONFIG,
];

/// A file of `len` bytes.
fn file(len: u64) -> std::fs::File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    file
}
