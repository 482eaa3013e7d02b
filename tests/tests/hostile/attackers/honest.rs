//! The guests that verify: one compares a file with a model after each operation, one writes and
//! reads blocks that name themselves.

use std::ffi::CStr;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{FallocateIn, NodeId, Operation, ReadIn, SetattrIn, SetattrValid, WriteIn};
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::{Driver, NodeAndFile, Setup, Ticket};
use rustix::fs::{FallocateFlags, OFlags};

/// Limit of one operation. A longer one counts as disturbed. The daemon itself waits 10 s and
/// longer for some processes, and never for one guest on behalf of another.
const OPERATION_LIMIT: Duration = Duration::from_secs(9);

/// What an honest guest did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Honest {
    /// Operations, each with the comparison after it.
    pub(crate) operations: u64,
    /// The longest of them.
    pub(crate) longest: Duration,
}

impl Honest {
    /// Counts and times an operation.
    fn operation<T>(&mut self, operation: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let done = operation().with_context(|| format!("operation {}", self.operations))?;
        let took = started.elapsed();
        self.longest = self.longest.max(took);
        ensure!(
            took < OPERATION_LIMIT,
            "operation {} took {took:?}",
            self.operations
        );
        self.operations += 1;
        Ok(done)
    }
}

type Work = fn(&Fixture, &AtomicBool) -> Result<Honest>;

/// The guests by name. Each works until the flag is set.
pub(crate) const GUESTS: [(&str, Work); 2] =
    [("the model's guest", model), ("the blocks' guest", blocks)];

const SETUP: Setup = Setup {
    request_queues: 1,
    ring_size: 256,
    indirect: true,
    event_idx: true,
    call: gangplank_tests::driver::ring::CallKind::Event,
    memory: 16 << 20,
};

/// Greatest length of the model's file, in bytes.
const MODEL_LEN: usize = 128 << 10;

/// Greatest length of one write of the model, in bytes.
const MODEL_WRITE: usize = 24 << 10;

/// A file and what has to be in it.
struct Model {
    guest: Driver,
    file: NodeAndFile,
    /// The file's present name, and the next one.
    names: [&'static CStr; 2],
    content: Vec<u8>,
}

fn model(fixture: &Fixture, stop: &AtomicBool) -> Result<Honest> {
    let mut guest = fixture.guest(&SETUP)?;
    let names = [c"model-a", c"model-b"];
    let file = guest.create(NodeId::ROOT, names[0], 0o644)?;
    let mut model = Model {
        guest,
        file,
        names,
        content: Vec::new(),
    };
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut done = Honest::default();
    while !stop.load(Ordering::Relaxed) {
        done.operation(|| {
            let what = model.change(&mut random)?;
            model.compare().with_context(|| format!("after {what}"))
        })
        .with_context(|| format!("seed {seed}"))?;
    }
    let name = model.names[0].to_str()?;
    let found = fs::read(fixture.share().join(name))?;
    ensure!(found == model.content, "the host has another {name}");
    Ok(done)
}

impl Model {
    /// Makes one random change. Returns its name.
    fn change(&mut self, random: &mut fastrand::Rng) -> Result<&'static str> {
        let start = random.usize(..MODEL_LEN);
        let len = random.usize(1..=MODEL_WRITE).min(MODEL_LEN - start);
        let end = start + len;
        match random.u8(..20) {
            0..8 => {
                let data: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
                self.grow(end);
                self.content[start..end].copy_from_slice(&data);
                let written = self.guest.write(self.file, start as u64, &data)?;
                ensure!(written as usize == len, "{written} of {len} bytes written");
                Ok("a write")
            }
            8..11 => {
                self.content.resize(start, 0);
                let args = SetattrIn {
                    valid: (SetattrValid::SIZE | SetattrValid::FH).bits(),
                    fh: self.file.file.get(),
                    size: start as u64,
                    ..SetattrIn::default()
                };
                self.guest.setattr(self.file.node, args)?;
                Ok("a truncation")
            }
            11..13 => {
                self.grow(end);
                self.allocate(start, len, FallocateFlags::empty())?;
                Ok("an allocation")
            }
            13..15 => {
                let end = end.min(self.content.len());
                if let Some(hole) = self.content.get_mut(start..end) {
                    hole.fill(0);
                }
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                self.allocate(start, len, flags)?;
                Ok("a hole")
            }
            15..17 => {
                let [from, to] = self.names;
                let root = NodeId::ROOT;
                self.guest.rename((root, from), (root, to), 0)?;
                self.names = [to, from];
                let entry = self.guest.lookup(root, to)?;
                ensure!(
                    entry.nodeid == self.file.node.get(),
                    "{to:?} is another node"
                );
                Ok("a rename")
            }
            17..19 => {
                self.guest.fsync(self.file)?;
                Ok("fsync")
            }
            _ => {
                self.guest.flush(self.file)?;
                self.guest.release(self.file)?;
                self.file.file = self.guest.open(self.file.node, OFlags::RDWR)?;
                Ok("another open")
            }
        }
    }

    fn grow(&mut self, end: usize) {
        let len = self.content.len().max(end);
        self.content.resize(len, 0);
    }

    fn allocate(&mut self, start: usize, len: usize, flags: FallocateFlags) -> Result<()> {
        let operation = Operation::Fallocate(FallocateIn {
            fh: self.file.file.get(),
            offset: start as u64,
            length: len as u64,
            mode: flags.bits(),
            padding: 0,
        });
        self.guest.call(self.file.node, operation, &[], 512)?;
        Ok(())
    }

    /// Compares size and content.
    fn compare(&mut self) -> Result<()> {
        let size = self.guest.getattr(self.file.node, None)?.attr.size;
        let expected = self.content.len() as u64;
        ensure!(size == expected, "the size is {size}, not {expected}");
        let found = self.guest.read(self.file, 0, u32::try_from(MODEL_LEN)?)?;
        let wrong = found.iter().zip(&self.content).position(|(a, b)| a != b);
        ensure!(wrong.is_none(), "byte {} is wrong", wrong.unwrap_or(0));
        ensure!(
            found.len() == self.content.len(),
            "{} bytes are read, not {expected}",
            found.len()
        );
        Ok(())
    }
}

/// Length of a block, in bytes, and blocks in the file.
const BLOCK: usize = 4096;
const BLOCKS: u64 = 512;

/// Requests in flight.
const DEPTH: usize = 16;

/// The bytes of a block in its `generation`th state.
fn block(index: u64, generation: u64) -> Vec<u8> {
    if generation == 0 {
        return vec![0; BLOCK];
    }
    let mut random = fastrand::Rng::with_seed(index << 32 | generation);
    let head = [index, generation].into_iter().flat_map(u64::to_le_bytes);
    head.chain(std::iter::repeat_with(|| random.u8(..)))
        .take(BLOCK)
        .collect()
}

/// Rounds of random writes in flight together, then reads of the same and of other blocks.
fn blocks(fixture: &Fixture, stop: &AtomicBool) -> Result<Honest> {
    let mut guest = fixture.guest(&SETUP)?;
    let file = guest.create(NodeId::ROOT, c"blocks", 0o644)?;
    let args = SetattrIn {
        valid: SetattrValid::SIZE.bits(),
        size: BLOCKS * BLOCK as u64,
        ..SetattrIn::default()
    };
    guest.setattr(file.node, args)?;
    let mut generations = vec![0_u64; usize::try_from(BLOCKS)?];
    let mut random = fastrand::Rng::new();
    let mut done = Honest::default();
    while !stop.load(Ordering::Relaxed) {
        done.operation(|| {
            let mut indices: Vec<u64> = (0..DEPTH).map(|_| random.u64(..BLOCKS)).collect();
            indices.sort_unstable();
            indices.dedup();
            let mut writes = Vec::new();
            for index in &indices {
                let generation = &mut generations[usize::try_from(*index)?];
                *generation += 1;
                let data = block(*index, *generation);
                writes.push(submit_write(&mut guest, file, *index, &data)?);
            }
            for ticket in writes {
                guest.finish(ticket).context("WRITE")?;
            }
            indices.extend((0..DEPTH).map(|_| random.u64(..BLOCKS)));
            let mut reads = Vec::new();
            for index in indices {
                reads.push((index, submit_read(&mut guest, file, index)?));
            }
            for (index, ticket) in reads {
                let found = guest.finish(ticket).context("READ")?;
                let expected = block(index, generations[usize::try_from(index)?]);
                ensure!(found == expected, "block {index} has other bytes");
            }
            Ok(())
        })?;
    }
    let found = fs::read(fixture.share().join("blocks"))?;
    for ((index, generation), found) in (0..).zip(generations).zip(found.chunks(BLOCK)) {
        ensure!(
            found == block(index, generation),
            "the host has another block {index}"
        );
    }
    Ok(done)
}

fn submit_write(guest: &mut Driver, file: NodeAndFile, index: u64, data: &[u8]) -> Result<Ticket> {
    let operation = Operation::Write(WriteIn {
        fh: file.file.get(),
        offset: index * BLOCK as u64,
        size: u32::try_from(data.len())?,
        ..WriteIn::default()
    });
    Ok(guest.submit(1, file.node, operation, data, 512)?)
}

fn submit_read(guest: &mut Driver, file: NodeAndFile, index: u64) -> Result<Ticket> {
    let operation = Operation::Read(ReadIn {
        fh: file.file.get(),
        offset: index * BLOCK as u64,
        size: u32::try_from(BLOCK)?,
        ..ReadIn::default()
    });
    Ok(guest.submit(1, file.node, operation, &[], BLOCK)?)
}
