//! DVK's kernel module, emulated by a test process for the real 32-bit program.
//!
//! A seccomp filter diverts the program's calls of `/dev/dvk` to the test. The test answers them by
//! the rules of the module ([`EmulatedDevice`]), with clients in the test. The program's
//! structures, addresses and threads are its own.

mod calls;
mod client;
mod emulated;
mod launch;

pub use client::Clients;
pub use emulated::EmulatedDevice;
pub use launch::{LAUNCH, Program, become_program};
