//! The carrier-independent part of an endpoint: what it does with the commands that arrive for it,
//! and which commands it sends.
//!
//! ```text
//!   a thread in receive, reply, copy ...     a thread in sendrec
//!        │ Mailbox   │ PeerChannel               │ PendingCall
//!   ─────┴───────────┴───── EndpointState ───────┴─────────
//!                EndpointTable: one EndpointState per endpoint
//!                     deliver │            │ PeerTransport
//!                        a carrier's connection to a peer
//! ```
//!
//! A carrier passes every command that arrives to [`EndpointTable::deliver`], in order of arrival,
//! and implements [`PeerTransport`] for each peer. `deliver` never waits, so one thread can read
//! many connections.

mod config;
mod endpoint;
mod endpoint_state;
mod endpoint_table;
mod fair_lock;
mod mailbox;
mod peer_channel;
mod peer_transport;
mod pending_call;
mod sendrec;

pub(crate) use config::{EngineConfig, PeerKind};
pub(crate) use endpoint::EngineEndpoint;
pub(crate) use endpoint_table::EndpointTable;
pub(crate) use peer_transport::{NotConnected, PeerId, PeerTransport};
