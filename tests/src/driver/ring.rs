//! The driver's side of one split virtqueue (virtio 1.2, 2.7). It lets a test break every rule.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

use super::error::{Error, Result};
use super::memory::Memory;

/// `VIRTQ_DESC_F_NEXT`.
pub const NEXT: u16 = 1;

/// `VIRTQ_DESC_F_WRITE`.
pub const WRITE: u16 = 2;

/// `VIRTQ_DESC_F_INDIRECT`.
pub const INDIRECT: u16 = 4;

/// Bytes of one descriptor.
pub const DESCRIPTOR_LEN: u64 = 16;

/// `VIRTQ_USED_F_NO_NOTIFY`: the daemon needs no kick.
const NO_NOTIFY: u16 = 1;

/// One entry of a descriptor table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next, with [`NEXT`].
    pub next: u16,
}

impl Descriptor {
    /// Its bytes in the table.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let (address, rest) = bytes.split_at_mut(8);
        address.copy_from_slice(&self.address.to_le_bytes());
        let (len, rest) = rest.split_at_mut(4);
        len.copy_from_slice(&self.len.to_le_bytes());
        let (flags, next) = rest.split_at_mut(2);
        flags.copy_from_slice(&self.flags.to_le_bytes());
        next.copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// The kind of descriptor by which the daemon signals used chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// An eventfd, as QEMU's.
    Event,
    /// A non-blocking pipe.
    Pipe,
    /// A non-blocking pair of stream sockets, which User Mode Linux uses as a pipe (`os_pipe`,
    /// `arch/um/os-Linux/file.c`).
    Socket,
}

/// The layout and the negotiated features of a ring.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Its number; 0 is the high-priority ring.
    pub index: u32,
    /// Descriptors: a power of two.
    pub size: u16,
    /// Chains go into indirect tables.
    pub indirect: bool,
    /// Notifications are asked for by index.
    pub event_idx: bool,
    /// What the daemon signals through.
    pub call: CallKind,
}

/// One ring.
pub struct Ring {
    layout: Layout,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    kick: OwnedFd,
    call: OwnedFd,
    /// The end of a call pipe that goes to the daemon.
    call_far: Option<OwnedFd>,
    error: OwnedFd,
    free: Vec<u16>,
    chains: HashMap<u16, ChainParts>,
    published: u16,
    kicked: u16,
    seen: u16,
}

struct ChainParts {
    descriptors: Vec<u16>,
    table: Option<(u64, usize)>,
}

/// A piece of memory in a chain.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the daemon writes it.
    pub writable: bool,
}

impl Ring {
    /// Makes an empty ring in `memory`.
    ///
    /// # Errors
    /// There is no memory or no descriptor left.
    pub fn new(memory: &mut Memory, layout: Layout) -> Result<Self> {
        let size = usize::from(layout.size);
        let parts = [16 * size, 6 + 2 * size, 6 + 8 * size];
        let [descriptors, available, used] =
            parts.map(|len| memory.allocate(len).map(|at| (at, len)));
        let [descriptors, available, used] = [descriptors?, available?, used?];
        for (address, len) in [descriptors, available, used] {
            memory.write(address, &vec![0; len]);
        }
        let event = || {
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(Error::system("making an eventfd"))
        };
        let (call, call_far) = match layout.call {
            CallKind::Event => (event()?, None),
            CallKind::Pipe => {
                let (near, far) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
                    .map_err(Error::system("making a pipe"))?;
                (near, Some(far))
            }
            CallKind::Socket => {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let (near, far) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
                    .map_err(Error::system("making a pair of sockets"))?;
                (near, Some(far))
            }
        };
        Ok(Self {
            descriptors: descriptors.0,
            available: available.0,
            used: used.0,
            kick: event()?,
            call,
            call_far,
            error: event()?,
            free: (0..layout.size).rev().collect(),
            chains: HashMap::new(),
            published: 0,
            kicked: 0,
            seen: 0,
            layout,
        })
    }

    /// Its layout.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The kick descriptor.
    #[must_use]
    pub fn kick_descriptor(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// The call descriptor.
    #[must_use]
    pub fn call_descriptor(&self) -> BorrowedFd<'_> {
        self.call_far.as_ref().unwrap_or(&self.call).as_fd()
    }

    /// The error descriptor.
    #[must_use]
    pub fn error_descriptor(&self) -> BorrowedFd<'_> {
        self.error.as_fd()
    }

    /// Closes this process's descriptors of a call pipe, so that the daemon writes into a closed
    /// one; a ring with an eventfd keeps it.
    pub fn close_call(&mut self) {
        if self.call_far.take().is_some()
            && let Ok(event) = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        {
            self.call = event;
        }
    }

    /// Fills a call pipe, so that the daemon finds no room in it. Returns the number of bytes.
    #[must_use]
    pub fn stuff_call(&self) -> usize {
        let mut stuffed = 0;
        while let Some(far) = &self.call_far {
            match rustix::io::write(far, &1u64.to_ne_bytes()) {
                Ok(count) => stuffed += count,
                Err(_) => break,
            }
        }
        stuffed
    }

    /// Reads all signals of the daemon. Returns the number of bytes.
    pub fn drain_call(&self) -> usize {
        let mut buffer = [0; 4096];
        let mut drained = 0;
        while let Ok(count @ 1..) = rustix::io::read(&self.call, &mut buffer) {
            drained += count;
            if self.call_far.is_none() {
                break;
            }
        }
        drained
    }

    /// Writes one entry of the descriptor table without checks.
    pub fn put_descriptor(&self, memory: &Memory, index: u16, descriptor: Descriptor) {
        let address = self.descriptors + DESCRIPTOR_LEN * u64::from(index);
        memory.write(address, &descriptor.to_bytes());
    }

    /// Makes the chain at `head` available without checks, and without a kick.
    pub fn publish(&mut self, memory: &Memory, head: u16) {
        let slot = u64::from(self.published % self.layout.size);
        memory.write(self.available + 4 + 2 * slot, &head.to_le_bytes());
        self.published = self.published.wrapping_add(1);
        memory.store(self.available + 2, self.published);
    }

    /// Sets the available index to any value.
    pub fn set_available_index(&mut self, memory: &Memory, index: u16) {
        self.published = index;
        memory.store(self.available + 2, index);
    }

    /// Makes a chain of `segments` available; returns its head.
    ///
    /// # Errors
    /// The ring is full, or there is no memory for an indirect table.
    pub fn publish_chain(&mut self, memory: &mut Memory, segments: &[Segment]) -> Result<u16> {
        let wanted = if self.layout.indirect {
            1
        } else {
            segments.len()
        };
        if self.free.len() < wanted {
            return Err(Error::Exhausted("descriptor"));
        }
        let descriptors = self.free.split_off(self.free.len() - wanted);
        let last = segments.len().saturating_sub(1);
        let entry = |at: usize, next: u16, segment: &Segment| Descriptor {
            address: segment.address,
            len: segment.len,
            flags: if segment.writable { WRITE } else { 0 } | if at < last { NEXT } else { 0 },
            next: if at < last { next } else { 0 },
        };
        let head = *descriptors.first().ok_or(Error::Exhausted("descriptor"))?;
        let table = if self.layout.indirect {
            let len = 16 * segments.len();
            let table = memory.allocate(len)?;
            let entries: Vec<u8> = (1u16..)
                .zip(segments)
                .enumerate()
                .flat_map(|(at, (next, segment))| entry(at, next, segment).to_bytes())
                .collect();
            memory.write(table, &entries);
            let whole = Descriptor {
                address: table,
                len: u32::try_from(len).unwrap_or(u32::MAX),
                flags: INDIRECT,
                next: 0,
            };
            self.put_descriptor(memory, head, whole);
            Some((table, len))
        } else {
            for (at, segment) in segments.iter().enumerate() {
                let next = descriptors.get(at + 1).copied().unwrap_or_default();
                if let Some(index) = descriptors.get(at) {
                    self.put_descriptor(memory, *index, entry(at, next, segment));
                }
            }
            None
        };
        self.chains.insert(head, ChainParts { descriptors, table });
        self.publish(memory, head);
        Ok(head)
    }

    /// Kicks the daemon for new chains, if it needs a kick. Returns whether it did.
    ///
    /// # Errors
    /// The kick descriptor cannot be written.
    pub fn kick(&mut self, memory: &Memory) -> Result<bool> {
        let wanted = self.wants_kick(memory);
        if wanted {
            self.kick_anyway()?;
        }
        Ok(wanted)
    }

    /// Whether the daemon needs a kick for the chains made available since the last call.
    pub fn wants_kick(&mut self, memory: &Memory) -> bool {
        // The daemon must see the index before this thread reads the event index (virtio 1.2,
        // 2.7.13.4.1).
        fence(Ordering::SeqCst);
        let wanted = if self.layout.event_idx {
            let event: u16 = memory.load(self.used + 4 + 8 * u64::from(self.layout.size));
            let passed = self.published.wrapping_sub(event).wrapping_sub(1);
            passed < self.published.wrapping_sub(self.kicked)
        } else {
            memory.load::<u16>(self.used) & NO_NOTIFY == 0
        };
        self.kicked = self.published;
        wanted
    }

    /// Kicks the daemon unconditionally.
    ///
    /// # Errors
    /// The kick descriptor cannot be written.
    pub fn kick_anyway(&self) -> Result<()> {
        rustix::io::write(&self.kick, &1u64.to_ne_bytes())
            .map_err(Error::system("kicking a ring"))
            .map(|_| ())
    }

    /// The next chain that the daemon has used: its head, and how much was written.
    ///
    /// # Errors
    /// The daemon has used something that it was not given.
    pub fn take_used(&mut self, memory: &mut Memory) -> Result<Option<(u16, u32)>> {
        if memory.load::<u16>(self.used + 2) == self.seen {
            return Ok(None);
        }
        let slot = u64::from(self.seen % self.layout.size);
        let head: u32 = memory.load(self.used + 4 + 8 * slot);
        let len: u32 = memory.load(self.used + 8 + 8 * slot);
        self.seen = self.seen.wrapping_add(1);
        let parts = u16::try_from(head)
            .ok()
            .and_then(|head| Some((head, self.chains.remove(&head)?)));
        let Some((known, parts)) = parts else {
            return Err(Error::BadUsed { head, len });
        };
        self.free.extend(parts.descriptors);
        if let Some((table, len)) = parts.table {
            memory.release(table, len);
        }
        Ok(Some((known, len)))
    }

    /// The used index, which wraps around.
    #[must_use]
    pub fn used_index(&self, memory: &Memory) -> u16 {
        memory.load(self.used + 2)
    }

    /// Asks the daemon to signal the next used chain. Returns whether there is one already.
    #[must_use]
    pub fn ask_for_notice(&self, memory: &Memory) -> bool {
        if self.layout.event_idx {
            let wish = self.available + 4 + 2 * u64::from(self.layout.size);
            memory.store(wish, self.seen);
        }
        // The daemon must see the event index before this thread reads the used index.
        fence(Ordering::SeqCst);
        self.used_index(memory) != self.seen
    }

    /// Waits until the daemon signals that something more was used, or has it already.
    ///
    /// # Errors
    /// It does not within `limit`.
    pub fn wait(&self, memory: &Memory, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            if self.ask_for_notice(memory) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap_or_default();
            let mut ready = [PollFd::new(&self.call, PollFlags::IN)];
            match poll(&mut ready, Some(&timeout)) {
                Ok(0) => {
                    let what = "a used chain was awaited";
                    return Err(Error::Late { what, limit });
                }
                Ok(_) => {
                    self.drain_call();
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(Error::system("waiting for a used chain")(errno)),
            }
        }
    }

    /// Waits until the daemon says that the ring is broken.
    ///
    /// # Errors
    /// It does not within `limit`.
    pub fn wait_for_error(&self, limit: Duration) -> Result<()> {
        let timeout = Timespec::try_from(limit).unwrap_or_default();
        let mut ready = [PollFd::new(&self.error, PollFlags::IN)];
        match poll(&mut ready, Some(&timeout)) {
            Ok(1) => Ok(()),
            _ => Err(Error::Late {
                what: "a ring's error event was awaited",
                limit,
            }),
        }
    }
}
