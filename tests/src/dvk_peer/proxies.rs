//! The node's two proxies: one connection in, one out, commands in order.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use super::Shared;
use super::kernel::Outgoing;
use super::layout::Frame;

/// First port of every node's proxies.
const PORTS: u16 = 3000;

/// The proxies. Dropping them closes both connections, as a power failure of the node does.
pub(crate) struct Proxies {
    stop: Arc<AtomicBool>,
    outgoing: Arc<Mutex<Option<TcpStream>>>,
    incoming: Arc<Mutex<Option<TcpStream>>>,
    listening: SocketAddr,
    /// The kernel's output for the sender proxy. `None` at the end.
    answers: Option<Sender<Outgoing>>,
    threads: Vec<JoinHandle<()>>,
}

impl Proxies {
    pub(crate) fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let setup = &shared.setup;
        let port = |id: i32| PORTS + u16::try_from(id).expect("a node's id is small");
        let listening = SocketAddr::from((setup.address, port(setup.other)));
        let target = SocketAddrV4::new(setup.other_address, port(setup.id));
        let from = setup.address;
        let listener = TcpListener::bind(listening)?;
        let mut proxies = Self {
            stop: Arc::new(AtomicBool::new(false)),
            outgoing: Arc::default(),
            incoming: Arc::default(),
            listening,
            answers: None,
            threads: Vec::new(),
        };
        let (answers, queue) = channel::<Outgoing>();
        proxies.answers = Some(answers.clone());
        let (stop, incoming, reading) = (
            proxies.stop.clone(),
            proxies.incoming.clone(),
            shared.clone(),
        );
        proxies.threads.push(thread::spawn(move || {
            receive(&reading, &listener, &stop, &incoming, &answers);
        }));
        let (stop, outgoing) = (proxies.stop.clone(), proxies.outgoing.clone());
        let connecting = shared.clone();
        proxies.threads.push(thread::spawn(move || {
            keep_connected(&connecting, from, target, &stop, &outgoing);
        }));
        let outgoing = proxies.outgoing.clone();
        proxies.threads.push(thread::spawn(move || {
            for answer in queue {
                // The time in the proxy's queue.
                thread::sleep(shared.setup.queued);
                // The descriptor is free once the proxy has fetched the command, before it is sent.
                note(&shared, |kernel| kernel.sent(answer.busy));
                write(
                    &outgoing,
                    &[answer.frame.header, answer.frame.payload].concat(),
                );
            }
        }));
        Ok(proxies)
    }

    /// Queues the kernel's output for the sender proxy.
    pub(crate) fn put(&self, outgoing: impl IntoIterator<Item = Outgoing>) {
        let Some(answers) = &self.answers else {
            return;
        };
        for outgoing in outgoing {
            // The writer lives while there are senders.
            let _ = answers.send(outgoing);
        }
    }

    pub(crate) fn send(&self, bytes: &[u8]) {
        write(&self.outgoing, bytes);
    }
}

fn write(outgoing: &Mutex<Option<TcpStream>>, bytes: &[u8]) {
    let mut outgoing = outgoing.lock();
    if let Some(stream) = outgoing.as_mut() {
        // A proxy without a peer loses its output.
        let _ = stream.write_all(bytes);
    }
}

/// Accepts connections, one after the other, and reads commands.
fn receive(
    shared: &Shared,
    listener: &TcpListener,
    stop: &AtomicBool,
    incoming: &Mutex<Option<TcpStream>>,
    answers: &Sender<Outgoing>,
) {
    while let Ok((stream, _)) = listener.accept() {
        if !keep(incoming, stream.try_clone().ok(), stop) {
            return;
        }
        // The connection stays open unless it is silent for this long.
        if stream.set_read_timeout(shared.setup.silence).is_err() {
            return;
        }
        note(shared, |kernel| {
            kernel.connected.0 = true;
            kernel.connections += 1;
        });
        // Ends when the other node closes the connection or is silent for too long, or when the
        // test stops this node.
        let _ = read_all(shared, stream, answers);
        *incoming.lock() = None;
        note(shared, |kernel| kernel.connected.0 = false);
    }
}

/// Stores `stream` so that the node's end closes it, unless the node has ended.
fn keep(place: &Mutex<Option<TcpStream>>, stream: Option<TcpStream>, stop: &AtomicBool) -> bool {
    let mut place = place.lock();
    // Read under the lock: an end from now on closes the stream.
    let goes_on = !stop.load(Ordering::Acquire);
    if goes_on {
        *place = stream;
    }
    goes_on
}

fn note(shared: &Shared, change: impl FnOnce(&mut super::Kernel)) {
    change(&mut shared.lock());
    shared.changed.notify_all();
}

fn read_all(shared: &Shared, mut stream: TcpStream, answers: &Sender<Outgoing>) -> io::Result<()> {
    loop {
        let mut frame = Frame::new(shared.setup.layout);
        stream.read_exact(&mut frame.header)?;
        let length = frame.get(super::Field::Length);
        frame.payload = vec![0; usize::try_from(length).unwrap_or(0).min(65_536)];
        stream.read_exact(&mut frame.payload)?;
        let answer = shared.lock().put(frame);
        shared.changed.notify_all();
        if let Some(answer) = answer {
            // The writer lives while there are senders.
            let _ = answers.send(answer);
        }
    }
}

/// Connects repeatedly, and notices when the other node closes the connection.
fn keep_connected(
    shared: &Shared,
    from: Ipv4Addr,
    target: SocketAddrV4,
    stop: &AtomicBool,
    outgoing: &Mutex<Option<TcpStream>>,
) {
    while !stop.load(Ordering::Acquire) {
        let Ok(stream) = connect_from(from, target) else {
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        let watched = stream.try_clone();
        if !keep(outgoing, Some(stream), stop) {
            return;
        }
        note(shared, |kernel| kernel.connected.1 = true);
        if let Ok(mut watched) = watched {
            // This connection has no input but its end.
            let _ = watched.read(&mut [0]);
        }
        *outgoing.lock() = None;
        note(shared, |kernel| {
            kernel.connected.1 = false;
            kernel.dropped = true;
        });
    }
}

/// Connects from an address of the node's own.
pub(crate) fn connect_from(from: Ipv4Addr, to: SocketAddrV4) -> io::Result<TcpStream> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    bind(&socket, &SocketAddrV4::new(from, 0))?;
    connect(&socket, &to)?;
    Ok(TcpStream::from(socket))
}

impl Drop for Proxies {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for stream in [&self.outgoing, &self.incoming] {
            if let Some(stream) = stream.lock().as_ref() {
                // The connection may be closed already.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        self.answers = None;
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.listening);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "a proxy panicked");
        }
    }
}
