//! The bytes of a request as DVK's copies see them: readable ones, and writable ones behind them.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};

use gangplank_rings::Chain;
use gangplank_vhost_backend::Memory;
use parking_lot::RwLock;

use crate::endpoint::{NotShared, RemoteMemory};
use crate::tunnel::wire::{MAX_BYTES, MAX_REPLY};

/// The first address.
const FIRST: u32 = 0x1000_0000;

/// Bytes of a window of the address space. A request has as many windows, one after another, as it
/// needs.
const WINDOW: u32 = 4 << 20;

/// Windows. Each is used again only after all others, so that a late copy of an earlier request
/// reaches no later one. The first one is random, since the tunnel before may have made an earlier
/// request.
const WINDOWS: u32 = 512;

const _: () = assert!(WINDOW as u64 * WINDOWS as u64 + FIRST as u64 <= u32::MAX as u64);
const _: () = assert!((MAX_BYTES + MAX_REPLY) / WINDOW < WINDOWS);

static USED: LazyLock<AtomicU32> =
    LazyLock::new(|| AtomicU32::new(getrandom::u32().unwrap_or_else(|_| std::process::id())));

/// The first of `count` windows that follow one another.
fn windows(count: u32) -> u32 {
    loop {
        let first = USED.fetch_add(count, Ordering::Relaxed) % WINDOWS;
        if first + count <= WINDOWS {
            return first;
        }
    }
}

/// One request's bytes in the guest's memory.
#[derive(Debug)]
pub(super) struct RequestMemory {
    memory: Arc<Memory>,
    chain: Arc<Chain>,
    address: u32,
    /// Whether the guest has the request back: nothing is copied any more.
    is_given_back: RwLock<bool>,
    is_fault: AtomicBool,
}

impl RequestMemory {
    pub(super) fn new(memory: Arc<Memory>, chain: Arc<Chain>) -> Self {
        let len = chain.readable_len() + chain.writable_len();
        let count = u32::try_from(len.div_ceil(WINDOW.into())).unwrap_or(WINDOWS);
        Self {
            memory,
            chain,
            address: FIRST + windows(count.clamp(1, WINDOWS)) * WINDOW,
            is_given_back: RwLock::new(false),
            is_fault: AtomicBool::new(false),
        }
    }

    /// Where the readable bytes are.
    pub(super) const fn address(&self) -> u32 {
        self.address
    }

    /// The guest gets the request back although it is being exchanged. Waits for a copy that is
    /// being made, and lets no other begin.
    pub(super) fn give_back(&self) {
        *self.is_given_back.write() = true;
    }

    /// Whether the guest's memory could not be read or written where its request says.
    pub(super) fn is_fault(&self) -> bool {
        self.is_fault.load(Ordering::Relaxed)
    }

    /// Does one copy, unless the guest has the request back.
    fn copy(&self, copy: impl FnOnce() -> std::io::Result<bool>) -> Option<bool> {
        let is_given_back = self.is_given_back.read();
        if *is_given_back {
            return None;
        }
        let copied = copy();
        if copied.is_err() {
            self.is_fault.store(true, Ordering::Relaxed);
        }
        copied.ok()
    }

    fn offset(&self, address: u32) -> Option<u64> {
        address.checked_sub(self.address).map(u64::from)
    }
}

impl RemoteMemory for RequestMemory {
    fn read(&self, address: u32, into: &mut [u8]) -> Result<(), NotShared> {
        let bytes = into.len();
        let copied = self
            .offset(address)
            .and_then(|offset| self.copy(|| self.chain.read_at(&*self.memory, offset, into)));
        match copied {
            Some(true) => Ok(()),
            _ => Err(NotShared { address, bytes }),
        }
    }

    fn write(&self, address: u32, from: &[u8]) -> Result<(), NotShared> {
        let bytes = from.len();
        let offset = self.offset(address);
        let offset = offset.and_then(|offset| offset.checked_sub(self.chain.readable_len()));
        let copied = offset
            .and_then(|offset| self.copy(|| self.chain.write_at(&*self.memory, offset, from)));
        match copied {
            Some(true) => Ok(()),
            _ => Err(NotShared { address, bytes }),
        }
    }
}
