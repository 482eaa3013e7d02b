//! Installs a list of permitted system calls (seccomp(2)).

pub mod common;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod filter;
#[cfg(all(
    feature = "testing",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
pub mod testing;

use std::fmt;
use std::str::FromStr;

use libc::c_long;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub use filter::{BpfProgram, SeccompAction, install, programs};

/// The action on a system call outside the permitted list (`--seccomp`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// The kernel kills the process.
    #[default]
    Kill,
    /// The kernel logs the call to the audit log and permits it.
    Log,
    /// The kernel raises `SIGSYS`.
    Trap,
    /// No list is installed.
    None,
}

impl fmt::Display for Seccomp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill",
            Self::Log => "log",
            Self::Trap => "trap",
            Self::None => "none",
        })
    }
}

impl FromStr for Seccomp {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "kill" => Ok(Self::Kill),
            "log" => Ok(Self::Log),
            "trap" => Ok(Self::Trap),
            "none" => Ok(Self::None),
            _ => Err("expected kill, log, trap or none"),
        }
    }
}

/// The system calls that a process may make.
#[derive(Clone, Debug, Default)]
pub struct CallList {
    /// The calls that it may make with any arguments.
    pub allowed: Vec<&'static [c_long]>,
    /// The calls that it may make with some arguments only. If a call has several rows, any of them
    /// permits it.
    pub conditional: Vec<Conditional>,
    /// The calls that fail with an error number instead of the operator's action.
    pub refused: Vec<(c_long, i32)>,
}

/// Permits a call if one argument has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditional {
    /// The system call.
    pub call: c_long,
    /// The argument's position, from 0.
    pub argument: u8,
    /// How much of the argument the kernel uses.
    pub width: Width,
    /// The bits of the argument to compare.
    pub mask: u64,
    /// The value that these bits must have.
    pub value: u64,
}

impl Conditional {
    /// Permits `call` if the argument, an `int`, is `value`.
    #[must_use]
    pub fn int(call: c_long, argument: u8, value: i32) -> Self {
        Self {
            call,
            argument,
            width: Width::Int,
            mask: u64::MAX,
            value: u64::from(value.cast_unsigned()),
        }
    }

    /// Permits `call` if the bits of `mask` in the argument, a `long` or a pointer, are `value`.
    #[must_use]
    pub fn long(call: c_long, argument: u8, mask: u64, value: u64) -> Self {
        Self {
            call,
            argument,
            width: Width::Long,
            mask,
            value,
        }
    }
}

/// The size of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// `int`: the upper half of the register is undefined.
    Int,
    /// `long` or a pointer.
    Long,
}

/// Says in the log that the process may make any system call: there are lists for x86_64 and
/// aarch64 only.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn install(action: Seccomp, _: &CallList) -> Result<(), crate::Error> {
    if action != Seccomp::None {
        log::warn!(
            "--seccomp has no effect on this architecture: there is no list of system calls for it"
        );
    }
    Ok(())
}
