//! The server's configuration: the original's `rhostfs.cfg` with additional keys.
//!
//! ```text
//!   rhs NAME { rhs_dcid 0; rhs_ep 1; rhs_dir "/"; rhs_socket "/run/fs.sock"; rhs_carrier node; };
//!   virtqueue NAME { vq_dcid 0; vq_ep 4; vq_socket "/run/fs.sock"; vq_carrier node; };
//!   node NAME { node_id 1; };
//!   peer NAME { peer_id 0; peer_host "dvs0"; };
//! ```
//!
//! The original ignores parts of a faulty configuration. This reports them: keys that are missing
//! or repeated, words behind a forgotten `;`, invalid numbers. Each `rhs` block is a server of its
//! own, and so is each `virtqueue` block, which the original does not have.
//!
//! `tokenizer` splits bytes into tokens, `parser` tokens into lines and blocks, `entries` blocks
//! into keys and values. `check` converts them.

mod check;
mod entries;
mod fault;
mod parser;
#[cfg(test)]
mod tests;
mod tokenizer;
mod virtqueue;

use std::collections::HashMap;
use std::path::Path;

pub use fault::{ConfigError, Fault, Location};

use crate::abi::{DcId, DcLimits, Endpoint};
use crate::carrier::local::LocalConfig;
use crate::carrier::node::NodeConfig;
use crate::rhostfs::server;
use crate::tunnel;

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The rhostfs servers. There is at least one server of either kind.
    pub servers: Vec<Block>,
    /// The servers of tunnels.
    pub virtqueues: Vec<VirtqueueBlock>,
    /// This process's node, if a server uses a node.
    pub node: Option<NodeConfig>,
    /// The switch on this host, if a server uses it.
    pub local: Option<LocalConfig>,
    /// The containers of the servers and their dimensions.
    pub dcs: HashMap<DcId, DcLimits>,
    /// Oddities that are no errors.
    pub warnings: Vec<Fault>,
}

/// A server: a block `rhs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The block's name.
    pub name: String,
    /// Its container.
    pub dc: DcId,
    /// Its endpoint there.
    pub endpoint: Endpoint,
    /// Its carrier.
    pub carrier_kind: CarrierKind,
    /// What it serves.
    pub options: server::Options,
}

/// A server of tunnels: a block `virtqueue`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtqueueBlock {
    /// The block's name.
    pub name: String,
    /// Its container.
    pub dc: DcId,
    /// Its endpoints there: the first for what is urgent, the others for requests.
    pub endpoints: Vec<Endpoint>,
    /// Its carrier.
    pub carrier_kind: CarrierKind,
    /// What it serves.
    pub options: tunnel::server::Options,
}

/// How a server's endpoint is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CarrierKind {
    /// This process is a node, and its peers are reached over TCP.
    Node,
    /// Over a switch on this host.
    Local,
    /// Through the kernel's DVK, `/dev/dvk`.
    Device,
}

impl CarrierKind {
    /// Its name in a configuration.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Local => "local",
            Self::Device => "device",
        }
    }
}

impl Config {
    /// Reads `file` and the files that it includes. Servers without a daemon's socket take
    /// `socket`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`]: a file cannot be read, or the configuration has errors.
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
        // The missing file may be the reason for other errors.
        faults.extend(missing);
        faults.sort_by_key(|fault| (fault.at.file.clone(), fault.at.line));
        Err(ConfigError::Faults { faults })
    }
}
