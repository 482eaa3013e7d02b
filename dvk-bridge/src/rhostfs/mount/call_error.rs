//! The error of an rhostfs call.

use rustix::io::Errno;

use super::rpc::RpcError;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The server refused the call.
    #[error("the server refused {call}: {errno}")]
    Refused {
        /// The call.
        call: &'static str,
        /// The server's error.
        errno: Errno,
    },
    /// The server did not answer.
    #[error("{call} got no answer")]
    Rpc {
        /// The call.
        call: &'static str,
        /// The reason.
        #[source]
        cause: RpcError,
    },
    /// The answer is invalid.
    #[error("the server's answer to {call} is invalid: {what}")]
    Garbled {
        /// The call.
        call: &'static str,
        /// What is invalid.
        what: &'static str,
    },
    /// The server or the protocol does not support the operation.
    #[error("{what}")]
    Impossible {
        /// The operation and the reason.
        what: &'static str,
        /// The error for the caller.
        errno: Errno,
    },
}

impl CallError {
    /// The error for the caller of a file operation.
    pub(crate) fn errno(&self) -> Errno {
        match self {
            Self::Refused { errno, .. } | Self::Impossible { errno, .. } => *errno,
            Self::Rpc { cause, .. } => cause.errno(),
            Self::Garbled { .. } => Errno::IO,
        }
    }

    /// Whether the server refused with `errno`.
    pub(crate) fn is(&self, errno: Errno) -> bool {
        matches!(self, Self::Refused { errno: told, .. } if *told == errno)
    }
}
