//! Why an endpoint's operation failed.

use std::fmt;
use std::time::Duration;

use crate::abi::{Code, DcId, Endpoint};

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Binding an endpoint.
    Bind {
        /// Of this container.
        dc: DcId,
        /// This one.
        endpoint: Endpoint,
    },
    /// Waiting for somebody.
    Receive,
    /// Answering a request.
    Reply {
        /// Whose.
        client: Endpoint,
    },
    /// Sending a message.
    Send {
        /// To whom.
        to: Endpoint,
    },
    /// Asking and waiting for the answer.
    SendRec {
        /// Whom.
        to: Endpoint,
    },
    /// Notifying.
    Notify {
        /// Whom.
        to: Endpoint,
    },
    /// Copying from a client's memory.
    CopyFrom {
        /// Whose.
        client: Endpoint,
        /// Where.
        address: u32,
        /// How much.
        bytes: usize,
    },
    /// Copying to a client's memory.
    CopyTo {
        /// Whose.
        client: Endpoint,
        /// Where.
        address: u32,
        /// How much.
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
    /// DVK's rules, or the partner, say no.
    #[error("cannot {operation}: {code}")]
    Refused {
        /// What was being done.
        operation: Operation,
        /// Why not.
        code: Code,
    },
    /// It took too long.
    #[error("cannot {operation}: nothing came within {limit:?}")]
    TimedOut {
        /// What was being done.
        operation: Operation,
        /// How long it might have taken.
        limit: Duration,
    },
    /// There is no connection to the partner, or it was lost meanwhile.
    #[error("cannot {operation}: there is no connection to its node")]
    NotConnected {
        /// What was being done.
        operation: Operation,
    },
    /// The endpoint was given up.
    #[error("cannot {operation}: the endpoint is not bound any more")]
    Unbound {
        /// What was being done.
        operation: Operation,
    },
}

impl EndpointError {
    /// The code that a DVK has for it.
    pub fn code(&self) -> Code {
        match self {
            Self::Refused { code, .. } => *code,
            Self::TimedOut { .. } => Code::EDVSTIMEDOUT,
            Self::NotConnected { .. } => Code::EDVSNOTCONN,
            Self::Unbound { .. } => Code::EDVSNOTBIND,
        }
    }

    /// What was being done.
    pub fn operation(&self) -> Operation {
        match self {
            Self::Refused { operation, .. }
            | Self::TimedOut { operation, .. }
            | Self::NotConnected { operation }
            | Self::Unbound { operation } => *operation,
        }
    }
}
