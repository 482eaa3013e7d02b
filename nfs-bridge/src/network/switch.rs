//! A virtual Ethernet switch: machines at Unix sockets and other links, and this program's network
//! stack.
//!
//! | socket | machines | frames |
//! | --- | --- | --- |
//! | streams | QEMU's `-netdev stream`, one connection each | length (4 bytes, big-endian), frame |
//! | packets | UML's `transport=bess`, one connection each | one in each packet |
//! | TAP device | the host, and what it has bridged to the device | one in each read and write |
//! | datagrams | QEMU's `-netdev dgram`, known by their sockets' paths | one in each datagram |
//!
//! It learns from the frames where each address is. A frame to another machine goes there, and one
//! to an unknown address or to all goes to all, as in any switch. A machine that does not take its
//! frames loses them.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gangplank_service::rate_limited;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{SocketFlags, accept_with};

use super::line::Line;

/// Longest frame that machines may send, in bytes: jumbo frames, and headers.
pub(super) const MAX_FRAME: usize = 9216 + 18;

/// Shortest frame: two addresses and a type.
const MIN_FRAME: usize = 14;

/// Most machines at once.
const MAX_MACHINES: usize = 128;

/// Most addresses that are remembered.
const MAX_ADDRESSES: usize = 4096;

/// Most frames that wait for one machine.
const MAX_WAITING: usize = 1024;

/// Most frames that are read from one socket before the others get their turn.
pub(super) const BURST: usize = 64;

/// An Ethernet address.
pub(super) type Mac = [u8; 6];

/// A frame, shared by the machines that it waits for.
pub(super) type Frame = Arc<[u8]>;

/// A machine by its number.
type MachineId = u64;

#[derive(Debug)]
struct Machine {
    line: Line,
    /// Frames that wait until the machine takes them.
    waiting: VecDeque<Frame>,
}

/// The sockets at which machines are.
#[derive(Debug, Default)]
pub(super) struct SwitchSockets {
    /// Those that listen for streams.
    pub(super) streams: Vec<UnixListener>,
    /// Those that listen for connections of packets.
    pub(super) packets: Vec<OwnedFd>,
    /// Those to which datagrams are sent.
    pub(super) datagrams: Vec<UnixDatagram>,
    /// Links that are there from the beginning.
    pub(super) links: Vec<Line>,
}

/// The switch.
#[derive(Debug)]
pub(super) struct Switch {
    /// The address of this program's stack.
    own: Mac,
    sockets: SwitchSockets,
    machines: HashMap<MachineId, Machine>,
    by_path: HashMap<(usize, PathBuf), MachineId>,
    next_id: MachineId,
    addresses: HashMap<Mac, MachineId>,
    /// Frames for the stack.
    inbox: VecDeque<Frame>,
}

impl Switch {
    /// A switch with these sockets, for a stack with the address `own`.
    pub(super) fn new(own: Mac, mut sockets: SwitchSockets) -> io::Result<Self> {
        for listener in &sockets.streams {
            listener.set_nonblocking(true)?;
        }
        for listener in &sockets.packets {
            rustix::io::ioctl_fionbio(listener, true)?;
        }
        for socket in &sockets.datagrams {
            socket.set_nonblocking(true)?;
        }
        let links = std::mem::take(&mut sockets.links);
        let mut switch = Self {
            own,
            sockets,
            machines: HashMap::new(),
            by_path: HashMap::new(),
            next_id: 0,
            addresses: HashMap::new(),
            inbox: VecDeque::new(),
        };
        for link in links {
            switch.add(link);
        }
        Ok(switch)
    }

    /// What to wait for.
    pub(super) fn poll_fds(&self) -> Vec<PollFd<'_>> {
        let sockets = &self.sockets;
        let streams = sockets.streams.iter().map(AsFd::as_fd);
        let mut fds: Vec<_> = streams
            .chain(sockets.packets.iter().map(AsFd::as_fd))
            .chain(sockets.datagrams.iter().map(AsFd::as_fd))
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        for machine in self.machines.values() {
            let mut flags = PollFlags::IN;
            if !machine.waiting.is_empty() {
                flags |= PollFlags::OUT;
            }
            let fd = machine.line.fd();
            fds.extend(fd.map(|fd| PollFd::from_borrowed_fd(fd, flags)));
        }
        fds
    }

    /// Whether frames wait for a machine without a connection. The kernel does not tell when such a
    /// machine takes frames again.
    pub(super) fn has_waiting_datagrams(&self) -> bool {
        let mut machines = self.machines.values();
        machines.any(|machine| machine.line.fd().is_none() && !machine.waiting.is_empty())
    }

    /// The next frame for the stack.
    pub(super) fn next_frame(&mut self) -> Option<Frame> {
        self.inbox.pop_front()
    }

    /// Sends a frame of the stack.
    pub(super) fn send(&mut self, frame: Frame) {
        self.forward(None, &frame);
    }

    /// Takes what machines have sent, and sends what waits for them.
    pub(super) fn exchange(&mut self) {
        self.accept();
        self.receive_datagrams();
        self.receive_connections();
        self.flush();
    }

    fn accept(&mut self) {
        let mut lines = Vec::new();
        for listener in &self.sockets.streams {
            while let Ok((stream, _)) = listener.accept() {
                if stream.set_nonblocking(true).is_ok() {
                    lines.push(Line::stream(stream));
                }
            }
        }
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        for listener in &self.sockets.packets {
            while let Ok(packets) = accept_with(listener, flags) {
                lines.push(Line::Packets(packets));
            }
        }
        for line in lines {
            self.add(line);
        }
    }

    /// Adds a machine, if there is room.
    fn add(&mut self, line: Line) -> Option<MachineId> {
        if self.machines.len() >= MAX_MACHINES {
            rate_limited!(
                warn,
                "a machine is refused: there are {MAX_MACHINES} already"
            );
            return None;
        }
        let id = self.next_id;
        self.next_id += 1;
        let waiting = VecDeque::new();
        self.machines.insert(id, Machine { line, waiting });
        Some(id)
    }

    fn receive_datagrams(&mut self) {
        let mut buffer = vec![0; MAX_FRAME];
        for socket in 0..self.sockets.datagrams.len() {
            for _ in 0..BURST {
                let received = match self.sockets.datagrams.get(socket) {
                    Some(datagrams) => datagrams.recv_from(&mut buffer),
                    None => break,
                };
                let Ok((len, from)) = received else { break };
                let Some(path) = from.as_pathname() else {
                    rate_limited!(warn, "a frame from a socket without a path is dropped");
                    continue;
                };
                if let Some(id) = self.datagram_machine(socket, path) {
                    let frame = buffer.get(..len).unwrap_or_default().into();
                    self.received(id, &frame);
                }
            }
        }
    }

    /// The machine at a datagram socket that sends from `path`.
    fn datagram_machine(&mut self, socket: usize, path: &Path) -> Option<MachineId> {
        let key = (socket, path.to_owned());
        if let Some(id) = self.by_path.get(&key) {
            return Some(*id);
        }
        let path = key.1.clone();
        let id = self.add(Line::Datagram { socket, path })?;
        self.by_path.insert(key, id);
        Some(id)
    }

    fn receive_connections(&mut self) {
        let ids: Vec<_> = self.machines.keys().copied().collect();
        for id in ids {
            let Some(machine) = self.machines.get_mut(&id) else {
                continue;
            };
            match machine.line.receive() {
                Ok(frames) => {
                    for frame in frames {
                        self.received(id, &frame);
                    }
                }
                Err(error) => {
                    rate_limited!(debug, "a machine has left: {error}");
                    self.remove(id);
                }
            }
        }
    }

    fn received(&mut self, from: MachineId, frame: &Frame) {
        let Some((_, source)) = addresses(frame) else {
            return;
        };
        // The stack's address and those of groups are no machine's.
        if source != self.own && source[0] & 1 == 0 {
            let is_known = self.addresses.contains_key(&source);
            if is_known || self.addresses.len() < MAX_ADDRESSES {
                self.addresses.insert(source, from);
            }
        }
        self.forward(Some(from), frame);
    }

    /// Sends a frame where it belongs. `from` is `None` for the stack.
    fn forward(&mut self, from: Option<MachineId>, frame: &Frame) {
        let Some((destination, _)) = addresses(frame) else {
            return;
        };
        let is_group = destination[0] & 1 != 0;
        if from.is_some() && (destination == self.own || is_group) {
            self.inbox.push_back(Arc::clone(frame));
        }
        if destination == self.own {
            return;
        }
        let known = match is_group {
            true => None,
            false => self.addresses.get(&destination).copied(),
        };
        for (id, machine) in &mut self.machines {
            let is_addressed = Some(*id) != from && known.is_none_or(|known| known == *id);
            if is_addressed && machine.waiting.len() < MAX_WAITING {
                machine.waiting.push_back(Arc::clone(frame));
            }
        }
    }

    /// Sends what waits, as far as the machines take it.
    pub(super) fn flush(&mut self) {
        let mut gone = Vec::new();
        for (id, machine) in &mut self.machines {
            let sent = machine
                .line
                .send(&self.sockets.datagrams, &mut machine.waiting);
            if let Err(error) = sent {
                rate_limited!(debug, "a machine has left: {error}");
                gone.push(*id);
            }
        }
        for id in gone {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: MachineId) {
        self.addresses.retain(|_, at| *at != id);
        let removed = self.machines.remove(&id);
        if let Some(Line::Datagram { socket, path }) = removed.map(|machine| machine.line) {
            self.by_path.remove(&(socket, path));
        }
    }
}

/// Destination and source of a frame.
fn addresses(frame: &[u8]) -> Option<(Mac, Mac)> {
    if frame.len() < MIN_FRAME {
        return None;
    }
    let (destination, rest) = frame.split_first_chunk()?;
    let source = rest.first_chunk()?;
    Some((*destination, *source))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use rustix::net::{RecvFlags, SendFlags, SocketAddrUnix, connect, recv};

    use super::*;
    use crate::network::config::{listen_for_packets, packet_socket};

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const ALL: Mac = [0xff; 6];

    fn frame(to: Mac, from: Mac, content: &[u8]) -> Vec<u8> {
        [&to[..], &from, &[8, 0], content].concat()
    }

    /// A switch with a listening socket and a datagram socket.
    fn switch(directory: &Path) -> Switch {
        let listener = UnixListener::bind(directory.join("stream")).unwrap();
        let datagrams = UnixDatagram::bind(directory.join("dgram")).unwrap();
        let sockets = SwitchSockets {
            streams: vec![listener],
            packets: vec![listen_for_packets(&directory.join("packet")).unwrap()],
            datagrams: vec![datagrams],
            links: Vec::new(),
        };
        Switch::new(OWN, sockets).unwrap()
    }

    fn send(stream: &mut UnixStream, frame: &[u8]) {
        let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
        stream.write_all(&[&length[..], frame].concat()).unwrap();
    }

    fn receive(stream: &mut UnixStream) -> Vec<u8> {
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
        stream.read_exact(&mut frame).unwrap();
        frame
    }

    #[test]
    fn machines_at_all_kinds_of_socket_reach_the_stack_and_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let mut switch = switch(directory.path());
        let mut qemu = UnixStream::connect(directory.path().join("stream")).unwrap();
        let other = UnixDatagram::bind(directory.path().join("other")).unwrap();
        other.connect(directory.path().join("dgram")).unwrap();
        let uml = packet_socket().unwrap();
        let at = SocketAddrUnix::new(directory.path().join("packet")).unwrap();
        connect(&uml, &at).unwrap();
        let (qemu_mac, uml_mac) = ([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 3]);
        let other_mac = [2, 0, 0, 0, 0, 4];
        let send_packet = |frame: &[u8]| {
            rustix::net::send(&uml, frame, SendFlags::empty()).unwrap();
        };
        // Each is known by a frame to all.
        let hello = frame(ALL, uml_mac, b"hello");
        send(&mut qemu, &frame(ALL, qemu_mac, b"hello"));
        send_packet(&hello);
        other.send(&frame(ALL, other_mac, b"hello")).unwrap();
        for _ in 0..3 {
            switch.exchange();
        }
        let got = [receive(&mut qemu), receive(&mut qemu)];
        assert!(got.contains(&hello));
        assert_eq!(switch.inbox.len(), 3);
        // From one to the other, and not to the stack.
        let private = frame(qemu_mac, uml_mac, b"private");
        send_packet(&private);
        switch.exchange();
        assert_eq!(receive(&mut qemu), private);
        assert_eq!(switch.inbox.len(), 3);
        // From the stack, after what came before.
        let mut buffer = [0; 64];
        other.set_nonblocking(true).unwrap();
        rustix::io::ioctl_fionbio(&uml, true).unwrap();
        while other.recv(&mut buffer).is_ok() {}
        while recv(&uml, &mut buffer[..], RecvFlags::empty()).is_ok() {}
        for mac in [other_mac, uml_mac] {
            switch.send(frame(mac, OWN, b"answer").into());
        }
        switch.flush();
        let len = other.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..len], frame(other_mac, OWN, b"answer"));
        let (_, len) = recv(&uml, &mut buffer[..], RecvFlags::empty()).unwrap();
        assert_eq!(buffer[..len], frame(uml_mac, OWN, b"answer"));
    }

    #[test]
    fn a_machine_that_breaks_the_rules_is_disconnected_and_others_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let mut switch = switch(directory.path());
        let mut bad = UnixStream::connect(directory.path().join("stream")).unwrap();
        let mut good = UnixStream::connect(directory.path().join("stream")).unwrap();
        bad.write_all(&[0xff; 64]).unwrap();
        send(&mut good, b"short");
        switch.exchange();
        switch.exchange();
        assert_eq!(bad.read(&mut [0; 1]).unwrap(), 0);
        send(&mut good, &frame(OWN, [2, 0, 0, 0, 0, 2], b"hello"));
        switch.exchange();
        assert_eq!(switch.inbox.len(), 1);
    }

    #[test]
    fn a_machine_that_takes_nothing_loses_frames_and_costs_no_memory_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let mut switch = switch(directory.path());
        let _stuck = UnixStream::connect(directory.path().join("stream")).unwrap();
        switch.exchange();
        for _ in 0..MAX_WAITING * 4 {
            switch.send(frame(ALL, OWN, &[0; 1400]).into());
            switch.flush();
        }
        let machine = switch.machines.values().next().unwrap();
        assert_eq!(machine.waiting.len(), MAX_WAITING);
    }
}
