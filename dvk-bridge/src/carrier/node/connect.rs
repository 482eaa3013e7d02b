//! Connects and accepts, with time limits.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::sockopt::{
    set_socket_keepalive, set_socket_reuseaddr, set_tcp_keepcnt, set_tcp_keepidle,
    set_tcp_keepintvl, set_tcp_nodelay, socket_error,
};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, accept_with, bind, connect, getpeername, listen,
    socket_with,
};

use super::config::{NodeConfig, NodeError, PeerConfig};
use super::host::Host;
use crate::carrier::stream::poll_for;

/// TCP keepalive reports a dead host after about a minute (30 s + 3 * 10 s), although proxies may
/// be silent for ever.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// Listens for `peer`.
pub(super) fn listen_for(config: &NodeConfig, peer: &PeerConfig) -> Result<OwnedFd, NodeError> {
    let port = config.port_base.saturating_add(offset(peer.id));
    let address = SocketAddr::new(config.address, port);
    let try_listen = || -> Result<OwnedFd, Errno> {
        let socket = tcp(address.ip())?;
        // Connections of an earlier run of this node do not block the port.
        set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &address)?;
        listen(&socket, 1)?;
        Ok(socket)
    };
    try_listen().map_err(|error| NodeError::Listen {
        peer: peer.id,
        address: config.address,
        port,
        source: error.into(),
    })
}

fn offset(id: crate::abi::NodeId) -> u16 {
    u16::try_from(id.raw()).unwrap_or(0) // at most 31
}

/// Accepts a connection at the port of the peer at `host`, if it comes from the peer's address.
pub(super) fn accept_from(listener: &OwnedFd, host: &Host) -> io::Result<(OwnedFd, SocketAddr)> {
    let socket = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let address = getpeername(&socket)?
        .ok_or(Errno::NOTCONN)
        .and_then(SocketAddr::try_from)?;
    if !host.is_at(address.ip()) {
        let text = format!(
            "the peer at {} is not {}, which the port is for",
            address.ip(),
            host.name()
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    prepare(&socket)?;
    Ok((socket, address))
}

/// Connects to `peer` at `host`, until the configured time limit or until `stop` is readable.
pub(super) fn connect_to(
    config: &NodeConfig,
    peer: &PeerConfig,
    host: &Host,
    stop: &OwnedFd,
) -> io::Result<OwnedFd> {
    let port = peer.port_base.saturating_add(offset(config.id));
    let addresses = host.resolve()?;
    let deadline = Instant::now() + config.limits.connect;
    let mut last = io::Error::new(
        io::ErrorKind::NotFound,
        "the host has no address of this node's family",
    );
    for address in addresses {
        // Connections come from the configured address, so both must be of the same family.
        if address.is_ipv4() != config.address.is_ipv4() {
            continue;
        }
        let address = SocketAddr::new(address, port);
        match connect_once(config.address, address, deadline, stop) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

fn connect_once(
    from: IpAddr,
    to: SocketAddr,
    deadline: Instant,
    stop: &OwnedFd,
) -> Result<OwnedFd, Errno> {
    let socket = tcp(from)?;
    bind(&socket, &SocketAddr::new(from, 0))?;
    match connect(&socket, &to) {
        Ok(()) => {}
        Err(Errno::INPROGRESS) => {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut ready = [
                PollFd::new(&socket, PollFlags::OUT),
                PollFd::new(stop, PollFlags::IN),
            ];
            poll_for(&mut ready, left)?;
            let [connected, _] = &ready;
            if connected.revents().is_empty() {
                return Err(Errno::TIMEDOUT);
            }
            socket_error(&socket)??;
        }
        Err(error) => return Err(error),
    }
    prepare(&socket)?;
    Ok(socket)
}

fn tcp(address: IpAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(family, SocketType::STREAM, flags, None)
}

fn prepare(socket: impl AsFd) -> Result<(), Errno> {
    // Commands are short, and the peer waits for them.
    set_tcp_nodelay(&socket, true)?;
    set_tcp_keepidle(&socket, KEEPALIVE_IDLE)?;
    set_tcp_keepintvl(&socket, KEEPALIVE_INTERVAL)?;
    set_tcp_keepcnt(&socket, KEEPALIVE_PROBES)?;
    set_socket_keepalive(&socket, true)
}
