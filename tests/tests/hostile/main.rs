//! Hostile frontends and guests: malformed messages, descriptor chains and FUSE requests.

mod aborting;
mod chains;
mod isolation;
mod limits_of_one_guest;
mod lock_waits;
mod log_limits;
mod memory_limits;
mod messages;
mod projects;
mod rate_limits;
mod requests;
mod shared_descriptors;
mod stalled_memory;
