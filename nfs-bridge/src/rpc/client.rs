//! Calls of this server to its clients, by datagrams: NLM's GRANTED and NSM's SM_NOTIFY.
//!
//! ```text
//!   call ─> port of the program, from the client's port mapper ─> call, repeated until its reply
//! ```
//!
//! The datagrams leave from the address that the client knows the server by, since clients compare
//! it. One thread repeats what was not answered.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nfs3_types::portmap::{IPPROTO_UDP, PMAP_PORT, PMAP_PROG, PROGRAM, VERSION, mapping};
use nfs3_types::rpc::{RPC_VERSION_2, accept_stat, auth_flavor, msg_type, reply_stat};
use parking_lot::{Condvar, Mutex};

use crate::xdr::{Reader, put, put_opaque};

/// Wait before the first repetition. It doubles each time.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// Longest wait before a repetition.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Repetitions after which the program is looked for at another port.
const TRIES_AT_PORT: u32 = 3;

/// Most calls without a reply. Further ones fail at once.
const MAX_CALLS: usize = 4096;

/// Most ports that are remembered.
const MAX_PORTS: usize = 1024;

/// Longest body of a verifier in a reply (RFC 5531, 8.2).
const MAX_VERIFIER: usize = 400;

/// This server's name in its credentials.
const MACHINE: &[u8] = b"gangplank-nfs";

/// Sends datagrams from the server's address.
pub trait SendDatagram: Send + Sync {
    /// Sends one, or loses it. `from` is the address of the server that the client knows.
    fn send(&self, from: IpAddr, to: SocketAddr, datagram: Vec<u8>);
}

/// A call to a client.
#[derive(Debug, Clone)]
pub struct ClientCall {
    /// The server's address that the client knows.
    pub from: IpAddr,
    /// The client.
    pub to: IpAddr,
    /// The program.
    pub program: u32,
    /// Its version.
    pub version: u32,
    /// The procedure.
    pub procedure: u32,
    /// The arguments, encoded.
    pub args: Vec<u8>,
    /// How long the call is repeated.
    pub limit: Duration,
}

/// Takes the results of a call; `None` if there was no reply.
pub type Done = Box<dyn FnOnce(Option<&[u8]>) + Send>;

/// A program of a client.
type ClientProgram = (IpAddr, u32, u32);

struct Running {
    call: ClientCall,
    done: Done,
    /// The client's port; `None` while its port mapper is asked for it.
    port: Option<u16>,
    tries: u32,
    wait: Duration,
    next: Instant,
    end: Instant,
}

#[derive(Default)]
struct State {
    /// By their numbers (xid).
    calls: HashMap<u32, Running>,
    ports: HashMap<ClientProgram, u16>,
}

/// Calls clients.
pub struct RpcClient {
    transport: Box<dyn SendDatagram>,
    state: Mutex<State>,
    changed: Condvar,
}

impl std::fmt::Debug for RpcClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RpcClient").finish_non_exhaustive()
    }
}

impl RpcClient {
    /// Starts the thread that repeats calls.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(transport: Box<dyn SendDatagram>) -> io::Result<Arc<Self>> {
        let client = Arc::new(Self {
            transport,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let runner = Arc::clone(&client);
        thread::Builder::new()
            .name("nfs_callback".to_owned())
            .spawn(move || runner.run())?;
        Ok(client)
    }

    /// Calls a client. `done` is called once, on any thread, and must not wait.
    pub fn call(&self, call: ClientCall, done: Done) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let xid = getrandom::u32().ok();
        let xid = xid.filter(|xid| !state.calls.contains_key(xid));
        let (Some(xid), true) = (xid, state.calls.len() < MAX_CALLS) else {
            drop(state);
            return done(None);
        };
        let running = Running {
            port: state.ports.get(&program_of(&call)).copied(),
            done,
            tries: 0,
            wait: FIRST_WAIT,
            next: now,
            end: now + call.limit,
            call,
        };
        state.calls.insert(xid, running);
        drop(state);
        self.changed.notify_one();
    }

    /// Takes a datagram that is no call, from a client.
    pub fn received(&self, from: SocketAddr, datagram: &[u8]) {
        let mut state = self.state.lock();
        let Some((xid, results)) = parse_reply(datagram) else {
            return;
        };
        let Some(running) = state.calls.get_mut(&xid) else {
            return;
        };
        if running.call.to != from.ip().to_canonical() {
            return;
        }
        if running.port.is_none() {
            let port = results.and_then(|results| Reader::new(results).u32().ok());
            let port = port.and_then(|port| u16::try_from(port).ok());
            // Port 0: the program is not there yet.
            let Some(port) = port.filter(|port| *port != 0) else {
                return;
            };
            running.port = Some(port);
            running.tries = 0;
            running.wait = FIRST_WAIT;
            running.next = Instant::now();
            let program = program_of(&running.call);
            if state.ports.len() >= MAX_PORTS {
                state.ports.clear();
            }
            state.ports.insert(program, port);
            // A late copy of this reply must not be taken for that of the call.
            if let (Some(running), Ok(other)) = (state.calls.remove(&xid), getrandom::u32()) {
                state.calls.insert(other, running);
            }
            drop(state);
            self.changed.notify_one();
            return;
        }
        let running = state.calls.remove(&xid);
        drop(state);
        if let Some(running) = running {
            (running.done)(results);
        }
    }

    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            let now = Instant::now();
            let late: Vec<_> = state
                .calls
                .extract_if(|_, running| running.end <= now)
                .collect();
            let mut datagrams = Vec::new();
            let State { calls, ports } = &mut *state;
            for (xid, running) in calls.iter_mut().filter(|(_, running)| running.next <= now) {
                if running.tries >= TRIES_AT_PORT && running.port.take().is_some() {
                    // It may have restarted, and be elsewhere.
                    ports.remove(&program_of(&running.call));
                    running.tries = 0;
                }
                let (to, datagram) = running.datagram(*xid);
                datagrams.push((running.call.from, to, datagram));
                running.tries += 1;
                running.next = now + running.wait;
                running.wait = (running.wait * 2).min(LONGEST_WAIT);
            }
            let next = calls.values().map(|running| running.next.min(running.end));
            let next = next.min();
            if late.is_empty() && datagrams.is_empty() {
                match next {
                    Some(next) => drop(self.changed.wait_until(&mut state, next)),
                    None => self.changed.wait(&mut state),
                }
                continue;
            }
            drop(state);
            for (from, to, datagram) in datagrams {
                self.transport.send(from, to, datagram);
            }
            for (_, running) in late {
                (running.done)(None);
            }
            state = self.state.lock();
        }
    }
}

const fn program_of(call: &ClientCall) -> ClientProgram {
    (call.to, call.program, call.version)
}

impl Running {
    /// What is sent now, and to where.
    fn datagram(&self, xid: u32) -> (SocketAddr, Vec<u8>) {
        let call = &self.call;
        let Some(port) = self.port else {
            let mut args = Vec::new();
            let asked = mapping {
                prog: call.program,
                vers: call.version,
                prot: IPPROTO_UDP,
                port: 0,
            };
            put(&mut args, &asked);
            let procedure = PMAP_PROG::PMAPPROC_GETPORT as u32;
            let record = record(xid, (PROGRAM, VERSION, procedure), &args);
            return (SocketAddr::new(call.to, PMAP_PORT), record);
        };
        let called = (call.program, call.version, call.procedure);
        (
            SocketAddr::new(call.to, port),
            record(xid, called, &call.args),
        )
    }
}

/// A call (RFC 5531, 9) with the credentials of root.
fn record(xid: u32, (program, version, procedure): (u32, u32, u32), args: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(128 + args.len());
    put(&mut record, &xid);
    put(&mut record, &msg_type::CALL);
    for word in [RPC_VERSION_2, program, version, procedure] {
        put(&mut record, &word);
    }
    let mut body = Vec::new();
    put(&mut body, &0_u32);
    put_opaque(&mut body, MACHINE);
    // User, group, and no further groups.
    body.extend([0; 12]);
    put(&mut record, &auth_flavor::AUTH_UNIX);
    put_opaque(&mut record, &body);
    put(&mut record, &auth_flavor::AUTH_NULL);
    put(&mut record, &0_u32);
    record.extend_from_slice(args);
    record
}

/// The number of a reply, and its results, if the call was executed. `None` if it is no reply.
fn parse_reply(datagram: &[u8]) -> Option<(u32, Option<&[u8]>)> {
    let mut reader = Reader::new(datagram);
    let xid = reader.u32().ok()?;
    if reader.u32().ok()? != msg_type::REPLY as u32 {
        return None;
    }
    let mut results = || {
        let is_accepted = reader.u32().ok()? == reply_stat::MSG_ACCEPTED as u32;
        let _flavor = reader.u32().ok()?;
        reader.opaque(MAX_VERIFIER).ok()?;
        let is_executed = reader.u32().ok()? == accept_stat::SUCCESS as u32;
        (is_accepted && is_executed).then(|| reader.rest())
    };
    Some((xid, results()))
}

/// Whether a datagram is a reply, and no call.
#[must_use]
pub fn is_reply(datagram: &[u8]) -> bool {
    parse_reply(datagram).is_some()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};

    use super::*;
    use crate::rpc::message::{Call, success};

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 2, 15));

    struct Wire(Mutex<Sender<(SocketAddr, Vec<u8>)>>);

    impl SendDatagram for Wire {
        fn send(&self, _: IpAddr, to: SocketAddr, datagram: Vec<u8>) {
            self.0.lock().send((to, datagram)).unwrap();
        }
    }

    /// Where datagrams go, and what is in them.
    type Sent = Receiver<(SocketAddr, Vec<u8>)>;

    /// A client, what it sends, and the results of one call.
    fn called(limit: Duration) -> (Arc<RpcClient>, Sent, Receiver<Option<Vec<u8>>>) {
        let (sender, sent) = mpsc::channel();
        let client = RpcClient::start(Box::new(Wire(Mutex::new(sender)))).unwrap();
        let (done, results) = mpsc::channel();
        let call = ClientCall {
            from: PEER,
            to: PEER,
            program: 100_021,
            version: 4,
            procedure: 5,
            args: vec![1, 2, 3, 4],
            limit,
        };
        let done = move |told: Option<&[u8]>| done.send(told.map(<[u8]>::to_vec)).unwrap();
        client.call(call, Box::new(done));
        (client, sent, results)
    }

    fn reply(datagram: &[u8], results: &[u8]) -> Vec<u8> {
        let call = Call::parse(datagram).unwrap();
        [&success(call.xid)[..], results].concat()
    }

    #[test]
    fn a_client_is_called_at_the_port_that_its_port_mapper_tells() {
        let (client, sent, results) = called(Duration::from_secs(60));
        let (to, asked) = sent.recv().unwrap();
        assert_eq!(to, SocketAddr::new(PEER, 111));
        // A stranger's answer counts for nothing.
        let stranger = SocketAddr::new("10.0.2.16".parse().unwrap(), 111);
        client.received(stranger, &reply(&asked, &[0, 0, 0, 7]));
        client.received(to, &reply(&asked, &[0, 0, 0x10, 0]));
        let (to, called) = loop {
            let (to, called) = sent.recv().unwrap();
            if to.port() != 111 {
                break (to, called);
            }
        };
        assert_eq!(to, SocketAddr::new(PEER, 0x1000));
        let call = Call::parse(&called).unwrap();
        assert_eq!(
            (call.program, call.version, call.procedure),
            (100_021, 4, 5)
        );
        assert_eq!(call.args.rest(), [1, 2, 3, 4]);
        client.received(to, &reply(&called, b"results!"));
        assert_eq!(results.recv().unwrap().unwrap(), b"results!");
    }

    #[test]
    fn a_client_that_does_not_answer_is_called_again_and_then_given_up() {
        let (_client, sent, results) = called(Duration::from_millis(1200));
        let first = sent.recv().unwrap();
        assert_eq!(sent.recv().unwrap(), first);
        assert_eq!(results.recv().unwrap(), None);
    }
}
