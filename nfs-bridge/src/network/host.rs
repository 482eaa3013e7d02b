//! The host's sockets: TCP, and UDP for the port mapper and for locks.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use gangplank_service::rate_limit::peer_at;
use gangplank_service::{error_chain, rate_limited};
use log::debug;

use super::admission::RECORD_TIME;
use super::connections::Connections;
use super::stream;
use super::{MAX_DATAGRAM, MAX_DATAGRAM_CALLS};
use crate::rpc::client::{self, RpcClient, SendDatagram};
use crate::rpc::program::Endpoints;
use crate::rpc::reply::Reply;
use crate::rpc::server::Server;

/// Wait after a failed accept, which lacks descriptors or memory.
const ACCEPT_WAIT: Duration = Duration::from_millis(100);

/// Accepts connections on a thread of its own. `busy_poll` is how long to poll for the next call of
/// a client that sends one after another.
///
/// # Errors
/// The thread cannot be started.
pub fn accept(
    server: Arc<Server>,
    listener: TcpListener,
    connections: Arc<Connections>,
    busy_poll: Duration,
) -> io::Result<()> {
    thread::Builder::new()
        .name("nfs_accept".to_owned())
        .spawn(move || {
            loop {
                match listener.accept() {
                    Ok((stream, peer)) => begin(&server, stream, peer, &connections, busy_poll),
                    Err(error) => {
                        rate_limited!(warn, "cannot accept a connection: {error}");
                        thread::sleep(ACCEPT_WAIT);
                    }
                }
            }
        })?;
    Ok(())
}

/// Passes each datagram, with its sender, to `take`, on a thread of its own.
fn receive(
    socket: Arc<UdpSocket>,
    take: impl Fn(SocketAddr, &[u8]) + Send + 'static,
) -> io::Result<()> {
    thread::Builder::new()
        .name("nfs_udp".to_owned())
        .spawn(move || {
            let mut buffer = vec![0; MAX_DATAGRAM];
            loop {
                match socket.recv_from(&mut buffer) {
                    Ok((len, peer)) => take(peer, buffer.get(..len).unwrap_or_default()),
                    // A reply that reached nobody.
                    Err(error) => debug!("datagrams: {error}"),
                }
            }
        })?;
    Ok(())
}

/// Answers datagrams at once, on a thread of its own.
///
/// # Errors
/// The thread cannot be started.
pub fn answer(server: Arc<Server>, socket: UdpSocket) -> io::Result<()> {
    let socket = Arc::new(socket);
    let own = Arc::clone(&socket);
    receive(socket, move |peer, record| {
        let to = Arc::clone(&own);
        let respond = move |reply: Option<Arc<Reply>>| {
            if let Some(reply) = reply {
                let _ = to.send_to(&reply.to_bytes(), peer);
            }
        };
        let endpoints = endpoints(peer, own.local_addr());
        server.execute(endpoints, record, Box::new(respond));
    })
}

/// The sockets from which clients are called.
#[derive(Debug, Clone, Default)]
pub struct HostDatagrams(pub Vec<Arc<UdpSocket>>);

impl SendDatagram for HostDatagrams {
    fn send(&self, from: IpAddr, to: SocketAddr, datagram: Vec<u8>) {
        let sockets = || {
            self.0
                .iter()
                .filter_map(|socket| Some((socket, socket.local_addr().ok()?)))
        };
        let reaches = |local: IpAddr| {
            let is_any = local.is_unspecified() && (local.is_ipv6() || to.is_ipv4());
            is_any || local.is_ipv4() == to.is_ipv4()
        };
        let exact = sockets().find(|(_, local)| local.ip().to_canonical() == from);
        let found = exact.or_else(|| sockets().find(|(_, local)| reaches(local.ip())));
        if let Some((socket, local)) = found {
            let to = match (local, to) {
                (SocketAddr::V6(_), SocketAddr::V4(to)) => {
                    SocketAddr::from((to.ip().to_ipv6_mapped(), to.port()))
                }
                (_, to) => to,
            };
            // One that cannot be sent is lost, and sent again.
            let _ = socket.send_to(&datagram, to);
        }
    }
}

/// Takes datagrams on a thread of its own: calls for `server`, and replies for `client`.
///
/// # Errors
/// The thread cannot be started.
pub fn exchange(
    server: Arc<Server>,
    client: Arc<RpcClient>,
    socket: Arc<UdpSocket>,
) -> io::Result<()> {
    let waiting = Arc::new(AtomicUsize::new(0));
    let own = Arc::clone(&socket);
    receive(socket, move |peer, datagram| {
        if client::is_reply(datagram) {
            client.received(peer, datagram);
            return;
        }
        if waiting.load(Ordering::Relaxed) >= MAX_DATAGRAM_CALLS || !server.has_room() {
            // The client repeats it.
            return;
        }
        waiting.fetch_add(1, Ordering::Relaxed);
        let (to, counted) = (Arc::clone(&own), Arc::clone(&waiting));
        let respond = move |reply: Option<Arc<Reply>>| {
            counted.fetch_sub(1, Ordering::Relaxed);
            if let Some(reply) = reply.filter(|reply| reply.len() <= MAX_DATAGRAM) {
                let _ = to.send_to(&reply.to_bytes(), peer);
            }
        };
        let endpoints = endpoints(peer, own.local_addr());
        server.submit(endpoints, datagram.to_vec(), Box::new(respond));
    })
}

pub(super) fn endpoints(client: SocketAddr, local: io::Result<SocketAddr>) -> Endpoints {
    let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    Endpoints {
        client: client.ip(),
        client_port: client.port(),
        server: local.map_or(unknown, |local| local.ip().to_canonical()),
    }
}

fn begin(
    server: &Arc<Server>,
    stream: TcpStream,
    peer: SocketAddr,
    connections: &Arc<Connections>,
    busy_poll: Duration,
) {
    let stream = Arc::new(stream);
    let Some((id, activity)) = connections.add(&stream, peer) else {
        return;
    };
    let server = Arc::clone(server);
    let all = Arc::clone(connections);
    let begun = thread::Builder::new()
        .name("nfs_client".to_owned())
        .spawn(move || {
            let served = stream::serve(&server, &stream, peer, &activity, RECORD_TIME, busy_poll);
            if let Err(error) = served {
                rate_limited!(
                    peer = peer_at(peer.ip()),
                    debug,
                    "{peer}: {}",
                    error_chain(&error)
                );
            }
            all.remove(id);
        });
    if let Err(error) = begun {
        connections.remove(id);
        rate_limited!(
            peer = peer_at(peer.ip()),
            warn,
            "{peer}: cannot start a thread: {error}"
        );
    }
}
