//! A network stack of this program's own, with an address of its own: ARP, ICMP echo, UDP and TCP
//! by smoltcp, on the virtual switch. One thread does all of it.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use gangplank_service::rate_limited;
use log::debug;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Cidr};

use super::switch::{Mac, Switch};
use super::{MAX_CALLS, MAX_CONNECTIONS, MAX_DATAGRAM, MAX_DATAGRAM_CALLS, MAX_RECORD};
use crate::rpc::client::{self, RpcClient, SendDatagram};
use crate::rpc::program::Endpoints;
use crate::rpc::record::{self, Assembler};
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

/// Most datagrams that wait to be sent.
const MAX_DATAGRAMS: usize = 1024;

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
    const fn endpoints(&self, client: IpAddr) -> Endpoints {
        Endpoints {
            client,
            server: IpAddr::V4(self.address),
        }
    }
}

/// A reply of a worker to a connection.
type Reply = (u64, Option<Arc<Vec<u8>>>);

/// Where other threads put what is to be sent.
pub struct Outbox {
    replies: Mutex<Vec<Reply>>,
    /// Datagrams from the port of NFS, and to where.
    datagrams: Mutex<VecDeque<(SocketAddr, Vec<u8>)>>,
    /// Calls by datagrams without a reply.
    datagram_calls: AtomicUsize,
    wakeup: OwnedFd,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}

impl SendDatagram for Arc<Outbox> {
    fn send(&self, _: IpAddr, to: SocketAddr, datagram: Vec<u8>) {
        self.put_datagram(to, datagram);
    }
}

impl Outbox {
    /// An empty one.
    ///
    /// # Errors
    /// The system lacks a resource.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            replies: Mutex::default(),
            datagrams: Mutex::default(),
            datagram_calls: AtomicUsize::new(0),
            wakeup: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    fn put_datagram(&self, to: SocketAddr, datagram: Vec<u8>) {
        let mut datagrams = self.datagrams.lock();
        // Beyond it they are lost, as in any network.
        if datagrams.len() < MAX_DATAGRAMS {
            datagrams.push_back((to, datagram));
        }
        drop(datagrams);
        self.wake();
    }

    fn put(&self, connection: u64, reply: Option<Arc<Vec<u8>>>) {
        self.replies.lock().push((connection, reply));
        self.wake();
    }

    fn wake(&self) {
        // The counter is full at 2^64 - 1 alone.
        let _ = rustix::io::write(&self.wakeup, &1_u64.to_ne_bytes());
    }
}

/// The switch as smoltcp's network device.
struct Port {
    switch: Switch,
    mtu: usize,
}

struct Received(Arc<[u8]>);

struct Sending<'a>(&'a mut Switch);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.send(frame.into());
        result
    }
}

impl Device for Port {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let frame = self.switch.next_frame()?;
        Some((Received(frame), Sending(&mut self.switch)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.switch))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        // With Ethernet's header.
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

/// A TCP socket: it listens, or is a connection.
struct Connection {
    id: u64,
    handle: SocketHandle,
    port: u16,
    assembler: Assembler,
    /// Calls without a reply.
    calls: usize,
    /// Replies with their headers, and how much of the first is sent.
    replies: VecDeque<Vec<u8>>,
    sent: usize,
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
            connections: Vec::new(),
            next_id: 0,
            outbox,
        };
        stack.keep_listening();
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
                    self.step();
                    self.wait();
                }
            })?;
        Ok(())
    }

    fn step(&mut self) {
        self.port.switch.exchange();
        self.take_replies();
        // Twice, so that what the sockets have to say after the frames goes out now.
        for _ in 0..2 {
            self.interface
                .poll(Instant::now(), &mut self.port, &mut self.sockets);
            self.answer_port_mapper();
            self.exchange_datagrams();
            self.serve_connections();
        }
        self.keep_listening();
        self.port.switch.flush();
    }

    /// Waits for frames, replies, or the time when the stack has something to do.
    fn wait(&mut self) {
        let delay = self.interface.poll_delay(Instant::now(), &self.sockets);
        let mut delay = delay.map(|delay| Duration::from_micros(delay.total_micros()));
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

    fn take_replies(&mut self) {
        let replies = std::mem::take(&mut *self.outbox.replies.lock());
        for (id, reply) in replies {
            let connection = self.connections.iter_mut().find(|other| other.id == id);
            // Otherwise the client has gone.
            if let Some(connection) = connection {
                connection.calls -= 1;
                if let Some(reply) = reply {
                    let framed = [&record::header(&reply)[..], &reply].concat();
                    connection.replies.push_back(framed);
                }
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
            let respond = move |reply| *place.lock() = reply;
            let endpoints = self.config.endpoints(address(from.endpoint.addr));
            self.for_datagrams
                .execute(endpoints, &record, Box::new(respond));
            if let Some(reply) = reply.lock().take() {
                let _ = socket.send_slice(&reply, from);
            }
        }
    }

    /// Takes calls and replies of clients, and sends what waits for them.
    fn exchange_datagrams(&mut self) {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.datagrams);
        while let Ok((datagram, from)) = socket.recv() {
            let client = address(from.endpoint.addr);
            let peer = SocketAddr::new(client, from.endpoint.port);
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
            let respond = move |reply: Option<Arc<Vec<u8>>>| {
                outbox.datagram_calls.fetch_sub(1, Ordering::Relaxed);
                if let Some(reply) = reply.filter(|reply| reply.len() <= MAX_DATAGRAM) {
                    outbox.put_datagram(peer, reply.to_vec());
                }
            };
            let endpoints = self.config.endpoints(client);
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

    /// Keeps sockets listening, as long as more connections are allowed.
    fn keep_listening(&mut self) {
        let mut ports = vec![self.config.nfs_port];
        if self.config.portmap_port != self.config.nfs_port {
            ports.push(self.config.portmap_port);
        }
        for port in ports {
            let listening = self.connections.iter().filter(|connection| {
                let socket = self.sockets.get::<tcp::Socket<'_>>(connection.handle);
                connection.port == port && socket.is_listening()
            });
            for _ in listening.count()..LISTENING {
                if self.connections.len() >= MAX_CONNECTIONS {
                    rate_limited!(warn, "there are {MAX_CONNECTIONS} connections; no further");
                    return;
                }
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
        self.connections.push(Connection {
            id: self.next_id,
            handle: self.sockets.add(socket),
            port,
            assembler: Assembler::new(MAX_RECORD),
            calls: 0,
            replies: VecDeque::new(),
            sent: 0,
        });
        self.next_id += 1;
    }

    fn serve_connections(&mut self) {
        let (server, outbox, config) = (&self.server, &self.outbox, self.config);
        let mut closed = Vec::new();
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(connection.handle);
            if !socket.is_open() {
                closed.push(connection.handle);
                continue;
            }
            if let Err(error) = connection.receive(socket, server, outbox, config) {
                debug!("a connection ends: {error}");
                socket.abort();
                continue;
            }
            connection.send(socket);
            // The client has said all, and has got all.
            let is_done = connection.calls == 0 && connection.replies.is_empty();
            if socket.state() == tcp::State::CloseWait && !socket.can_recv() && is_done {
                socket.close();
            }
        }
        for handle in closed {
            self.sockets.remove(handle);
            self.connections
                .retain(|connection| connection.handle != handle);
        }
    }
}

impl Connection {
    /// Takes calls, as long as more are allowed.
    fn receive(
        &mut self,
        socket: &mut tcp::Socket<'_>,
        server: &Arc<Server>,
        outbox: &Arc<Outbox>,
        config: StackConfig,
    ) -> Result<(), record::RecordError> {
        let Some(client) = socket.remote_endpoint() else {
            return Ok(());
        };
        let endpoints = config.endpoints(address(client.addr));
        // Replies that the client does not take count as well.
        while socket.can_recv() && self.calls + self.replies.len() < MAX_CALLS && server.has_room()
        {
            let taken = socket.recv(|bytes| {
                let mut rest = &*bytes;
                let taken = self.assembler.take(&mut rest);
                (bytes.len() - rest.len(), taken)
            });
            let Ok(taken) = taken else { return Ok(()) };
            if let Some(record) = taken? {
                self.calls += 1;
                let (id, outbox) = (self.id, Arc::clone(outbox));
                let respond = move |reply| outbox.put(id, reply);
                server.submit(endpoints, record, Box::new(respond));
            }
        }
        Ok(())
    }

    fn send(&mut self, socket: &mut tcp::Socket<'_>) {
        while let Some(reply) = self.replies.front() {
            let rest = reply.get(self.sent..).unwrap_or_default();
            match socket.send_slice(rest) {
                Ok(0) | Err(_) => return,
                Ok(len) => self.sent += len,
            }
            if self.sent >= reply.len() {
                self.replies.pop_front();
                self.sent = 0;
            }
        }
    }
}

fn address(address: IpAddress) -> IpAddr {
    match address {
        IpAddress::Ipv4(address) => IpAddr::V4(address),
    }
}
