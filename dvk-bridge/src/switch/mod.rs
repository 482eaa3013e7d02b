//! The switch: programs of one host bind endpoints on it and reach each other's, without the kernel's module.
//!
//! One thread waits for all connections. What comes from a program is examined, stamped with who sent it, and put behind
//! what waits for whom it is for. Whoever lets much wait and does not read is dropped: nobody else waits for it, as a server
//! that did would be taken from all others. Two endpoints that keep to the rules have one exchange at a time. A program that
//! says much more to one without waiting for its answers is not read itself until that has caught up, and what more is
//! acknowledged than that can have asked for is lost.

mod admission;
mod args;
mod config;
mod event_loop;
mod program;
mod queue;
mod table;

pub use admission::{Admission, AdmissionError, Rule};
pub use args::{SwitchArgs, run};
pub use config::{SwitchConfig, SwitchError};
pub use event_loop::{Stop, Switch};
