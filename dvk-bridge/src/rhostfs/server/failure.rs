//! The errors of a call and their errno values.
//!
//! Clients pass the number on to their kernel, so it must be one of Linux on i386. The numbers 1 to
//! 133 are the same on every architecture of a daemon. Any other number, including DVK's codes,
//! becomes EIO.

use gangplank_driver as driver;
use rustix::io::Errno;

use crate::abi::Code;
use crate::endpoint::EndpointError;

/// The largest errno of Linux on i386 (`EHWPOISON`, include/uapi/asm-generic/errno.h).
const LARGEST_ERRNO: i32 = 133;

/// The result of a step of a call.
pub(super) type Result<T> = std::result::Result<T, Failure>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The request is invalid or not permitted.
    #[error("{0}")]
    Refused(Errno),
    /// The daemon has refused, or has not answered.
    #[error("asking the daemon")]
    Daemon(#[from] driver::Error),
    /// The daemon is not connected.
    #[error("the daemon is not available")]
    NoDaemon,
    /// A copy from or to the client's memory failed.
    #[error("copying {what} {direction} the client's memory")]
    Copy {
        /// The data.
        what: &'static str,
        /// "from" or "to".
        direction: &'static str,
        /// The error of the copy.
        #[source]
        source: EndpointError,
    },
    /// The client has gone, and nobody waits for the answer.
    #[error("the client has gone")]
    ClientGone,
}

impl Failure {
    /// The errno for the client, positive.
    pub(super) fn errno(&self) -> i32 {
        let errno = match self {
            Self::Refused(errno) => *errno,
            Self::Daemon(driver::Error::NoMemory { .. }) => Errno::NOMEM,
            Self::Daemon(error) => error.errno().unwrap_or(Errno::IO),
            Self::NoDaemon | Self::ClientGone => Errno::IO,
            Self::Copy { source, .. } => copy_errno(source),
        };
        match errno.raw_os_error() {
            number @ 1..=LARGEST_ERRNO => number,
            _ => Errno::IO.raw_os_error(),
        }
    }

    /// Whether the daemon answered with `errno`.
    pub(super) fn is(&self, errno: Errno) -> bool {
        match self {
            Self::Refused(refused) => *refused == errno,
            Self::Daemon(error) => error.errno() == Some(errno),
            _ => false,
        }
    }

    /// Whether the connection to the daemon is lost.
    pub(super) const fn is_daemon_lost(&self) -> bool {
        match self {
            Self::Daemon(error) => error.is_fatal(),
            _ => false,
        }
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

/// The errno of a failed copy: EFAULT if the client's kernel or node reports a bad address, EIO
/// otherwise.
fn copy_errno(error: &EndpointError) -> Errno {
    match error {
        EndpointError::Refused { code, .. } if *code == Code::EFAULT => Errno::FAULT,
        _ => Errno::IO,
    }
}

#[cfg(test)]
mod tests {
    use gangplank_fuse::Opcode;

    use super::*;
    use crate::abi::Endpoint;
    use crate::endpoint::Operation;

    fn daemon(errno: i32) -> Failure {
        Failure::Daemon(driver::Error::Errno {
            opcode: Opcode::Getattr,
            errno: Errno::from_raw_os_error(errno),
        })
    }

    #[test]
    fn every_number_a_daemon_can_answer_is_one_of_i386_or_eio() {
        for errno in 1..=511 {
            let expected = if errno <= 133 { errno } else { 5 };
            assert_eq!(daemon(errno).errno(), expected);
        }
    }

    #[test]
    fn no_code_of_dvk_reaches_the_client() {
        let operation = Operation::CopyFrom {
            client: Endpoint::from_raw(10),
            address: 0x1000,
            bytes: 3,
        };
        for number in 1..=512 {
            let failure = Failure::Copy {
                what: "a name",
                direction: "from",
                source: EndpointError::Refused {
                    operation,
                    code: Code::new(number),
                },
            };
            let expected = if number == 14 { 14 } else { 5 };
            assert_eq!(failure.errno(), expected, "{number}");
        }
    }

    #[test]
    fn without_a_daemon_the_error_is_eio() {
        assert_eq!(Failure::NoDaemon.errno(), 5);
        assert_eq!(Failure::Refused(Errno::NOTDIR).errno(), 20);
        assert!(daemon(2).is(Errno::NOENT));
        assert!(!daemon(2).is_daemon_lost());
    }
}
