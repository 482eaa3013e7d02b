//! The client's side of rhostfs as a FUSE mount: for machines that have neither virtio nor a kernel that knows DVK.
//!
//! ```text
//! kernel ── /dev/fuse ── filesystem ── view ── calls ── line ── endpoint ── carrier ── the server
//!                        (replies)    (nodes)  (messages)
//! ```

mod args;
mod attributes;
mod calls;
mod command;
mod dialect;
mod directories;
#[cfg(test)]
mod double;
mod files;
mod filesystem;
mod line;
mod nodes;
mod number;
mod session;
mod view;

pub use args::{MountArgs, OwnerName, PermissionsName, ServerName};
pub use command::{CommandError, run};
pub use dialect::Dialect;
pub use session::{MountError, Options, Session};
pub use view::Owner;
