//! The stack, and machines that misuse it.

use std::os::unix::net::UnixStream;

use nfs3_types::portmap::PMAP_PORT;

use super::*;
use crate::network::admission::MAX_PER_CLIENT;
use crate::network::line::Line;
use crate::network::switch::SwitchSockets;
use crate::portmap::Portmap;
use crate::rpc::program::{CallError, Caller, Program};
use crate::rpc::reply::Reply;
use crate::xdr::Reader;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
const PORT: u16 = 2049;

/// Limit for a reply.
const LIMIT: Duration = Duration::from_secs(20);

fn port(mac: Mac, links: Vec<Line>) -> Port {
    let sockets = SwitchSockets {
        links,
        ..SwitchSockets::default()
    };
    let switch = Switch::new(mac, sockets).unwrap();
    Port { switch, mtu: 1500 }
}

/// A machine at the switch.
struct Machine {
    port: Port,
    interface: Interface,
    sockets: SocketSet<'static>,
    next_port: u16,
}

impl Machine {
    fn new(host: u8, link: UnixStream) -> Self {
        link.set_nonblocking(true).unwrap();
        let mac = [2, 0, 0, 0, 0, host];
        let mut port = port(mac, vec![Line::stream(link)]);
        let hardware = HardwareAddress::Ethernet(EthernetAddress(mac));
        let mut interface = Interface::new(Config::new(hardware), &mut port, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let address = Ipv4Addr::new(10, 0, 2, host);
            addresses
                .push(IpCidr::Ipv4(Ipv4Cidr::new(address, 24)))
                .unwrap();
        });
        Self {
            port,
            interface,
            sockets: SocketSet::new(Vec::new()),
            next_port: 600,
        }
    }

    fn connect(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 4096]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        self.next_port += 1;
        let context = self.interface.context();
        socket
            .connect(context, (SERVER, PORT), self.next_port)
            .unwrap();
        self.sockets.add(socket)
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn step(&mut self, now: Instant) {
        self.port.switch.exchange();
        self.interface.poll(now, &mut self.port, &mut self.sockets);
        self.port.switch.flush();
    }
}

/// A program whose replies are long.
struct LongReplies;

/// Bytes of each.
const LONG: usize = 1 << 20;

impl Program for LongReplies {
    fn number(&self) -> u32 {
        7
    }

    fn version(&self) -> u32 {
        1
    }

    fn largest_results(&self, _: u32, _: Reader<'_>) -> usize {
        LONG
    }

    fn call(
        &self,
        _: Caller<'_>,
        _: u32,
        _: Reader<'_>,
        reply: &mut Reply,
    ) -> Result<(), CallError> {
        reply.bytes.resize(reply.bytes.len() + LONG, 0);
        Ok(())
    }
}

/// A stack, and machines at its switch.
struct Fixture {
    stack: Stack,
    machines: Vec<Machine>,
    now: Instant,
}

impl Fixture {
    fn new(machines: u8) -> Self {
        let mut links = Vec::new();
        let machines = (0..machines).map(|number| {
            let (near, far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            links.push(Line::stream(near));
            Machine::new(15 + number, far)
        });
        let machines = machines.collect();
        let config = StackConfig {
            address: SERVER,
            prefix: 24,
            gateway: None,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            nfs_port: PORT,
            portmap_port: PMAP_PORT,
        };
        let switch = port(config.mac, links).switch;
        let programs: [Arc<dyn Program>; 2] =
            [Arc::new(Portmap::new(Vec::new())), Arc::new(LongReplies)];
        let server = Arc::new(Server::new(programs.to_vec()));
        server.start(1).unwrap();
        let outbox = Arc::new(Outbox::new().unwrap());
        let client = RpcClient::start(Box::new(Arc::clone(&outbox))).unwrap();
        let other = Arc::clone(&server);
        Self {
            stack: Stack::new(config, switch, server, other, client, outbox).unwrap(),
            machines,
            now: Instant::ZERO,
        }
    }

    /// Lets the stack and the machines run until `is_so`.
    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let deadline = std::time::Instant::now() + LIMIT;
        while !is_so(self) {
            assert!(std::time::Instant::now() < deadline, "not in time: {what}");
            self.now += Duration::from_millis(1).into();
            self.stack.step(self.now);
            for machine in &mut self.machines {
                machine.step(self.now);
            }
        }
    }

    fn connect(&mut self, machine: usize) -> SocketHandle {
        let handle = self.machines[machine].connect();
        self.until("a connection", |fixture| {
            fixture.machines[machine].socket(handle).may_send()
        });
        handle
    }

    /// Whether a call on this connection gets a reply, and not the connection's end.
    fn is_served(&mut self, machine: usize, handle: SocketHandle) -> bool {
        // The port mapper's NULL.
        let call = call(100_000, 2);
        let socket = self.machines[machine].socket(handle);
        if socket.send_slice(&call) != Ok(call.len()) {
            return false;
        }
        self.until("a reply", |fixture| {
            let socket = fixture.machines[machine].socket(handle);
            socket.can_recv() || !socket.is_active()
        });
        let socket = self.machines[machine].socket(handle);
        socket.recv(|bytes| (bytes.len(), bytes.len())) == Ok(28)
    }

    /// How many of these connections are open.
    fn open(&mut self, machine: usize, handles: &[SocketHandle]) -> usize {
        let machine = &mut self.machines[machine];
        let open = handles.iter();
        open.filter(|handle| machine.socket(**handle).may_recv())
            .count()
    }
}

/// The call of a procedure 0, with its header.
fn call(program: u32, version: u32) -> Vec<u8> {
    let words = [40 | 1 << 31, 7, 0, 2, program, version, 0, 0, 0, 0, 0];
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

#[test]
fn a_client_that_takes_no_replies_costs_few_of_them_and_is_disconnected() {
    let mut fixture = Fixture::new(1);
    let (silent, client) = (fixture.connect(0), fixture.connect(0));
    let calls = call(7, 1).repeat(50);
    let socket = fixture.machines[0].socket(silent);
    assert_eq!(socket.send_slice(&calls), Ok(calls.len()));
    let end = fixture.now + Duration::from_millis(500).into();
    fixture.until("time", |fixture| fixture.now >= end);
    let account = fixture.stack.server.reply_account();
    let held = account.all_reserved();
    assert!((7 * LONG..=9 * LONG).contains(&held), "{held}");
    assert!(fixture.is_served(0, client));
    fixture.now += Duration::from_secs(31).into();
    fixture.until("its end", |_| account.all_reserved() == 0);
    fixture.until("its end", |fixture| fixture.stack.connections.len() == 1);
    assert!(fixture.is_served(0, client));
}

#[test]
fn handshakes_that_are_never_completed_keep_nobody_from_connecting() {
    let mut fixture = Fixture::new(2);
    // So that it knows the server's Ethernet address.
    fixture.connect(0);
    let mut silent = fixture.machines.remove(0);
    for _ in 0..MAX_CONNECTIONS * 2 {
        silent.connect();
    }
    // All at once; it never takes an answer.
    silent.step(fixture.now);
    let client = fixture.machines[0].connect();
    fixture.machines[0].step(fixture.now);
    fixture.until("a connection", |fixture| {
        let socket = fixture.machines[0].socket(client);
        assert!(socket.is_open(), "refused");
        socket.may_send()
    });
    assert!(fixture.is_served(0, client));
    let sockets = |fixture: &Fixture| fixture.stack.connections.len();
    assert!(
        sockets(&fixture) <= MAX_HANDSHAKES + 2,
        "{}",
        sockets(&fixture)
    );
    fixture.now += Duration::from_secs(10).into();
    fixture.until("the end of the handshakes", |fixture| sockets(fixture) == 2);
}

#[test]
fn silent_clients_keep_nobody_from_connecting() {
    let mut fixture = Fixture::new(3);
    let mut handles = [Vec::new(), Vec::new()];
    for _ in 0..MAX_PER_CLIENT {
        for (machine, handles) in handles.iter_mut().enumerate() {
            handles.push(fixture.connect(machine));
        }
    }
    // An address with its share gets no more.
    let more = fixture.connect(0);
    assert!(!fixture.is_served(0, more));
    let client = fixture.connect(2);
    assert!(fixture.is_served(2, client));
    let open = |fixture: &mut Fixture| fixture.open(0, &handles[0]) + fixture.open(1, &handles[1]);
    assert_eq!(open(&mut fixture), 2 * MAX_PER_CLIENT - 1);
    // Idle for a while, its oldest connection gives way to another of its own.
    fixture.now += Duration::from_secs(20).into();
    let more = fixture.connect(0);
    assert!(fixture.is_served(0, more));
    assert!(fixture.is_served(2, client));
}

#[test]
fn a_record_that_is_never_whole_ends_its_connection() {
    let mut fixture = Fixture::new(1);
    let (client, silent) = (fixture.connect(0), fixture.connect(0));
    let begun = (100 | 1_u32 << 31).to_be_bytes();
    fixture.machines[0]
        .socket(client)
        .send_slice(&begun)
        .unwrap();
    for _ in 0..5 {
        fixture.now += Duration::from_secs(11).into();
        let end = fixture.now + Duration::from_millis(20).into();
        fixture.until("time", |fixture| fixture.now >= end);
        assert_eq!(fixture.open(0, &[client, silent]), 2);
        fixture.machines[0].socket(client).send_slice(&[0]).unwrap();
    }
    fixture.now += Duration::from_secs(6).into();
    fixture.until("its end", |fixture| fixture.open(0, &[client]) == 0);
    assert!(fixture.is_served(0, silent));
}
