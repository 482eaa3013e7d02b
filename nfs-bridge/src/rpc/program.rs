//! What a program of the server is: a number, a version, and procedures.

use std::net::IpAddr;

use super::message::Credentials;
use super::reply::Reply;
use crate::xdr::{DecodeError, Reader};

/// Bytes of results without file data: attributes, names and the targets of links.
pub const SMALL_RESULTS: usize = 8192;

/// The two addresses of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoints {
    /// The client's.
    pub client: IpAddr,
    /// The client's port.
    pub client_port: u16,
    /// The server's, as the client knows it; unspecified if the system does not tell.
    pub server: IpAddr,
}

/// A caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller<'a> {
    /// The address that it called from.
    pub address: IpAddr,
    /// The port that it called from.
    pub port: u16,
    /// The address that it called, or an unspecified one.
    pub server: IpAddr,
    /// Who it says it is.
    pub credentials: &'a Credentials,
}

/// Why a procedure has no results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallError {
    /// The program has no such procedure.
    NoProcedure,
    /// The arguments are malformed.
    Garbage(DecodeError),
}

impl From<DecodeError> for CallError {
    fn from(error: DecodeError) -> Self {
        Self::Garbage(error)
    }
}

/// A program.
pub trait Program: Send + Sync {
    /// Its number (RFC 5531, 8.1).
    fn number(&self) -> u32;

    /// Its only version.
    fn version(&self) -> u32;

    /// Whether a second execution of `procedure` would not do the same, so that a repeated call
    /// gets the first one's reply.
    fn changes(&self, procedure: u32) -> bool {
        let _ = procedure;
        false
    }

    /// Whether `results` tell the caller to try again, so that a repetition is executed.
    fn is_postponed(&self, results: &[u8]) -> bool {
        let _ = results;
        false
    }

    /// Bytes of the largest results that `procedure` may have with these arguments.
    fn largest_results(&self, procedure: u32, args: Reader<'_>) -> usize {
        let _ = (procedure, args);
        SMALL_RESULTS
    }

    /// Executes a procedure and appends its results to `reply`.
    ///
    /// # Errors
    /// [`CallError`].
    fn call(
        &self,
        caller: Caller<'_>,
        procedure: u32,
        args: Reader<'_>,
        reply: &mut Reply,
    ) -> Result<(), CallError>;
}
