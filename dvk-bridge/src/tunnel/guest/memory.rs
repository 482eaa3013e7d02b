//! The bytes of a request as DVK's copies see them: readable ones, and writable ones behind them.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use gangplank_rings::Chain;
use gangplank_vhost_backend::Memory;

use crate::endpoint::{NotShared, RemoteMemory};
use crate::tunnel::wire::MAX_BYTES;

/// The first address.
const FIRST: u32 = 0x1000_0000;

/// Bytes of the address space that a request has.
const WINDOW: u32 = 4 << 20;

const _: () = assert!(WINDOW >= 2 * MAX_BYTES);

/// Windows. Each is used again only after all others, so that a late copy of an earlier request
/// reaches no later one.
const WINDOWS: u32 = 512;

static USED: AtomicU32 = AtomicU32::new(0);

/// One request's bytes in the guest's memory.
#[derive(Debug)]
pub(super) struct RequestMemory<'a> {
    memory: &'a Memory,
    chain: &'a Chain,
    address: u32,
    is_fault: AtomicBool,
}

impl<'a> RequestMemory<'a> {
    pub(super) fn new(memory: &'a Memory, chain: &'a Chain) -> Self {
        let window = USED.fetch_add(1, Ordering::Relaxed) % WINDOWS;
        Self {
            memory,
            chain,
            address: FIRST + window * WINDOW,
            is_fault: AtomicBool::new(false),
        }
    }

    /// Where the readable bytes are.
    pub(super) const fn address(&self) -> u32 {
        self.address
    }

    /// Whether the guest's memory could not be read or written where its request says.
    pub(super) fn is_fault(&self) -> bool {
        self.is_fault.load(Ordering::Relaxed)
    }

    /// The offset of `address`, if `bytes` bytes there are in the window.
    fn offset(&self, address: u32, bytes: usize) -> Option<u64> {
        let offset = u64::from(address.checked_sub(self.address)?);
        let end = offset.checked_add(u64::try_from(bytes).ok()?)?;
        (end <= u64::from(WINDOW)).then_some(offset)
    }

    fn note(&self, copied: std::io::Result<bool>) -> Option<bool> {
        if copied.is_err() {
            self.is_fault.store(true, Ordering::Relaxed);
        }
        copied.ok()
    }
}

impl RemoteMemory for RequestMemory<'_> {
    fn read(&self, address: u32, into: &mut [u8]) -> Result<(), NotShared> {
        let bytes = into.len();
        let copied = self
            .offset(address, bytes)
            .and_then(|offset| self.note(self.chain.read_at(self.memory, offset, into)));
        match copied {
            Some(true) => Ok(()),
            _ => Err(NotShared { address, bytes }),
        }
    }

    fn write(&self, address: u32, from: &[u8]) -> Result<(), NotShared> {
        let bytes = from.len();
        let offset = self.offset(address, bytes);
        let offset = offset.and_then(|offset| offset.checked_sub(self.chain.readable_len()));
        let copied =
            offset.and_then(|offset| self.note(self.chain.write_at(self.memory, offset, from)));
        match copied {
            Some(true) => Ok(()),
            _ => Err(NotShared { address, bytes }),
        }
    }
}
