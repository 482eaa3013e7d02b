//! The client of rhostfs as a FUSE mount, for machines that have neither virtio nor a kernel with
//! DVK.
//!
//! ```text
//! kernel ── /dev/fuse ── filesystem ── inode_ops ── calls ── rpc ── endpoint ── carrier ── server
//!                        (replies)    (nodes)      (messages)
//! ```

mod args;
mod attributes;
mod call_error;
mod calls;
mod command;
mod dialect;
mod directories;
#[cfg(test)]
mod fake_server;
mod files;
mod filesystem;
mod inode_ops;
mod message_fields;
mod nodes;
mod rpc;
mod session;
mod syscall_nr;

pub use args::{MountArgs, OwnerName, PermissionsName, ServerName};
pub use command::{CommandError, run};
pub use dialect::Dialect;
pub use inode_ops::Owner;
pub use session::{MountError, MountSession, Options};
