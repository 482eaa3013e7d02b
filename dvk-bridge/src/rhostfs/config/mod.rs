//! The server's configuration: the original's `rhostfs.cfg`, with keys of our own.
//!
//! ```text
//!   rhs NAME { rhs_dcid 0; rhs_ep 1; rhs_dir "/"; rhs_socket "/run/fs.sock"; rhs_carrier node; };
//!   node NAME { node_id 1; };
//!   peer NAME { peer_id 0; peer_host "dvs0"; };
//! ```
//!
//! Where the original goes on with half of what was meant, this reports it: keys that are missing or given twice, words behind
//! a forgotten `;`, numbers that are none. Each `rhs` block is a server of its own.
//!
//! `words` makes words of bytes, `parser` lines and blocks of those, `entries` keys and values, `check` what they mean.

mod check;
mod entries;
mod fault;
mod parser;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::collections::HashMap;
use std::path::Path;

pub use fault::{ConfigError, Fault, Location};

use crate::abi::{DcId, DcLimits, Endpoint};
use crate::carrier::local::LocalConfig;
use crate::carrier::node::NodeConfig;
use crate::rhostfs::server;

/// What a configuration means.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is to be served: at least one.
    pub servers: Vec<Block>,
    /// The node that this process is, if any server is to be reached so.
    pub node: Option<NodeConfig>,
    /// The switch on this host, if any server is to be reached so.
    pub local: Option<LocalConfig>,
    /// The containers that are served in, and their dimensions.
    pub dcs: HashMap<DcId, DcLimits>,
    /// What is odd and was taken all the same.
    pub warnings: Vec<Fault>,
}

/// A server: a block `rhs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// What the operator calls it.
    pub name: String,
    /// Its container.
    pub dc: DcId,
    /// Its endpoint there.
    pub endpoint: Endpoint,
    /// How it is reached.
    pub carrier_kind: CarrierKind,
    /// What it serves, and how.
    pub options: server::Options,
}

/// How a server's endpoint is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CarrierKind {
    /// This process is a node, and its peers are reached over TCP.
    Node,
    /// By a switch on this host.
    Local,
    /// By the kernel's DVK, `/dev/dvk`.
    Device,
}

impl Config {
    /// Reads `file` and what it includes. Servers that name no daemon's socket take `socket`.
    ///
    /// # Errors
    /// [`ConfigError`]: the file cannot be read, or all that is wrong in it.
    pub fn load(file: &Path, socket: Option<&Path>) -> Result<Self, ConfigError> {
        let parser::ParsedFiles {
            lines,
            mut faults,
            missing,
        } = parser::read(file)?;
        let config = check::check(file, &lines, socket, &mut faults);
        if faults.is_empty() {
            return Ok(Self {
                warnings: missing,
                ..config
            });
        }
        // An included file that is missing may be what the rest is about.
        faults.extend(missing);
        faults.sort_by_key(|fault| (fault.at.file.clone(), fault.at.line));
        Err(ConfigError::Faults { faults })
    }
}
