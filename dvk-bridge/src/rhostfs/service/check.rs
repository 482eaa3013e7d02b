//! What `--check` prints: what would be served.

use std::fmt;
use std::io::{self, Write};

use serde_json::{Value, json};

use super::super::config::{Config, Fault};
use super::super::tunnels;
use super::{ServeError, described};

/// Prints what would be served.
pub(super) fn tell(config: &Config) -> Result<(), ServeError> {
    for block in &config.servers {
        print(&described(block))?;
    }
    for block in &config.virtqueues {
        print(&tunnels::described(block))?;
    }
    Ok(())
}

/// Prints a line.
pub(super) fn print(line: &impl fmt::Display) -> Result<(), ServeError> {
    let printed = writeln!(io::stdout(), "{line}");
    printed.map_err(|source| ServeError::System {
        what: "print what would be served",
        source,
    })
}

/// What would be served, with names that stay.
pub(super) fn plan(config: &Config) -> Value {
    let servers = config.servers.iter().map(|block| {
        json!({
            "name": block.name,
            "dc": block.dc.raw(),
            "endpoint": block.endpoint.raw(),
            "root": block.options.root,
            "socket": block.options.socket.to_string_lossy(),
            "carrier": block.carrier_kind.name(),
        })
    });
    let virtqueues = config.virtqueues.iter().map(tunnels::plan);
    json!({
        "valid": true,
        "servers": servers.collect::<Vec<_>>(),
        "virtqueues": virtqueues.collect::<Vec<_>>(),
        "node": config.node.as_ref().map(|node| node.id.raw()),
        "switch": config.local.as_ref().map(|local| local.socket.to_string_lossy()),
        "warnings": config.warnings.iter().map(fault).collect::<Vec<_>>(),
    })
}

/// What is wrong in a configuration, and where.
pub(super) fn fault(fault: &Fault) -> Value {
    json!({
        "file": fault.at.file.to_string_lossy(),
        "line": fault.at.line,
        "token": fault.token,
        "what": fault.what,
    })
}
