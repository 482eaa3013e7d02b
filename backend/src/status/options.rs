//! Where a daemon tells its status.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// The options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `--control`: the path of the control socket.
    pub control: Option<PathBuf>,
    /// `--metrics`.
    pub metrics: Option<MetricsAddress>,
}

/// Where metrics are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// On a Unix socket, by HTTP.
    Path(PathBuf),
    /// On a TCP port.
    Tcp(SocketAddr),
}

impl MetricsAddress {
    /// Whether only processes of this host reach it.
    #[must_use]
    pub const fn is_local(&self) -> bool {
        match self {
            Self::Path(_) => true,
            Self::Tcp(address) => address.ip().is_loopback(),
        }
    }
}

impl FromStr for MetricsAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        if text.contains('/') {
            return Ok(Self::Path(text.into()));
        }
        text.parse().map(Self::Tcp).map_err(
            |_| "expected an address such as 127.0.0.1:9100 or [::1]:9100, or a path with a slash",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_paths_are_told_apart() {
        let parse = |text: &str| text.parse::<MetricsAddress>();
        assert!(matches!(parse("/run/m.sock"), Ok(MetricsAddress::Path(_))));
        assert!(matches!(parse("./m"), Ok(MetricsAddress::Path(_))));
        for (text, is_local) in [
            ("127.0.0.1:9100", true),
            ("127.9.0.1:1", true),
            ("[::1]:9100", true),
            ("0.0.0.0:9100", false),
            ("[::]:9100", false),
            ("192.0.2.1:80", false),
        ] {
            assert_eq!(parse(text).unwrap().is_local(), is_local, "{text}");
        }
        for text in ["localhost:9100", "9100", ":9100", "127.0.0.1", ""] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
