//! A frontend that sends what the input says.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use gangplank_vhost_user::Deadline;
use gangplank_vhost_user::message::payload::{NO_DESCRIPTOR, encode, from_u64, ring_state};
use gangplank_vhost_user::message::{FrontendReq, Message, NEED_REPLY, REPLY, VringAddr};

use crate::input::Input;

/// Descriptors of the largest ring.
pub const MAX_RING_SIZE: u16 = 64;

/// Bytes of the guest's memory.
const MEMORY_LEN: u64 = 1 << 18;

/// Where the frontend has the memory, in bytes.
const USER_ADDRESS: u64 = 0x7f00_0000_0000;

/// Bytes of the memory that a ring takes: table, available ring and used ring.
const RING_LEN: u64 = 1 << 12;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;

/// Rings of the device: more are refused.
const RINGS: u8 = 10;

/// Actions of one sequence at most.
const MAX_ACTIONS: usize = 48;

/// How long replies, and used chains, are waited for. Not every message and chain gets one.
const REPLY_TIMEOUT: Duration = Duration::from_millis(50);
const USED_TIMEOUT: Duration = Duration::from_millis(2);

/// The frontend's end of a connection.
pub struct Frontend {
    socket: UnixStream,
    memory: File,
    kicks: Vec<OwnedFd>,
    calls: Vec<OwnedFd>,
    has_kicked: bool,
}

impl Frontend {
    /// A frontend that has not sent anything.
    pub fn new(socket: UnixStream) -> Self {
        let rings = || (0..RINGS).map(|_| event()).collect();
        Self {
            socket,
            memory: memory_file(MEMORY_LEN, false),
            kicks: rings(),
            calls: rings(),
            has_kicked: false,
        }
    }

    /// Acts as the input says, until its end or until the device hangs up.
    pub fn run(mut self, input: &mut Input<'_>) {
        // Most sequences begin with a device that is set up, and a few do not.
        if input.byte() & 0xf != 0 {
            self.handshake(u64::MAX, u64::MAX);
            self.own_memory();
            self.set_up_ring(1, MAX_RING_SIZE, 1);
        }
        for _ in 0..MAX_ACTIONS {
            if input.is_empty() || !self.act(input) {
                break;
            }
        }
        self.settle();
    }

    /// Does the next thing. Returns false if the device has hung up.
    fn act(&mut self, input: &mut Input<'_>) -> bool {
        match input.byte() % 20 {
            0 => self.raw(input),
            1 => self.memory_table(input),
            2 => self.one_region(FrontendReq::ADD_MEM_REG, input),
            3 => self.one_region(FrontendReq::REM_MEM_REG, input),
            4 => {
                let area = [length(input), length(input)];
                self.send_any(FrontendReq::SET_LOG_BASE, words(&area), input)
            }
            5 => {
                let request = match input.byte() % 4 {
                    0 => FrontendReq::GET_INFLIGHT_FD,
                    _ => FrontendReq::SET_INFLIGHT_FD,
                };
                let mut payload = words(&[length(input), length(input)]);
                for _ in 0..2 {
                    payload.extend(u16::from(input.byte()).to_le_bytes());
                }
                self.send_any(request, payload, input)
            }
            6 => {
                let requests = [
                    FrontendReq::SET_VRING_NUM,
                    FrontendReq::SET_VRING_BASE,
                    FrontendReq::GET_VRING_BASE,
                    FrontendReq::SET_VRING_ENABLE,
                ];
                let request = requests[usize::from(input.byte() % 4)];
                let payload = ring_state(ring(input), u32::from(input.u16()));
                self.send_any(request, payload, input)
            }
            7 => {
                let addresses = VringAddr {
                    index: ring(input),
                    flags: input.byte().into(),
                    descriptor: USER_ADDRESS.wrapping_add(input.offset()),
                    used: USER_ADDRESS.wrapping_add(input.offset()),
                    available: USER_ADDRESS.wrapping_add(input.offset()),
                    log: input.offset(),
                };
                self.send_any(FrontendReq::SET_VRING_ADDR, encode(&addresses), input)
            }
            8 => {
                let requests = [
                    FrontendReq::SET_VRING_KICK,
                    FrontendReq::SET_VRING_CALL,
                    FrontendReq::SET_VRING_ERR,
                ];
                let request = requests[usize::from(input.byte() % 3)];
                let none = match input.byte() & 3 {
                    0 => NO_DESCRIPTOR,
                    _ => 0,
                };
                self.send_any(request, from_u64(u64::from(ring(input)) | none), input)
            }
            9 => {
                let direction = u32::from(input.byte() % 3);
                let payload = ring_state(direction, u32::from(input.byte() % 8 == 7));
                self.send_any(FrontendReq::SET_DEVICE_STATE_FD, payload, input)
            }
            10 => self.plain(FrontendReq::CHECK_DEVICE_STATE, Vec::new()),
            11 => {
                let features = 1 << (input.byte() % 64);
                self.handshake(!features, !(1 << (input.byte() % 24)))
            }
            12 => {
                let size = 1 << (input.byte() % 8);
                let (number, base) = (ring(input), u32::from(input.u16()));
                self.set_up_ring(number, size, base)
            }
            13..16 => self.write_descriptors(input),
            16..18 => self.offer(input),
            18 => self.truncate(input),
            _ => self.settle(),
        }
    }

    /// What every frontend begins with, and the features of these bits.
    fn handshake(&self, features: u64, protocol_features: u64) -> bool {
        // VERSION_1, event index, indirect descriptors, protocol features, LOG_ALL.
        let features = features & (1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | 1 << 26);
        // MQ, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS,
        // DEVICE_STATE, LOG_SHMFD.
        let known = [0, 1, 3, 5, 9, 12, 13, 15, 19];
        let known = known.iter().fold(0, |bits, bit| bits | 1_u64 << bit);
        self.plain(FrontendReq::SET_OWNER, Vec::new())
            && self.plain(FrontendReq::GET_FEATURES, Vec::new())
            && self.plain(FrontendReq::GET_PROTOCOL_FEATURES, Vec::new())
            && self.plain(
                FrontendReq::SET_PROTOCOL_FEATURES,
                from_u64(protocol_features & known),
            )
            && self.plain(FrontendReq::SET_FEATURES, from_u64(features))
    }

    /// The frontend's memory in one region.
    fn own_memory(&self) -> bool {
        let table = words(&[1, 0, MEMORY_LEN, USER_ADDRESS, 0]);
        self.send(FrontendReq::SET_MEM_TABLE, table, &[self.memory.as_fd()])
    }

    /// A ring as a driver has it.
    fn set_up_ring(&self, index: u32, size: u16, base: u32) -> bool {
        let number = u64::from(index);
        let place = USER_ADDRESS + number * RING_LEN;
        let addresses = VringAddr {
            index,
            flags: 0,
            descriptor: place,
            used: place + USED,
            available: place + AVAILABLE,
            log: 0,
        };
        let at = usize::try_from(index).unwrap_or(0) % usize::from(RINGS);
        let (kick, call) = (self.kicks[at].as_fd(), self.calls[at].as_fd());
        self.plain(FrontendReq::SET_VRING_NUM, ring_state(index, size.into()))
            && self.plain(FrontendReq::SET_VRING_BASE, ring_state(index, base))
            && self.plain(FrontendReq::SET_VRING_ADDR, encode(&addresses))
            && self.send(FrontendReq::SET_VRING_CALL, from_u64(number), &[call])
            && self.send(FrontendReq::SET_VRING_KICK, from_u64(number), &[kick])
            && self.plain(FrontendReq::SET_VRING_ENABLE, ring_state(index, 1))
    }

    /// A message of any number, length and content.
    fn raw(&self, input: &mut Input<'_>) -> bool {
        let len = usize::from(input.byte());
        let mut message = Message::new(u32::from(input.byte() % 48), input.bytes(len).to_vec());
        message.flags = match input.byte() {
            0..240 => message.flags,
            flags => flags.into(),
        };
        self.with_any_descriptors(message, input)
    }

    fn memory_table(&self, input: &mut Input<'_>) -> bool {
        let count = input.byte() % 10;
        let said = match input.byte() {
            0..240 => count,
            said => said,
        };
        let mut table = vec![u64::from(said)];
        for _ in 0..count {
            table.extend(region(input));
        }
        if input.byte().is_multiple_of(16) {
            return self.send_any(FrontendReq::SET_MEM_TABLE, words(&table), input);
        }
        let descriptors: Vec<_> = (0..count).map(|_| self.memory.as_fd()).collect();
        self.send(FrontendReq::SET_MEM_TABLE, words(&table), &descriptors)
    }

    fn one_region(&self, request: FrontendReq, input: &mut Input<'_>) -> bool {
        let mut payload = vec![0];
        payload.extend(region(input));
        match input.byte() % 4 {
            0 => self.send_any(request, words(&payload), input),
            _ => self.send(request, words(&payload), &[self.memory.as_fd()]),
        }
    }

    /// Fills descriptors of a ring's table, or of an indirect one.
    fn write_descriptors(&mut self, input: &mut Input<'_>) -> bool {
        let table = match input.byte() {
            0..160 => u64::from(ring(input)) * RING_LEN,
            _ => u64::from(input.u16()),
        };
        let first = u64::from(input.byte() % 64);
        for index in first..first + u64::from(input.byte() % 8) {
            let mut descriptor = Vec::new();
            descriptor.extend(input.offset().to_le_bytes());
            let len = match input.byte() {
                0..200 => u32::from(input.byte()) * 16,
                _ => input.u32(),
            };
            descriptor.extend(len.to_le_bytes());
            // NEXT, WRITE and INDIRECT.
            descriptor.extend(u16::from(input.byte() % 8).to_le_bytes());
            descriptor.extend(u16::from(input.byte() % 80).to_le_bytes());
            self.write(table + index * 16, &descriptor);
        }
        true
    }

    /// Offers chains, and kicks.
    fn offer(&mut self, input: &mut Input<'_>) -> bool {
        let number = ring(input);
        let available = u64::from(number) * RING_LEN + AVAILABLE;
        for _ in 0..input.byte() % 4 {
            let entry = u64::from(input.byte() % 64);
            let head = u16::from(input.byte() % 72);
            self.write(available + 4 + entry * 2, &head.to_le_bytes());
        }
        let flags_and_index = [u16::from(input.byte() & 1), u16::from(input.byte())];
        let bytes = flags_and_index.map(u16::to_le_bytes).concat();
        self.write(available, &bytes);
        if let Some(kick) = self
            .kicks
            .get(usize::try_from(number).unwrap_or(usize::MAX))
        {
            let kick = kick.try_clone().expect("a descriptor");
            File::from(kick)
                .write_all(&1_u64.to_ne_bytes())
                .expect("kicked");
            self.has_kicked = true;
        }
        true
    }

    /// Takes memory away from the device, or gives it back.
    fn truncate(&mut self, input: &mut Input<'_>) -> bool {
        let len = match input.byte() % 4 {
            0 => u64::from(input.byte()) << 12,
            _ => MEMORY_LEN,
        };
        self.memory.set_len(len).is_ok()
    }

    /// Waits until the device has carried out all messages, and for a used chain. Returns false if
    /// it has hung up.
    fn settle(&mut self) -> bool {
        if !self.plain(FrontendReq::GET_FEATURES, Vec::new()) {
            return false;
        }
        let mut received = Vec::new();
        loop {
            if !poll(&[self.socket.as_fd()], REPLY_TIMEOUT) {
                break;
            }
            let mut bytes = [0; 4096];
            // SAFETY: the buffer has that many bytes.
            let len = unsafe {
                let flags = libc::MSG_DONTWAIT;
                libc::recv(
                    self.socket.as_raw_fd(),
                    bytes.as_mut_ptr().cast(),
                    bytes.len(),
                    flags,
                )
            };
            match usize::try_from(len) {
                Ok(len @ 1..) => received.extend_from_slice(&bytes[..len]),
                _ => return false,
            }
            if is_reply_to_features(&received) {
                break;
            }
        }
        if std::mem::take(&mut self.has_kicked) {
            let calls: Vec<_> = self.calls.iter().map(AsFd::as_fd).collect();
            poll(&calls, USED_TIMEOUT);
        }
        true
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        // Like an access of a guest whose memory is gone, it may fail.
        if at < MEMORY_LEN {
            let _ = self.memory.write_all_at(bytes, at);
        }
    }

    fn plain(&self, request: FrontendReq, payload: Vec<u8>) -> bool {
        self.send(request, payload, &[])
    }

    fn send(&self, request: FrontendReq, payload: Vec<u8>, descriptors: &[BorrowedFd<'_>]) -> bool {
        let message = Message::new(request, payload);
        message
            .send(
                self.socket.as_fd(),
                descriptors,
                Deadline::after(REPLY_TIMEOUT),
            )
            .is_ok()
    }

    /// Sends a message with descriptors of any kind, and asks for an acknowledgement or not.
    fn send_any(&self, request: FrontendReq, payload: Vec<u8>, input: &mut Input<'_>) -> bool {
        self.with_any_descriptors(Message::new(request, payload), input)
    }

    fn with_any_descriptors(&self, mut message: Message, input: &mut Input<'_>) -> bool {
        let choice = input.byte();
        if choice & 0x80 != 0 {
            message.flags |= NEED_REPLY;
        }
        let count = match choice & 0x3f {
            0..40 => 1,
            40..60 => 0,
            _ => input.byte() % 10,
        };
        let descriptors: Vec<OwnedFd> = (0..count).map(|_| self.descriptor(input)).collect();
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        message
            .send(
                self.socket.as_fd(),
                &descriptors,
                Deadline::after(REPLY_TIMEOUT),
            )
            .is_ok()
    }

    /// A descriptor of any kind.
    fn descriptor(&self, input: &mut Input<'_>) -> OwnedFd {
        match input.byte() % 10 {
            0..3 => self.memory.try_clone().expect("a descriptor").into(),
            3 => memory_file(0, true).into(),
            4 => memory_file(4096 * u64::from(input.byte()), true).into(),
            5 => memory_file(1 << 16, false).into(),
            6 => event(),
            7 => {
                // Bytes, and then their end.
                let (reader, mut writer) = std::io::pipe().expect("a pipe");
                let len = usize::from(input.byte());
                writer.write_all(input.bytes(len)).expect("room");
                reader.into()
            }
            8 => std::io::pipe().expect("a pipe").1.into(),
            _ => {
                let null = File::options().read(true).write(true).open("/dev/null");
                null.expect("opened").into()
            }
        }
    }
}

/// Whether the last of these replies is that to GET_FEATURES.
fn is_reply_to_features(replies: &[u8]) -> bool {
    let Some((_, last)) = replies.split_last_chunk::<20>() else {
        return false;
    };
    let (request, flags) = (&last[..4], &last[4..8]);
    let (number, reply) = (u32::from(FrontendReq::GET_FEATURES), 1 | REPLY);
    request == number.to_le_bytes() && flags == reply.to_le_bytes()
}

/// Waits until one of these is readable or at its end. Returns whether one is.
fn poll(descriptors: &[BorrowedFd<'_>], limit: Duration) -> bool {
    let mut polled: Vec<libc::pollfd> = descriptors
        .iter()
        .map(|descriptor| libc::pollfd {
            fd: descriptor.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    let limit = i32::try_from(limit.as_millis()).expect("a short time");
    // SAFETY: the array has that many elements.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, limit) > 0 }
}

/// A ring's number; one in many is none of the device's.
fn ring(input: &mut Input<'_>) -> u32 {
    match input.byte() {
        0..128 => 1,
        number => u32::from(number % RINGS),
    }
}

/// A memory region: guest address, length, user address and offset in the file.
fn region(input: &mut Input<'_>) -> [u64; 4] {
    let address = u64::from(input.byte()) << 12;
    match input.byte() {
        0..160 => {
            let len = u64::from(1 + input.byte() % 16) << 12;
            let offset = u64::from(input.byte() % 64) << 12;
            [address, len, USER_ADDRESS.wrapping_add(address), offset]
        }
        _ => [length(input), length(input), length(input), length(input)],
    }
}

/// A number of bytes: small or large, and not always whole pages.
fn length(input: &mut Input<'_>) -> u64 {
    match input.byte() {
        0..120 => u64::from(input.byte()) << 12,
        120..160 => 1 << (input.byte() % 64),
        _ => input.offset(),
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// An eventfd.
fn event() -> OwnedFd {
    // SAFETY: the call takes no pointers.
    let event = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    assert!(event >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(event) }
}

/// A memory file, which can be cut if it is not sealed.
fn memory_file(len: u64, is_sealed: bool) -> File {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name ends with NUL.
    let file = unsafe { libc::memfd_create(c"guest".as_ptr(), flags) };
    assert!(file >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new, and nothing else owns it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(file) });
    file.set_len(len).expect("a file of this length");
    if is_sealed {
        // SAFETY: the call takes no pointers.
        let sealed =
            unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
        assert_eq!(sealed, 0, "{}", std::io::Error::last_os_error());
    }
    file
}
