//! A network stack of this program's own, with an address of its own: ARP, ICMP echo, UDP and TCP
//! by smoltcp, on the virtual switch. One thread does all of it.

mod connection;
mod outbox;
mod port;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use gangplank_service::rate_limit::peer_at;
use gangplank_service::rate_limited;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint, Ipv4Cidr};

use self::connection::Connection;
pub use self::outbox::Outbox;
use self::port::Port;
use super::admission::{Admission, admit};
use super::switch::{Mac, Switch};
use super::{MAX_CONNECTIONS, MAX_DATAGRAM, MAX_DATAGRAM_CALLS};
use crate::rpc::client::{self, RpcClient};
use crate::rpc::program::Endpoints;
use crate::rpc::reply::Reply;
use crate::rpc::server::Server;

/// Bytes of each TCP buffer. The receive buffer is the window.
const TCP_BUFFER: usize = 256 << 10;

/// Sockets that listen at each port, so that clients can connect at once.
const LISTENING: usize = 4;

/// A connection whose peer does not answer for this long ends.
const PEER_TIMEOUT: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(120);

/// How often an idle connection's peer is asked whether it is still there.
const KEEP_ALIVE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(30);

/// Wait before frames are offered again to a machine that did not take them.
const FRAME_RETRY: Duration = Duration::from_micros(200);

/// Most handshakes at once, beside the connections. When another begins, the oldest one ends of the
/// address that has most of them.
const MAX_HANDSHAKES: usize = 32;

/// The stack's settings.
#[derive(Debug, Clone, Copy)]
pub struct StackConfig {
    /// The address.
    pub address: Ipv4Addr,
    /// Bits of the network's prefix.
    pub prefix: u8,
    /// The router to other networks.
    pub gateway: Option<Ipv4Addr>,
    /// The Ethernet address.
    pub mac: Mac,
    /// Bytes of the largest packet.
    pub mtu: u16,
    /// The port of NFS and MOUNT.
    pub nfs_port: u16,
    /// The port of the port mapper.
    pub portmap_port: u16,
}

impl StackConfig {
    const fn endpoints(&self, client: SocketAddr) -> Endpoints {
        Endpoints {
            client: client.ip(),
            client_port: client.port(),
            server: IpAddr::V4(self.address),
        }
    }
}

/// The stack.
pub struct Stack {
    config: StackConfig,
    server: Arc<Server>,
    /// Answers datagrams to the port mapper, at once.
    for_datagrams: Arc<Server>,
    /// Takes the replies of clients.
    client: Arc<RpcClient>,
    port: Port,
    interface: Interface,
    sockets: SocketSet<'static>,
    /// The port mapper's socket for datagrams.
    portmap: SocketHandle,
    /// That of the other programs.
    datagrams: SocketHandle,
    /// Sockets that listen, with their ports.
    listening: Vec<(u16, SocketHandle)>,
    /// Connections, and handshakes that have begun.
    connections: Vec<Connection>,
    next_id: u64,
    outbox: Arc<Outbox>,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").finish_non_exhaustive()
    }
}

impl Stack {
    /// A stack on `switch`, for the calls of `server`, and of `for_datagrams`, the port mapper.
    /// `client` calls clients by `outbox`.
    ///
    /// # Errors
    /// The system lacks a resource, or the addresses fit no network.
    pub(super) fn new(
        config: StackConfig,
        switch: Switch,
        server: Arc<Server>,
        for_datagrams: Arc<Server>,
        client: Arc<RpcClient>,
        outbox: Arc<Outbox>,
    ) -> io::Result<Self> {
        let mtu = usize::from(config.mtu);
        let mut port = Port { switch, mtu };
        let hardware = HardwareAddress::Ethernet(EthernetAddress(config.mac));
        let mut settings = Config::new(hardware);
        // For ports and sequence numbers.
        settings.random_seed = getrandom::u64()?;
        let mut interface = Interface::new(settings, &mut port, Instant::now());
        let cidr = IpCidr::Ipv4(Ipv4Cidr::new(config.address, config.prefix));
        interface.update_ip_addrs(|addresses| {
            // The list is empty and holds one.
            let _ = addresses.push(cidr);
        });
        if let Some(gateway) = config.gateway {
            let added = interface.routes_mut().add_default_ipv4_route(gateway);
            added.map_err(|_| io::Error::other("the router cannot be used"))?;
        }
        let mut sockets = SocketSet::new(Vec::new());
        let mut datagram_socket = |port| {
            let buffer = || {
                let metadata = vec![udp::PacketMetadata::EMPTY; 16];
                udp::PacketBuffer::new(metadata, vec![0; 16 * MAX_DATAGRAM])
            };
            let mut socket = udp::Socket::new(buffer(), buffer());
            let bound = socket.bind(port);
            bound.map_err(|error| io::Error::other(format!("port {port}: {error}")))?;
            Ok::<_, io::Error>(sockets.add(socket))
        };
        let portmap = datagram_socket(config.portmap_port)?;
        let datagrams = datagram_socket(config.nfs_port)?;
        let mut stack = Self {
            config,
            server,
            for_datagrams,
            client,
            port,
            interface,
            sockets,
            portmap,
            datagrams,
            listening: Vec::new(),
            connections: Vec::new(),
            next_id: 0,
            outbox,
        };
        stack.keep_listening(Instant::now());
        Ok(stack)
    }

    /// Runs the stack on a thread of its own, until the process ends.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(mut self) -> io::Result<()> {
        thread::Builder::new()
            .name("nfs_network".to_owned())
            .spawn(move || {
                loop {
                    self.step(Instant::now());
                    self.wait();
                }
            })?;
        Ok(())
    }

    fn step(&mut self, now: Instant) {
        self.port.switch.exchange();
        self.take_replies(now);
        // Twice, so that what the sockets have to say after the frames goes out now.
        for _ in 0..2 {
            self.receive_frames(now);
            self.interface.poll(now, &mut self.port, &mut self.sockets);
            self.answer_port_mapper();
            self.exchange_datagrams();
            self.admit_connections(now);
            self.serve_connections(now);
        }
        self.port.switch.flush();
    }

    /// Takes the frames that have come. After each, as many sockets listen as before, so that no
    /// number of handshakes that begin at once has another refused.
    fn receive_frames(&mut self, now: Instant) {
        loop {
            let (port, sockets) = (&mut self.port, &mut self.sockets);
            match self.interface.poll_ingress_single(now, port, sockets) {
                PollIngressSingleResult::None => return,
                PollIngressSingleResult::PacketProcessed => {}
                PollIngressSingleResult::SocketStateChanged => self.keep_listening(now),
            }
        }
    }

    /// Waits for frames, replies, or the time when the stack has something to do.
    fn wait(&mut self) {
        let now = Instant::now();
        let delay = self.interface.poll_delay(now, &self.sockets);
        let mut delay = delay.map(Duration::from);
        let deadlines = self.connections.iter().filter_map(|connection| {
            let socket = self.sockets.get::<tcp::Socket<'_>>(connection.handle);
            connection.deadline(socket)
        });
        if let Some(deadline) = deadlines.min() {
            let left = since(now, deadline);
            delay = Some(delay.map_or(left, |delay| delay.min(left)));
        }
        if self.port.switch.has_waiting_datagrams() {
            delay = Some(delay.map_or(FRAME_RETRY, |delay| delay.min(FRAME_RETRY)));
        }
        let timeout = delay.and_then(|delay| Timespec::try_from(delay).ok());
        let mut fds = self.port.switch.poll_fds();
        fds.push(PollFd::new(&self.outbox.wakeup, PollFlags::IN));
        // An interrupted or failed wait is a short one.
        let _ = poll(&mut fds, timeout.as_ref());
        let _ = rustix::io::read(&self.outbox.wakeup, &mut [0; 8]);
    }

    fn take_replies(&mut self, now: Instant) {
        let replies = std::mem::take(&mut *self.outbox.replies.lock());
        for (id, reply) in replies {
            let connection = self.connections.iter_mut().find(|other| other.id == id);
            // Otherwise the client has gone.
            if let Some(connection) = connection {
                connection.reply(reply, now);
            }
        }
    }

    fn answer_port_mapper(&mut self) {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.portmap);
        while socket.can_send() {
            let Ok((record, from)) = socket.recv() else {
                return;
            };
            let record = record.to_vec();
            let reply = Arc::new(Mutex::new(None));
            let place = Arc::clone(&reply);
            let respond = move |reply: Option<Arc<Reply>>| *place.lock() = reply;
            let endpoints = self.config.endpoints(peer(from.endpoint));
            self.for_datagrams
                .execute(endpoints, &record, Box::new(respond));
            if let Some(reply) = reply.lock().take() {
                let _ = socket.send_slice(&reply.to_bytes(), from);
            }
        }
    }

    /// Takes calls and replies of clients, and sends what waits for them.
    fn exchange_datagrams(&mut self) {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.datagrams);
        while let Ok((datagram, from)) = socket.recv() {
            let peer = peer(from.endpoint);
            if client::is_reply(datagram) {
                self.client.received(peer, datagram);
                continue;
            }
            let waiting = self.outbox.datagram_calls.load(Ordering::Relaxed);
            if waiting >= MAX_DATAGRAM_CALLS || !self.server.has_room() {
                // The client repeats it.
                continue;
            }
            self.outbox.datagram_calls.fetch_add(1, Ordering::Relaxed);
            let outbox = Arc::clone(&self.outbox);
            let respond = move |reply: Option<Arc<Reply>>| {
                outbox.datagram_calls.fetch_sub(1, Ordering::Relaxed);
                if let Some(reply) = reply.filter(|reply| reply.len() <= MAX_DATAGRAM) {
                    outbox.put_datagram(peer, reply.to_bytes().into_owned());
                }
            };
            let endpoints = self.config.endpoints(peer);
            let datagram = datagram.to_vec();
            self.server.submit(endpoints, datagram, Box::new(respond));
        }
        let mut datagrams = self.outbox.datagrams.lock();
        while socket.can_send() {
            let Some((to, datagram)) = datagrams.pop_front() else {
                return;
            };
            if let IpAddr::V4(address) = to.ip() {
                // One that cannot be sent is lost.
                let _ = socket.send_slice(&datagram, (address, to.port()));
            }
        }
    }

    /// Replaces the sockets whose handshake has begun by others that listen.
    fn keep_listening(&mut self, now: Instant) {
        let mut begun = Vec::new();
        let sockets = &self.sockets;
        self.listening.retain(|(_, handle)| {
            let is_listening = sockets.get::<tcp::Socket<'_>>(*handle).is_listening();
            if !is_listening {
                begun.push(*handle);
            }
            is_listening
        });
        for handle in begun {
            let account = self.server.reply_account();
            let connection = Connection::new(self.next_id, handle, account, now);
            self.connections.push(connection);
            self.next_id += 1;
            self.limit_handshakes();
        }
        let mut ports = vec![self.config.nfs_port, self.config.portmap_port];
        ports.dedup();
        for port in ports {
            let listening = self.listening.iter().filter(|(other, _)| *other == port);
            for _ in listening.count()..LISTENING {
                self.listen(port);
            }
        }
    }

    fn listen(&mut self, port: u16) {
        let buffer = || tcp::SocketBuffer::new(vec![0; TCP_BUFFER]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(PEER_TIMEOUT));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        if let Err(error) = socket.listen(port) {
            rate_limited!(warn, "cannot listen at port {port}: {error:?}");
            return;
        }
        self.listening.push((port, self.sockets.add(socket)));
    }

    /// Ends a handshake if there are too many.
    fn limit_handshakes(&mut self) {
        let sockets = &self.sockets;
        let in_handshake = |connection: &Connection| {
            let socket = sockets.get::<tcp::Socket<'_>>(connection.handle);
            let peer = socket.remote_endpoint().map(|peer| address(peer.addr));
            peer.filter(|_| socket.state() == tcp::State::SynReceived)
        };
        let mut counts = HashMap::new();
        for client in self.connections.iter().filter_map(in_handshake) {
            *counts.entry(client).or_insert(0_usize) += 1;
        }
        if counts.values().sum::<usize>() <= MAX_HANDSHAKES {
            return;
        }
        let most = counts.iter().max_by_key(|(_, count)| **count);
        let most = most.map(|(client, _)| *client);
        // The oldest are first.
        let mut connections = self.connections.iter();
        if let Some(index) = connections.position(|connection| in_handshake(connection) == most) {
            let ended = self.connections.remove(index);
            self.sockets.remove(ended.handle);
        }
    }

    /// Gives a place to each connection whose handshake is complete, perhaps that of another.
    fn admit_connections(&mut self, now: Instant) {
        for index in 0..self.connections.len() {
            let Some(new) = self.connections.get(index).filter(|new| !new.is_admitted) else {
                continue;
            };
            let socket = self.sockets.get::<tcp::Socket<'_>>(new.handle);
            let is_complete = socket.is_active() && socket.state() != tcp::State::SynReceived;
            let Some(client) = socket.remote_endpoint().filter(|_| is_complete) else {
                continue;
            };
            let handle = new.handle;
            let admitted = self.connections.iter().filter(|other| other.is_admitted);
            let (handles, standings): (Vec<_>, Vec<_>) = admitted
                .filter_map(|other| {
                    let socket = self.sockets.get::<tcp::Socket<'_>>(other.handle);
                    let client = socket.remote_endpoint().filter(|_| socket.is_open())?;
                    let standing = other.standing(address(client.addr), now);
                    Some((other.handle, standing))
                })
                .unzip();
            let closed = match admit(&standings, address(client.addr)) {
                Admission::Free => None,
                Admission::Replaces(index) => handles.get(index).copied(),
                Admission::Refused => {
                    rate_limited!(
                        peer = peer_at(address(client.addr)),
                        warn,
                        "{client}: refused, {} of {MAX_CONNECTIONS} connections are taken",
                        standings.len()
                    );
                    Some(handle)
                }
            };
            if let Some(closed) = closed {
                self.sockets.get_mut::<tcp::Socket<'_>>(closed).abort();
            }
            if let Some(new) = self.connections.get_mut(index) {
                new.is_admitted = closed != Some(handle);
            }
        }
    }

    fn serve_connections(&mut self, now: Instant) {
        let (server, outbox, config) = (&self.server, &self.outbox, self.config);
        let sockets = &mut self.sockets;
        self.connections.retain_mut(|connection| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(connection.handle);
            let is_over = match socket.state() {
                // The client has reset it in the handshake.
                tcp::State::Listen => true,
                tcp::State::SynReceived => connection.is_abandoned(now),
                // A closed socket is kept until it has told its peer.
                _ if !socket.is_open() => std::mem::replace(&mut connection.was_closed, true),
                _ if !connection.is_admitted => false,
                _ => {
                    connection.serve(socket, server, outbox, config, now);
                    false
                }
            };
            if is_over {
                sockets.remove(connection.handle);
            }
            !is_over
        });
    }
}

/// Time from one instant to another; zero if that is earlier.
fn since(earlier: Instant, later: Instant) -> Duration {
    let micros = later.total_micros() - earlier.total_micros();
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

fn peer(endpoint: IpEndpoint) -> SocketAddr {
    SocketAddr::new(address(endpoint.addr), endpoint.port)
}

fn address(address: IpAddress) -> IpAddr {
    match address {
        IpAddress::Ipv4(address) => IpAddr::V4(address),
    }
}
