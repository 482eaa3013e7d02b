//! A virtio-fs driver in user space: any program uses a virtio-fs daemon as a guest would, without
//! a guest.
//!
//! ```text
//!   Driver::connect ── vhost-user, memory, rings ──> Driver
//!   Driver::session ── INIT ───────────────────────> FuseSession ── lookup, open, ... ──> values
//!                                                    │
//!                                                    └── submit(call) ──> Pending ── wait ──> value
//! ```
//!
//! A [`FuseSession`] is cloned for each thread that uses it. Requests of all threads are in flight
//! on the same queues at once. [`call`] has every operation as a function. File data stays where
//! the daemon has put it ([`Data`]), or is sent from the [`Buffer`] that a file was read into, and
//! is never copied.
//!
//! A program that carries requests of a guest elsewhere submits their bytes as they are
//! ([`Driver::submit_raw`]). It opens no session of its own.
//!
//! The driver does not trust the daemon: it checks what the daemon writes into a ring or a reply. A
//! daemon that breaks the rules or closes the connection turns every call into [`Error::Broken`].
//! Every wait has a limit.

mod batch;
pub mod call;
mod core;
mod device;
mod error;
#[cfg(test)]
mod fake_daemon;
#[cfg(test)]
mod fake_device;
pub mod file_client;
mod fuse_session;
mod memory;
mod options;
mod pending;
mod raw;
mod reply;
mod request;
pub mod ring;
mod sender;
mod slots;
mod wakeup;

pub use call::DirEntry;
pub use device::Driver;
pub use error::{BadReply, Error, Fault, Result};
pub use fuse_session::{FuseSession, InitOptions};
pub use memory::Buffer;
pub use options::{Options, WaitMode};
pub use pending::Pending;
pub use raw::{RawReply, RawRequest};
pub use reply::Data;
pub use request::Call;
pub use sender::Caller;
