//! rhostfs: a file system's calls as DVK messages, for the machines whose kernel knows that and nothing newer.

pub mod config;
pub mod mount;
pub mod server;
pub mod service;
