//! The host's sockets: TCP, and UDP for the port mapper.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use gangplank_service::{error_chain, rate_limited};
use log::debug;
use parking_lot::{Condvar, Mutex};

use super::{MAX_CALLS, MAX_CONNECTIONS, MAX_DATAGRAM, MAX_RECORD};
use crate::rpc::record::{self, Assembler};
use crate::rpc::server::Server;

/// How long a client may take to receive a part of a reply.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// Wait after a failed accept, which lacks descriptors or memory.
const ACCEPT_WAIT: Duration = Duration::from_millis(100);

/// Bytes that are read at once.
const READ_SIZE: usize = 64 << 10;

/// A connection whose calls are executed.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// Held while a reply is written, so that replies do not mix.
    writing: Mutex<()>,
    /// Calls that have no reply yet.
    calls: Mutex<usize>,
    finished: Condvar,
}

/// Accepts connections on a thread of its own.
///
/// # Errors
/// The thread cannot be started.
pub fn accept(
    server: Arc<Server>,
    listener: TcpListener,
    connections: Arc<AtomicUsize>,
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

/// Answers datagrams on a thread of its own.
///
/// # Errors
/// The thread cannot be started.
pub fn answer(server: Arc<Server>, socket: UdpSocket) -> io::Result<()> {
    thread::Builder::new()
        .name("nfs_udp".to_owned())
        .spawn(move || {
            let socket = Arc::new(socket);
            let mut buffer = vec![0; MAX_DATAGRAM];
            loop {
                let (len, peer) = match socket.recv_from(&mut buffer) {
                    Ok(got) => got,
                    Err(error) => {
                        // A reply that reached nobody.
                        debug!("datagrams: {error}");
                        continue;
                    }
                };
                let record = buffer.get(..len).unwrap_or_default();
                let to = Arc::clone(&socket);
                let respond = move |reply: Option<Arc<Vec<u8>>>| {
                    if let Some(reply) = reply {
                        let _ = to.send_to(&reply, peer);
                    }
                };
                server.execute(peer.ip(), record, Box::new(respond));
            }
        })?;
    Ok(())
}

fn begin(
    server: &Arc<Server>,
    stream: TcpStream,
    peer: SocketAddr,
    connections: &Arc<AtomicUsize>,
) {
    if connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
        connections.fetch_sub(1, Ordering::Relaxed);
        rate_limited!(
            warn,
            "{peer}: refused, there are {MAX_CONNECTIONS} connections already"
        );
        return;
    }
    let server = Arc::clone(server);
    let counted = Arc::clone(connections);
    let begun = thread::Builder::new()
        .name("nfs_client".to_owned())
        .spawn(move || {
            if let Err(error) = serve(&server, stream, peer.ip()) {
                rate_limited!(debug, "{peer}: {}", error_chain(&error));
            }
            counted.fetch_sub(1, Ordering::Relaxed);
        });
    if let Err(error) = begun {
        connections.fetch_sub(1, Ordering::Relaxed);
        rate_limited!(warn, "{peer}: cannot start a thread: {error}");
    }
}

/// Serves a connection until the client closes it, or breaks the rules.
fn serve(server: &Server, stream: TcpStream, client: IpAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(WRITE_LIMIT))?;
    let connection = Arc::new(Connection {
        stream,
        writing: Mutex::default(),
        calls: Mutex::default(),
        finished: Condvar::new(),
    });
    let mut assembler = Assembler::new(MAX_RECORD);
    let mut buffer = vec![0; READ_SIZE];
    let served = (|| {
        loop {
            let len = (&connection.stream).read(&mut buffer)?;
            if len == 0 {
                return Ok(());
            }
            let mut bytes = buffer.get(..len).unwrap_or_default();
            while let Some(record) = assembler.take(&mut bytes).map_err(io::Error::other)? {
                connection.begin_call();
                let to = Arc::clone(&connection);
                let respond = move |reply: Option<Arc<Vec<u8>>>| to.finish_call(reply.as_deref());
                server.submit(client, record, Box::new(respond));
            }
        }
    })();
    // Replies that are still to come have nobody to receive them.
    let _ = connection.stream.shutdown(Shutdown::Both);
    served
}

impl Connection {
    /// Counts a call. Waits while the client has too many.
    fn begin_call(&self) {
        let mut calls = self.calls.lock();
        self.finished
            .wait_while(&mut calls, |calls| *calls >= MAX_CALLS);
        *calls += 1;
    }

    fn finish_call(&self, reply: Option<&Vec<u8>>) {
        if let Some(reply) = reply {
            let writing = self.writing.lock();
            let mut stream = &self.stream;
            let written = stream
                .write_all(&record::header(reply))
                .and_then(|()| stream.write_all(reply));
            drop(writing);
            if written.is_err() {
                // What follows a part of a reply would be misread.
                let _ = self.stream.shutdown(Shutdown::Both);
            }
        }
        *self.calls.lock() -= 1;
        self.finished.notify_one();
    }
}
