//! A network stack of this program's own, with an address of its own: ARP, ICMP echo, UDP and TCP
//! by smoltcp, on the virtual switch. One thread does all of it.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
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
use super::{MAX_CALLS, MAX_CONNECTIONS, MAX_DATAGRAM, MAX_RECORD};
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

/// A reply of a worker to a connection.
type Reply = (u64, Option<Arc<Vec<u8>>>);

/// Where workers put replies.
struct Outbox {
    replies: Mutex<Vec<Reply>>,
    wakeup: OwnedFd,
}

impl Outbox {
    fn put(&self, connection: u64, reply: Option<Arc<Vec<u8>>>) {
        self.replies.lock().push((connection, reply));
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
    /// Answers datagrams, at once.
    for_datagrams: Arc<Server>,
    port: Port,
    interface: Interface,
    sockets: SocketSet<'static>,
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
    /// A stack on `switch`, for the calls of `server`, and of `for_datagrams`, whose programs
    /// answer at once.
    ///
    /// # Errors
    /// The system lacks a resource, or the addresses fit no network.
    pub(super) fn new(
        config: StackConfig,
        switch: Switch,
        server: Arc<Server>,
        for_datagrams: Arc<Server>,
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
        let buffer = || {
            let metadata = vec![udp::PacketMetadata::EMPTY; 16];
            udp::PacketBuffer::new(metadata, vec![0; 16 * MAX_DATAGRAM])
        };
        let mut datagrams = udp::Socket::new(buffer(), buffer());
        let bound = datagrams.bind(config.portmap_port);
        bound.map_err(|error| io::Error::other(format!("the port mapper's port: {error}")))?;
        let datagrams = sockets.add(datagrams);
        let outbox = Outbox {
            replies: Mutex::default(),
            wakeup: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        };
        let mut stack = Self {
            config,
            server,
            for_datagrams,
            port,
            interface,
            sockets,
            datagrams,
            connections: Vec::new(),
            next_id: 0,
            outbox: Arc::new(outbox),
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
            self.answer_datagrams();
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

    fn answer_datagrams(&mut self) {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.datagrams);
        while socket.can_send() {
            let Ok((record, from)) = socket.recv() else {
                return;
            };
            let record = record.to_vec();
            let reply = Arc::new(Mutex::new(None));
            let place = Arc::clone(&reply);
            let respond = move |reply| *place.lock() = reply;
            let client = address(from.endpoint.addr);
            self.for_datagrams
                .execute(client, &record, Box::new(respond));
            if let Some(reply) = reply.lock().take() {
                let _ = socket.send_slice(&reply, from);
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
        let (server, outbox) = (&self.server, &self.outbox);
        let mut closed = Vec::new();
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(connection.handle);
            if !socket.is_open() {
                closed.push(connection.handle);
                continue;
            }
            if let Err(error) = connection.receive(socket, server, outbox) {
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
    ) -> Result<(), record::RecordError> {
        let Some(client) = socket.remote_endpoint() else {
            return Ok(());
        };
        let client = address(client.addr);
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
                server.submit(client, record, Box::new(respond));
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
