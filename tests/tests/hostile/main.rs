//! Hostile frontends and guests: malformed messages, descriptor chains and FUSE requests.

mod aborting;
mod chains;
mod isolation;
mod messages;
mod requests;
