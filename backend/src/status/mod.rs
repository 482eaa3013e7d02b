//! A look inside a running daemon: what is told, how it is read and told, and who shows it.
//!
//! ```text
//! worker ── counts ──> arena ── keeper passes the file ──> reporter ──> control socket, metrics
//!                                                             ^                │
//!                     acceptor ── forks for each client ──────┘   gangplankd status, Prometheus
//! ```
//!
//! A reporter is a process for one client. It copies the guests' counters ([`snapshot`]), composes
//! a [`model::Status`], answers ([`answer`]) and ends. So neither a slow client nor a malicious
//! guest reaches the process that accepts guests.
//!
//! The control socket speaks one request per connection: the client sends the line `status 1`, and
//! gets one line of JSON ([`model::Status`], or `{"error": ...}`) and the end of the connection.

pub mod answer;
pub mod client;
pub mod metrics;
pub mod model;
pub mod options;
pub mod snapshot;
pub mod sockets;
pub mod table;
mod watch;
