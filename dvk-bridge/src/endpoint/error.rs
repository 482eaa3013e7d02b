//! Why an endpoint's operation failed.

use std::fmt;
use std::time::Duration;

use crate::abi::{Code, DcId, Endpoint};

/// The operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Bind an endpoint.
    Bind {
        /// Its container.
        dc: DcId,
        /// Its number.
        endpoint: Endpoint,
    },
    /// Receive.
    Receive,
    /// Answer a request.
    Reply {
        /// The client.
        client: Endpoint,
    },
    /// Send a message.
    Send {
        /// The destination.
        to: Endpoint,
    },
    /// Send a request and wait for the answer.
    SendRec {
        /// The destination.
        to: Endpoint,
    },
    /// Notify an endpoint.
    Notify {
        /// The destination.
        to: Endpoint,
    },
    /// Copy from a client's memory.
    CopyFrom {
        /// The client.
        client: Endpoint,
        /// The address in its memory.
        address: u32,
        /// Number of bytes.
        bytes: usize,
    },
    /// Copy to a client's memory.
    CopyTo {
        /// The client.
        client: Endpoint,
        /// The address in its memory.
        address: u32,
        /// Number of bytes.
        bytes: usize,
    },
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind { dc, endpoint } => write!(f, "bind endpoint {endpoint} of container {dc}"),
            Self::Receive => f.write_str("receive"),
            Self::Reply { client } => write!(f, "answer {client}"),
            Self::Send { to } => write!(f, "send to {to}"),
            Self::SendRec { to } => write!(f, "ask {to}"),
            Self::Notify { to } => write!(f, "notify {to}"),
            Self::CopyFrom {
                client,
                address,
                bytes,
            } => write!(f, "copy {bytes} bytes from {address:#x} of {client}"),
            Self::CopyTo {
                client,
                address,
                bytes,
            } => write!(f, "copy {bytes} bytes to {address:#x} of {client}"),
        }
    }
}

/// Why an endpoint's operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// DVK's rules forbid it, or the partner refused.
    #[error("cannot {operation}: {code}")]
    Refused {
        /// The operation.
        operation: Operation,
        /// The reason.
        code: Code,
    },
    /// The time limit has passed.
    #[error("cannot {operation}: no answer within {limit:?}")]
    TimedOut {
        /// The operation.
        operation: Operation,
        /// The time limit.
        limit: Duration,
    },
    /// The partner is not connected, or the connection was lost.
    #[error("cannot {operation}: its node is not connected")]
    NotConnected {
        /// The operation.
        operation: Operation,
    },
    /// The endpoint was released.
    #[error("cannot {operation}: the endpoint is no longer bound")]
    Unbound {
        /// The operation.
        operation: Operation,
    },
}

impl EndpointError {
    /// The code that a DVK returns for this error.
    pub fn code(&self) -> Code {
        match self {
            Self::Refused { code, .. } => *code,
            Self::TimedOut { .. } => Code::EDVSTIMEDOUT,
            Self::NotConnected { .. } => Code::EDVSNOTCONN,
            Self::Unbound { .. } => Code::EDVSNOTBIND,
        }
    }

    /// The operation that failed.
    pub fn operation(&self) -> Operation {
        match self {
            Self::Refused { operation, .. }
            | Self::TimedOut { operation, .. }
            | Self::NotConnected { operation }
            | Self::Unbound { operation } => *operation,
        }
    }
}
