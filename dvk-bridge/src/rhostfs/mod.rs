//! rhostfs: a file system's calls as DVK messages, for the machines whose kernel knows that and nothing newer.

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
