//! Why a call of rhostfs failed.

use rustix::io::Errno;

use super::rpc::RpcError;

/// Why a call did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The server says no.
    #[error("the server refused {call}: {errno}")]
    Refused {
        /// The call.
        call: &'static str,
        /// Why.
        errno: Errno,
    },
    /// There is no answer.
    #[error("{call} got no answer")]
    Rpc {
        /// The call.
        call: &'static str,
        /// Why.
        #[source]
        cause: RpcError,
    },
    /// The answer cannot be.
    #[error("the server's answer to {call} makes no sense: {what}")]
    Garbled {
        /// The call.
        call: &'static str,
        /// What about it.
        what: &'static str,
    },
    /// The server cannot do it, or the protocol cannot say it.
    #[error("{what}")]
    Impossible {
        /// What cannot be done.
        what: &'static str,
        /// What the caller is told.
        errno: Errno,
    },
}

impl CallError {
    /// What the caller of a file operation is told.
    pub(crate) fn errno(&self) -> Errno {
        match self {
            Self::Refused { errno, .. } | Self::Impossible { errno, .. } => *errno,
            Self::Rpc { cause, .. } => cause.errno(),
            Self::Garbled { .. } => Errno::IO,
        }
    }

    /// Whether the server refused for the reason `errno`.
    pub(crate) fn is(&self, errno: Errno) -> bool {
        matches!(self, Self::Refused { errno: told, .. } if *told == errno)
    }
}
