//! `gangplank-frontend fs`, by its command line.

mod client;
mod commands;
mod files;
mod replaced;
mod resume;
mod shell;
mod snapshot;
mod trees;
