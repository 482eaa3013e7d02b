//! What a guest's worker counts: requests by operation, errors, bytes, and how long they took.
//!
//! The counters lie in the arena behind the header, so that they outlive a worker and another
//! process can read a copy of them ([`crate::status::snapshot`]). Each thread that serves requests
//! has a block of its own and stores into it without locked instructions. Threads beyond [`BLOCKS`]
//! share the last block and add to it.
//!
//! A clock costs more than everything else here. So the duration is measured of one request in
//! [`SAMPLING`] of an operation, the first one included, and the beginning of the others is known
//! to a tick of the kernel (`CLOCK_MONOTONIC_COARSE`), and not noted at all of a READ that must not
//! wait for a disk.
//!
//! A build with the feature `uncounted` counts nothing. `scripts/bench --counting` compares the
//! two.
//!
//! A request is counted before its reply is published. A worker that is killed in between has
//! counted a request that the next worker counts again.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use gangplank_fuse::Opcode;
use rustix::time::ClockId;

use super::arena::{Arena, Part};
use crate::sys::clock;
use crate::sys::shared_memory::shared_struct;

/// Threads that count in a block of their own, and the block of all others.
pub const BLOCKS: usize = 65;

/// The block that threads share.
const SHARED: usize = BLOCKS - 1;

/// Operations that are told apart: opcodes are their numbers. Number 0 stands for requests without
/// a valid header.
pub const OPERATIONS: usize = 64;

/// One request of so many of an operation and thread is measured.
pub const SAMPLING: u64 = 64;

/// Limits of durations that are told apart.
pub const BUCKETS: usize = 24;

/// The upper limit of the first bucket in nanoseconds. Each further one is twice as long.
pub const FIRST_BUCKET: u64 = 256;

shared_struct! {
    /// One operation, in one thread. All numbers only grow.
    #[derive(Debug, Default)]
    pub struct Operation {
        /// Requests that were answered, or carried out without a reply.
        pub requests: AtomicU64,
        /// Those whose reply was an error.
        pub errors: AtomicU64,
        /// Bytes of requests, headers included.
        pub bytes_in: AtomicU64,
        /// Bytes of replies, headers included.
        pub bytes_out: AtomicU64,
        /// The sum of measured durations in nanoseconds.
        pub nanoseconds: AtomicU64,
        /// Measured requests that took longer than all buckets.
        pub longer: AtomicU64,
        reserved: [AtomicU64; 2],
        /// Measured requests by duration: up to [`FIRST_BUCKET`], up to twice of it, and so on.
        pub buckets: [AtomicU64; BUCKETS],
    }
}

shared_struct! {
    /// What one thread counts.
    #[derive(Debug)]
    pub struct Block {
        /// When the request began that the thread is serving (`CLOCK_MONOTONIC_COARSE`, in
        /// nanoseconds), with the opcode in place of the lowest 8 bits; 0 if it serves none.
        pub running: AtomicU64,
        reserved: [AtomicU64; 7],
        /// By opcode.
        pub operations: [Operation; OPERATIONS],
    }
}

// No two threads write to one cache line.
const _: () = assert!(size_of::<Operation>() == 256 && size_of::<Block>().is_multiple_of(64));

/// The bits of [`Block::running`] that hold the opcode.
pub const RUNNING_OPCODE: u64 = 0xff;

/// The counters of one guest, as its worker has them.
#[derive(Debug)]
pub struct Counters {
    blocks: Part<Block>,
    header: Part<super::arena::Header>,
    /// A bit for each block that belongs to a thread of this process.
    owned: AtomicU64,
}

/// The block of a thread.
#[derive(Debug)]
struct Claim {
    counters: Arc<Counters>,
    index: usize,
}

thread_local! {
    /// Where the calling thread's counters are, and the index of its block there. They stay there
    /// as long as [`CLAIM`] refers to them.
    static MINE: Cell<(usize, usize)> = const { Cell::new((0, 0)) };

    static CLAIM: RefCell<Option<Claim>> = const { RefCell::new(None) };
}

impl Counters {
    /// The counters in `arena`, for the only worker that counts there.
    pub fn new(arena: &Arc<Arena>) -> Arc<Self> {
        let blocks = arena.counters();
        for (_, block) in blocks.in_memory() {
            // A worker has died in the middle of a request.
            block.running.store(0, Ordering::Relaxed);
        }
        Arc::new(Self {
            blocks,
            header: arena.header_part(),
            owned: AtomicU64::new(0),
        })
    }

    /// The calling thread begins with a request. Of one that cannot wait, the beginning is not
    /// noted.
    pub fn begin(self: &Arc<Self>, opcode: Opcode, may_wait: bool) -> Running<'_> {
        if cfg!(feature = "uncounted") {
            let block = &self.blocks[SHARED];
            return Running {
                block,
                operation: &block.operations[0],
                is_shared: false,
                is_noted: false,
                began: None,
            };
        }
        let index = self.own_block();
        // `own_block` returns indices of blocks.
        let block = &self.blocks[index.min(SHARED)];
        // Each opcode has a number of its own, as a test checks.
        let number = opcode as usize % OPERATIONS;
        let operation = &block.operations[number];
        let is_measured = operation
            .requests
            .load(Ordering::Relaxed)
            .is_multiple_of(SAMPLING);
        let is_noted = may_wait && index != SHARED;
        if is_noted {
            let began = clock::now(ClockId::MonotonicCoarse).cast_unsigned();
            let running = began & !RUNNING_OPCODE | number as u64;
            block.running.store(running, Ordering::Relaxed);
        }
        Running {
            block,
            operation,
            is_shared: index == SHARED,
            is_noted,
            began: is_measured.then(|| clock::now(ClockId::Monotonic)),
        }
    }

    /// Counts a request that was never begun: it has no valid header, or other threads served it.
    pub fn count(self: &Arc<Self>, opcode: Option<Opcode>, message: Message) {
        let index = self.own_block().min(SHARED);
        let number = opcode.map_or(0, |opcode| opcode as usize % OPERATIONS);
        let operation = &self.blocks[index].operations[number];
        operation.add(index == SHARED, message);
    }

    /// The index of the calling thread's block.
    fn own_block(self: &Arc<Self>) -> usize {
        let own = std::ptr::from_ref::<Self>(self).addr();
        match MINE.get() {
            (counters, index) if counters == own => index,
            _ => self.claim_for_thread(),
        }
    }

    #[cold]
    fn claim_for_thread(self: &Arc<Self>) -> usize {
        // Not while the thread ends: then it counts in the shared block.
        let claimed = CLAIM.try_with(|claim| {
            // Gives the block in other counters back.
            *claim.try_borrow_mut().ok()? = None;
            let index = self.claim();
            *claim.try_borrow_mut().ok()? = Some(Claim {
                counters: Arc::clone(self),
                index,
            });
            MINE.set((Arc::as_ptr(self).addr(), index));
            Some(index)
        });
        claimed.ok().flatten().unwrap_or(SHARED)
    }

    fn claim(&self) -> usize {
        let owned = &self.owned;
        let lowest = |owned: u64| Some(owned | 1 << owned.trailing_ones().min(63));
        let before = owned.fetch_update(Ordering::AcqRel, Ordering::Acquire, lowest);
        let index = before.unwrap_or(u64::MAX).trailing_ones() as usize;
        let used = u32::try_from(index + 1).unwrap_or(u32::MAX);
        let header = &self.header[0];
        header.counter_blocks.fetch_max(used, Ordering::Relaxed);
        index.min(SHARED)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        MINE.set((0, 0));
        if self.index < SHARED {
            let mask = !(1 << self.index);
            self.counters.owned.fetch_and(mask, Ordering::AcqRel);
        }
    }
}

/// What a request and its reply were.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// Bytes of the request.
    pub request: u64,
    /// Bytes of the reply.
    pub reply: usize,
    /// Whether the reply is an error.
    pub is_error: bool,
}

/// A request that the calling thread serves. Dropping it counts nothing.
#[derive(Debug)]
pub struct Running<'a> {
    block: &'a Block,
    operation: &'a Operation,
    is_shared: bool,
    is_noted: bool,
    began: Option<i64>,
}

impl Running<'_> {
    /// The request was answered.
    pub fn count(self, message: Message) {
        if let Some(began) = self.began {
            let took = clock::now(ClockId::Monotonic).saturating_sub(began);
            self.operation
                .measure(self.is_shared, took.max(0).cast_unsigned());
        }
        self.operation.add(self.is_shared, message);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.is_noted {
            self.block.running.store(0, Ordering::Relaxed);
        }
    }
}

impl Operation {
    fn add(&self, is_shared: bool, message: Message) {
        if cfg!(feature = "uncounted") {
            return;
        }
        add(&self.requests, is_shared, 1);
        if message.is_error {
            add(&self.errors, is_shared, 1);
        }
        add(&self.bytes_in, is_shared, message.request);
        add(&self.bytes_out, is_shared, message.reply as u64);
    }

    fn measure(&self, is_shared: bool, nanoseconds: u64) {
        add(&self.nanoseconds, is_shared, nanoseconds);
        let bucket = self.buckets.get(bucket(nanoseconds));
        add(bucket.unwrap_or(&self.longer), is_shared, 1);
    }
}

/// The index of the bucket for a duration; [`BUCKETS`] or more if it is longer than all.
const fn bucket(nanoseconds: u64) -> usize {
    match nanoseconds.saturating_sub(1) / FIRST_BUCKET {
        0 => 0,
        multiple => multiple.ilog2() as usize + 1,
    }
}

/// A thread's own counter has no other writer.
fn add(counter: &AtomicU64, is_shared: bool, number: u64) {
    if is_shared {
        counter.fetch_add(number, Ordering::Relaxed);
    } else {
        let sum = counter.load(Ordering::Relaxed).wrapping_add(number);
        counter.store(sum, Ordering::Relaxed);
    }
}

/// The number of a header's `counter_blocks` that may be read.
pub fn used_blocks(noted: &AtomicU32) -> usize {
    (noted.load(Ordering::Relaxed) as usize).min(BLOCKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: Message = Message {
        request: 40,
        reply: 16,
        is_error: false,
    };

    fn sum(counters: &Counters, opcode: Opcode, of: fn(&Operation) -> &AtomicU64) -> u64 {
        let operations = counters.blocks.iter();
        let operations = operations.map(|block| &block.operations[opcode as usize]);
        operations.map(|one| of(one).load(Ordering::Relaxed)).sum()
    }

    #[test]
    fn every_opcode_has_a_number_of_its_own() {
        let numbered = |opcode: &&Opcode| (1..OPERATIONS).contains(&(**opcode as usize));
        // CUSE_INIT, which no virtio-fs driver sends, counts as invalid.
        let others: Vec<_> = Opcode::ALL
            .iter()
            .filter(|opcode| !numbered(opcode))
            .collect();
        assert_eq!(others, [&Opcode::CuseInit]);
        assert_eq!(Opcode::CuseInit as usize % OPERATIONS, 0);
    }

    #[test]
    fn more_threads_than_blocks_lose_no_count() {
        let counters = Counters::new(&Arena::small());
        let barrier = Arc::new(std::sync::Barrier::new(BLOCKS + 5));
        let threads = (0..BLOCKS + 5).map(|_| {
            let (counters, barrier) = (Arc::clone(&counters), Arc::clone(&barrier));
            std::thread::spawn(move || {
                barrier.wait();
                for _ in 0..1000 {
                    counters.begin(Opcode::Read, true).count(MESSAGE);
                }
                barrier.wait();
            })
        });
        // Joined threads have given their blocks back.
        for thread in threads.collect::<Vec<_>>() {
            thread.join().unwrap();
        }
        let threads = BLOCKS as u64 + 5;
        assert_eq!(
            sum(&counters, Opcode::Read, |one| &one.requests),
            threads * 1000
        );
        assert_eq!(
            sum(&counters, Opcode::Read, |one| &one.bytes_in),
            threads * 40_000
        );
        assert_eq!(counters.owned.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn counts_go_on_in_the_next_worker_and_what_it_ran_does_not() {
        let arena = Arena::small();
        let first = Counters::new(&arena);
        first.begin(Opcode::Write, true).count(Message {
            is_error: true,
            ..MESSAGE
        });
        let running = first.begin(Opcode::Fsync, true);
        assert_ne!(running.block.running.load(Ordering::Relaxed), 0);
        // The worker is killed.
        std::mem::forget(running);
        let second = Counters::new(&arena);
        second.begin(Opcode::Write, true).count(MESSAGE);
        assert_eq!(sum(&second, Opcode::Write, |one| &one.requests), 2);
        assert_eq!(sum(&second, Opcode::Write, |one| &one.errors), 1);
        assert_eq!(sum(&second, Opcode::Fsync, |one| &one.requests), 0);
        assert!(
            second
                .blocks
                .iter()
                .all(|block| block.running.load(Ordering::Relaxed) == 0)
        );
    }

    #[test]
    fn the_first_request_of_so_many_is_measured() {
        let counters = Counters::new(&Arena::small());
        for _ in 0..=2 * SAMPLING {
            counters.begin(Opcode::Getattr, true).count(MESSAGE);
        }
        let measured: u64 = (0..BUCKETS)
            .map(|index| {
                let operation = &counters.blocks[counters.own_block()].operations;
                operation[Opcode::Getattr as usize].buckets[index].load(Ordering::Relaxed)
            })
            .sum();
        assert_eq!(measured, 3);
    }

    #[test]
    fn a_bucket_includes_its_limit() {
        for (nanoseconds, expected) in [
            (0, 0),
            (256, 0),
            (257, 1),
            (512, 1),
            (513, 2),
            (FIRST_BUCKET << 23, 23),
            ((FIRST_BUCKET << 23) + 1, 24),
            (u64::MAX, 56),
        ] {
            assert_eq!(bucket(nanoseconds), expected, "{nanoseconds}");
        }
    }
}
