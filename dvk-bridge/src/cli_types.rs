//! The argument types of several command lines.

use std::fmt;
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

/// Endpoints that follow one another; at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointRange {
    first: Endpoint,
    last: Endpoint,
}

impl EndpointRange {
    /// One endpoint.
    #[must_use]
    pub const fn of(endpoint: Endpoint) -> Self {
        Self {
            first: endpoint,
            last: endpoint,
        }
    }

    /// The first.
    #[must_use]
    pub const fn first(&self) -> Endpoint {
        self.first
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Endpoint> {
        (self.first.raw()..=self.last.raw()).map(Endpoint::from_raw)
    }
}

impl FromStr for EndpointRange {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, count) = text
            .split_once(':')
            .ok_or("expected the first endpoint and a count with a colon between them")?;
        let first = parse_endpoint(first)?;
        let count: u8 = count.parse().map_err(|_| "the count is not a number")?;
        let behind = count.checked_sub(1).ok_or("the count is at least one")?;
        let last = Endpoint::from_raw(first.raw() + i32::from(behind));
        match DcLimits::USUAL.contains(last) {
            true => Ok(Self { first, last }),
            false => Err("the endpoints are not all in a container"),
        }
    }
}

impl fmt::Display for EndpointRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "endpoint {}", self.first),
            false => write!(f, "endpoints {} to {}", self.first, self.last),
        }
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
