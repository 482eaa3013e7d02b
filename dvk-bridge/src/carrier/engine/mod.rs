//! What an endpoint does with the commands that come for it and what it sends, whoever carries them.
//!
//! ```text
//!   a thread in receive, reply, copy ...        a thread in sendrec
//!        │ mailbox   │ lane                         │ question
//!   ─────┴───────────┴──────── desk ────────────────┴─────────
//!                      station: a desk for each endpoint
//!                     deliver │            │ line
//!                        a carrier's connection to a peer
//! ```
//!
//! A carrier gives every command that comes to [`Station::deliver`], in the order in which they come, and makes a [`Line`]
//! for each peer. Nothing in `deliver` waits, so one thread can read many connections.

mod asking;
mod bound;
mod desk;
mod lane;
mod line;
mod mailbox;
mod question;
mod station;
mod sync;
mod turn;

pub(crate) use bound::Bound;
pub(crate) use line::{Line, NotConnected, PeerId};
pub(crate) use station::{Kind, Station, Tuning};
pub(crate) use sync::{lock, wait_until};
