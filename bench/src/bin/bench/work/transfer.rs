//! READ and WRITE of a file of 64 MiB, forward or at random.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use gangplank_fuse::reply::decode_write;
use gangplank_fuse::{NodeId, Operation, ReadIn, WriteIn, WriteOut};
use rustix::fs::{Advice, OFlags, fadvise};

use super::open::release;
use crate::device::{Device, RequestKind};
use crate::tree::{LARGE, LARGE_LEN};
use crate::workload::{Forgets, Next, Reply, Workload, succeeded};

/// The direction of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Out of the file.
    Read,
    /// Into the file.
    Write,
}

/// The order of the offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// From the beginning to the end, repeatedly.
    Forward,
    /// From the beginning to the end, once, with none of the file in the host's cache.
    Cold,
    /// At random.
    Random,
    /// At random, with none of the file in the host's cache.
    ColdRandom,
}

/// A random pass over a cold file reads 1/16 of it, so that it rarely meets pages that it brought
/// into the cache.
const SCATTERED: u64 = 16;

impl Order {
    /// Whether the file is dropped from the cache first, and so is read only once.
    pub(super) const fn is_cold(self) -> bool {
        matches!(self, Self::Cold | Self::ColdRandom)
    }
}

pub(super) struct Transfer {
    direction: Direction,
    size: usize,
    offsets: Offsets,
    file: PathBuf,
    node: NodeId,
    handle: u64,
    /// The current offset of each flow.
    flows: Vec<u64>,
}

impl Transfer {
    pub(super) fn new(direction: Direction, size: usize, order: Order, share: &Path) -> Self {
        Self {
            direction,
            size,
            offsets: Offsets::new(size, order),
            file: share.join(LARGE.to_string_lossy().as_ref()),
            node: NodeId::ROOT,
            handle: 0,
            flows: Vec::new(),
        }
    }

    fn operation(&self, offset: u64) -> Operation<'static> {
        let size = u32::try_from(self.size).unwrap_or(u32::MAX);
        match self.direction {
            Direction::Read => Operation::Read(ReadIn {
                fh: self.handle,
                offset,
                size,
                ..ReadIn::default()
            }),
            Direction::Write => Operation::Write(WriteIn {
                fh: self.handle,
                offset,
                size,
                ..WriteIn::default()
            }),
        }
    }
}

impl Workload for Transfer {
    fn request_kinds(&self) -> Vec<RequestKind<'_>> {
        let (sent, answer, received) = match self.direction {
            Direction::Read => (0, 0, self.size),
            Direction::Write => (self.size, size_of::<WriteOut>(), 0),
        };
        vec![RequestKind {
            sample: self.operation(0),
            sent,
            answer,
            received,
        }]
    }

    fn prepare(&mut self, device: &mut Device, flows: usize) -> Result<()> {
        self.node = device.lookup(NodeId::ROOT, LARGE)?;
        self.handle = device.open_file(self.node, OFlags::RDWR.bits())?;
        self.flows = vec![0; flows];
        if self.offsets.order.is_cold() {
            drop_from_memory(&self.file)?;
        }
        Ok(())
    }

    fn begin(&mut self, flow: usize) {
        let next = self.offsets.next();
        if let Some(offset) = self.flows.get_mut(flow) {
            *offset = next;
        }
    }

    fn request(&self, flow: usize, _: usize) -> (NodeId, Operation<'_>) {
        let offset = self.flows.get(flow).copied().unwrap_or_default();
        (self.node, self.operation(offset))
    }

    fn answered(&mut self, _: usize, reply: &Reply<'_>, _: &mut Forgets) -> Result<Next> {
        succeeded(reply)?;
        let moved = match self.direction {
            Direction::Read => reply.answer.received,
            Direction::Write => decode_write(reply.answer.payload)?.size as usize,
        };
        ensure!(moved == self.size, "{moved} of {} bytes moved", self.size);
        Ok(Next::Done)
    }

    fn is_once(&self) -> bool {
        self.offsets.order.is_cold()
    }

    fn is_over(&self) -> bool {
        self.offsets.is_over()
    }

    fn clean_up(&mut self, device: &mut Device) -> Result<()> {
        device.call(self.node, release(self.handle))?;
        device.forget(self.node, 1)
    }
}

/// A sequence of offsets in the file.
pub(crate) struct Offsets {
    size: u64,
    order: Order,
    done: u64,
    /// State of Marsaglia's xorshift generator (2003), so that every daemon gets the same offsets.
    state: u64,
}

impl Offsets {
    /// Offsets for transfers of `size` bytes.
    pub(crate) const fn new(size: usize, order: Order) -> Self {
        Self {
            size: size as u64,
            order,
            done: 0,
            state: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// The next offset.
    pub(crate) const fn next(&mut self) -> u64 {
        let count = LARGE_LEN / self.size;
        let number = match self.order {
            Order::Forward | Order::Cold => self.done,
            Order::Random | Order::ColdRandom => {
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                self.state
            }
        };
        self.done += 1;
        number % count * self.size
    }

    pub(super) fn is_over(&self) -> bool {
        let offsets = LARGE_LEN / self.size;
        match self.order {
            Order::Cold => self.done >= offsets,
            Order::ColdRandom => self.done >= offsets / SCATTERED,
            Order::Forward | Order::Random => false,
        }
    }
}

/// Drops a file's data from the host's cache.
pub(super) fn drop_from_memory(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(())
}
