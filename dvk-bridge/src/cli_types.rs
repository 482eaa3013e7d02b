//! The argument types of several command lines.

use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;

use crate::abi::{DcId, DcLimits, Endpoint, Generation, NodeId};

/// A node and its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerName {
    /// Its host, by name or address.
    pub host: String,
    /// Its id.
    pub node: NodeId,
}

impl FromStr for PeerName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, id) = text
            .rsplit_once(':')
            .ok_or("expected a host and a node's id with a colon between them")?;
        if host.is_empty() {
            return Err("the host before the colon is missing");
        }
        Ok(Self {
            host: host.to_owned(),
            node: parse_node(id)?,
        })
    }
}

/// The first ports of both nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// This node's.
    pub own: u16,
    /// The server's.
    pub peer: u16,
}

impl FromStr for Ports {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let port = |text: &str| text.parse().map_err(|_| "not a port");
        let (own, peer) = text.split_once(':').unwrap_or((text, text));
        Ok(Self {
            own: port(own)?,
            peer: port(peer)?,
        })
    }
}

/// The generations by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GenerationName {
    /// Of 2022: messages of 36 bytes, headers of 120
    Current,
    /// Of 2019 to 2022: messages of 76 bytes, headers of 132
    Legacy,
    /// Of early 2019: messages of 36 bytes, headers of 92
    Early,
}

impl From<GenerationName> for Generation {
    fn from(name: GenerationName) -> Self {
        match name {
            GenerationName::Current => Self::Current,
            GenerationName::Legacy => Self::Legacy,
            GenerationName::Early => Self::Early,
        }
    }
}

pub(crate) fn parse_node(text: &str) -> Result<NodeId, &'static str> {
    text.parse()
        .ok()
        .and_then(NodeId::new)
        .ok_or("a node's id is a number from 0 to 31")
}

pub(crate) fn parse_dc(text: &str) -> Result<DcId, &'static str> {
    text.parse()
        .ok()
        .and_then(DcId::new)
        .ok_or("a container's id is a number from 0 to 31")
}

pub(crate) fn parse_endpoint(text: &str) -> Result<Endpoint, &'static str> {
    text.parse()
        .ok()
        .map(Endpoint::from_raw)
        .filter(|endpoint| DcLimits::USUAL.contains(*endpoint))
        .ok_or("the number is not an endpoint of a container")
}

pub(crate) fn parse_seconds(text: &str) -> Result<Duration, &'static str> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|duration| *duration <= Duration::from_secs(1_000_000))
        .ok_or("a number of seconds, up to a million")
}
