//! The switch: connects programs of one host by endpoints, without the kernel's module.
//!
//! One thread waits for all connections. It checks the commands of a program, fills in their
//! sender, and queues them for the program that has the destination. A program that lets too much
//! wait and does not read is dropped. Nobody waits for it, since a server that did would fail all
//! its other clients. Two endpoints that follow the rules have one exchange at a time. A program
//! that sends much more to one partner without waiting for its answers is not read until the
//! partner has caught up. Acknowledgements beyond what the partner can have requested are dropped.

mod args;
mod bind_permissions;
mod bindings;
mod config;
mod event_loop;
mod program;
mod queue;

pub use args::{SwitchArgs, run};
pub use bind_permissions::{Admission, AdmissionError, Rule};
pub use config::{SwitchConfig, SwitchError};
pub use event_loop::{Stop, Switch};
