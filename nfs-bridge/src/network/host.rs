//! The host's sockets: TCP, and UDP for the port mapper and for locks.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use gangplank_service::{error_chain, rate_limited};
use log::debug;

use super::admission::{RECORD_TIME, REPLY_TIME};
use super::connections::{Activity, Connections};
use super::{MAX_DATAGRAM, MAX_DATAGRAM_CALLS, MAX_RECORD};
use crate::rpc::client::{self, RpcClient, SendDatagram};
use crate::rpc::program::Endpoints;
use crate::rpc::record::{self, Assembler};
use crate::rpc::reply_budget::Reservation;
use crate::rpc::server::Server;

/// Wait after a failed accept, which lacks descriptors or memory.
const ACCEPT_WAIT: Duration = Duration::from_millis(100);

/// Bytes that are read at once.
const READ_SIZE: usize = 64 << 10;

/// The reply to a call, if it has one.
type Reply = Option<(Arc<Vec<u8>>, Reservation)>;

/// Accepts connections on a thread of its own.
///
/// # Errors
/// The thread cannot be started.
pub fn accept(
    server: Arc<Server>,
    listener: TcpListener,
    connections: Arc<Connections>,
) -> io::Result<()> {
    thread::Builder::new()
        .name("nfs_accept".to_owned())
        .spawn(move || {
            loop {
                match listener.accept() {
                    Ok((stream, peer)) => begin(&server, stream, peer, &connections),
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
        let respond = move |reply: Option<Arc<Vec<u8>>>| {
            if let Some(reply) = reply {
                let _ = to.send_to(&reply, peer);
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
        let respond = move |reply: Option<Arc<Vec<u8>>>| {
            counted.fetch_sub(1, Ordering::Relaxed);
            if let Some(reply) = reply.filter(|reply| reply.len() <= MAX_DATAGRAM) {
                let _ = to.send_to(&reply, peer);
            }
        };
        let endpoints = endpoints(peer, own.local_addr());
        server.submit(endpoints, datagram.to_vec(), Box::new(respond));
    })
}

fn endpoints(client: SocketAddr, local: io::Result<SocketAddr>) -> Endpoints {
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
            if let Err(error) = serve(&server, &stream, peer, &activity, RECORD_TIME) {
                rate_limited!(debug, "{peer}: {}", error_chain(&error));
            }
            all.remove(id);
        });
    if let Err(error) = begun {
        connections.remove(id);
        rate_limited!(warn, "{peer}: cannot start a thread: {error}");
    }
}

/// Serves a connection until the client closes it, or breaks the rules. Another thread writes the
/// replies, so that a client that does not take its replies holds up nobody else.
fn serve(
    server: &Server,
    stream: &Arc<TcpStream>,
    client: SocketAddr,
    activity: &Arc<Activity>,
    record_time: Duration,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(REPLY_TIME))?;
    let (replies, queue) = mpsc::channel();
    let (writing, written) = (Arc::clone(stream), Arc::clone(activity));
    let writer = thread::Builder::new()
        .name("nfs_reply".to_owned())
        .spawn(move || write_replies(&writing, &queue, &written))?;
    let endpoints = endpoints(client, stream.local_addr());
    let served = read_calls(server, stream, endpoints, activity, &replies, record_time);
    // Replies that are still to come have nobody to receive them.
    let _ = stream.shutdown(Shutdown::Both);
    drop(replies);
    // The connection counts until its calls have run: otherwise one client could have any number of
    // them wait, with a connection after the other.
    let _ = writer.join();
    served
}

fn read_calls(
    server: &Server,
    mut stream: &TcpStream,
    endpoints: Endpoints,
    activity: &Activity,
    replies: &Sender<Reply>,
    record_time: Duration,
) -> io::Result<()> {
    let account = server.reply_account();
    let mut assembler = Assembler::new(MAX_RECORD);
    let mut buffer = vec![0; READ_SIZE];
    let mut has_limit = false;
    loop {
        let len = match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(late(record_time)),
            Err(error) => return Err(error),
        };
        let mut bytes = buffer.get(..len).unwrap_or_default();
        while let Some(record) = assembler.take(&mut bytes).map_err(io::Error::other)? {
            activity.begin(&account);
            let mut reserved = account.reserve(server.largest_reply(&record));
            let to = replies.clone();
            // The thread that writes ends with the last of its senders, and not before.
            let respond = move |reply: Option<Arc<Vec<u8>>>| {
                let reply = reply.map(|reply| {
                    reserved.set(reply.len());
                    (reply, reserved)
                });
                drop(to.send(reply));
            };
            server.submit(endpoints, record, Box::new(respond));
        }
        // Between records a client may be silent, as long as nobody else needs its place.
        let left = match activity.received(assembler.has_part()) {
            None => None,
            Some(begun) => match record_time.checked_sub(begun.elapsed()) {
                None | Some(Duration::ZERO) => return Err(late(record_time)),
                left => left,
            },
        };
        if left.is_some() || has_limit {
            stream.set_read_timeout(left)?;
            has_limit = left.is_some();
        }
    }
}

fn late(record_time: Duration) -> io::Error {
    let message = format!("a record was not whole within {record_time:?}");
    io::Error::new(ErrorKind::TimedOut, message)
}

/// Writes replies until no call can bring another.
fn write_replies(mut stream: &TcpStream, queue: &Receiver<Reply>, activity: &Activity) {
    for reply in queue {
        if let Some((reply, _reserved)) = reply {
            let written = stream
                .write_all(&record::header(&reply))
                .and_then(|()| stream.write_all(&reply));
            if written.is_err() {
                // What follows a part of a reply would be misread.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        activity.finish();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_client_that_does_not_complete_a_record_is_disconnected_and_a_silent_one_is_not() {
        let limit = Duration::from_millis(300);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = || {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (stream, peer) = listener.accept().unwrap();
            let (stream, connections) = (Arc::new(stream), Connections::default());
            let (_, activity) = connections.add(&stream, peer).unwrap();
            let server = Server::new(Vec::new());
            let ended = thread::spawn(move || {
                let served = serve(&server, &stream, peer, &activity, limit);
                (served, activity)
            });
            (client, ended)
        };
        let (silent, silent_ended) = connected();
        let (mut slow, slow_ended) = connected();
        let started = Instant::now();
        // A record of 100 bytes, each of which comes in time.
        slow.write_all(&(100_u32 | 1 << 31).to_be_bytes()).unwrap();
        while !slow_ended.is_finished() {
            let _ = slow.write_all(&[0]);
            thread::sleep(limit / 20);
            assert!(started.elapsed() < limit * 4, "not within {limit:?}");
        }
        let (served, _) = slow_ended.join().unwrap();
        assert_eq!(served.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(!silent_ended.is_finished());
        drop(silent);
        silent_ended.join().unwrap().0.unwrap();
    }
}
