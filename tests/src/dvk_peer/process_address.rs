//! The address of a process: its container and endpoint.

use super::layout::{Field, Frame};

/// A container and an endpoint of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessAddress {
    /// The container.
    pub dc: i32,
    /// The endpoint.
    pub endpoint: i32,
}

/// An endpoint of container 0.
impl From<i32> for ProcessAddress {
    fn from(endpoint: i32) -> Self {
        Self { dc: 0, endpoint }
    }
}

/// A container and an endpoint.
impl From<(i32, i32)> for ProcessAddress {
    fn from((dc, endpoint): (i32, i32)) -> Self {
        Self { dc, endpoint }
    }
}

impl ProcessAddress {
    /// The address that proxies write for no process.
    pub(super) fn nobodys() -> Self {
        Self {
            dc: -1,
            endpoint: 27_342,
        }
    }

    /// The source of `frame`.
    pub(super) fn source(frame: &Frame) -> Self {
        Self {
            dc: frame.get(Field::Dc),
            endpoint: frame.get(Field::Source),
        }
    }

    /// The destination of `frame`.
    pub(super) fn destination(frame: &Frame) -> Self {
        Self {
            dc: frame.get(Field::Dc),
            endpoint: frame.get(Field::Destination),
        }
    }
}
