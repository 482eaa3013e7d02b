//! A peer's host, by name or address, and the addresses that its name resolves to.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};

use parking_lot::Mutex;

/// A peer's host. The thread that connects to the peer resolves its name, and the addresses then
/// identify the peer. A connection from a stranger causes no look-up.
pub(super) struct Host {
    name: String,
    addresses: Mutex<Vec<IpAddr>>,
}

impl Host {
    /// The host `name`, which may be an address.
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            addresses: Mutex::new(name.parse().into_iter().collect()),
        }
    }

    /// The name or address from the configuration.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its addresses, resolved if it has a name. May take long, and may change from one time to the
    /// next.
    pub(super) fn resolve(&self) -> io::Result<Vec<IpAddr>> {
        if self.name.parse::<IpAddr>().is_err() {
            let found = (self.name.as_str(), 0).to_socket_addrs()?;
            let found: Vec<_> = found.map(|address| address.ip()).collect();
            if !found.is_empty() {
                *self.addresses.lock() = found;
            }
        }
        Ok(self.addresses.lock().clone())
    }

    /// Whether it has an address, or its name has ever been resolved.
    pub(super) fn is_known(&self) -> bool {
        !self.addresses.lock().is_empty()
    }

    /// Whether `address` is one of its known addresses.
    pub(super) fn is_at(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let addresses = self.addresses.lock();
        addresses.iter().any(|it| it.to_canonical() == address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_known_at_once() {
        let host = Host::new("127.0.0.7");
        assert!(host.is_known() && host.is_at("127.0.0.7".parse().unwrap()));
        assert!(host.is_at("::ffff:127.0.0.7".parse().unwrap()));
        assert!(!host.is_at("127.0.0.8".parse().unwrap()));
    }

    #[test]
    fn a_name_is_resolved_once() {
        let host = Host::new("localhost");
        let loopback = IpAddr::from([127, 0, 0, 1]);
        assert!(!host.is_known() && !host.is_at(loopback));
        assert!(host.resolve().unwrap().contains(&loopback));
        assert!(host.is_known() && host.is_at(loopback));

        let unknown = Host::new("no such host.invalid");
        assert!(unknown.resolve().is_err() && !unknown.is_known());
    }
}
