//! Why a process cannot be confined.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// A mechanism that fails.
#[derive(Debug, Error)]
pub enum Error {
    /// A capability set cannot be read or changed.
    #[error("cannot reduce the {set} capabilities")]
    Capabilities {
        /// The capability set.
        set: &'static str,
        /// The cause.
        source: caps::errors::CapsError,
    },
    /// `no_new_privs` cannot be set.
    #[error("cannot set no_new_privs")]
    NoNewPrivileges(#[source] io::Error),
    /// A file or directory that the process is to keep cannot be opened.
    #[error("cannot open {}, which the program needs when it is confined", path.display())]
    Keep {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The kernel has Landlock and refuses the restriction.
    #[error("cannot restrict the process by Landlock")]
    Landlock(#[source] landlock::RulesetError),
    /// The list of system calls does not compile.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[error("cannot compile the list of system calls")]
    SeccompList(#[source] seccompiler::BackendError),
    /// The kernel refuses the list of system calls.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[error(
        "cannot install the list of system calls: pass --seccomp=none if the kernel has no seccomp"
    )]
    SeccompInstall(#[source] seccompiler::Error),
}
