//! rhostfs: file system calls as DVK messages, for machines whose kernel knows no other shared file
//! system.

#[cfg(target_pointer_width = "64")]
pub mod config;
pub mod mount;
#[cfg(target_pointer_width = "64")]
pub mod server;
#[cfg(target_pointer_width = "64")]
pub mod service;
#[cfg(not(target_pointer_width = "64"))]
#[path = "unserved.rs"]
pub mod service;
#[cfg(target_pointer_width = "64")]
mod tunnels;
