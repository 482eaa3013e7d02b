//! Guests that come, work side by side, wait for each other and go: what they are owed by one
//! daemon, without a guest kernel.

mod ending;
mod locks;
mod many;
mod rings;
mod uml;
