//! A virtio-fs driver in user space: any program uses a virtio-fs daemon as a guest would, without a guest.

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
mod reply;
mod request;
mod ring;
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
pub use reply::Data;
pub use request::Call;
pub use sender::Caller;
