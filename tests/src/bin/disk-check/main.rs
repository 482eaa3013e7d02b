//! Fills a file system to every boundary and checks that nothing is lost without an error.
//!
//! The program is static, so that it runs in any guest and, for comparison, on the host. For each
//! amount of free space and each method, it writes a file of 1 MiB and records which bytes the
//! system calls acknowledged. Then it drops the caches and reads the file back: every acknowledged
//! byte must be there, and every missing one must have been an error.
//!
//!     disk-check DIRECTORY STEP [METHOD...]
//!
//! STEP is the distance between two amounts of free space, in KiB. DIRECTORY must be on a file
//! system whose space this program may use up. It prints one line per method.
#![allow(clippy::print_stdout, reason = "a program for the console")]

mod methods;
mod space;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;

use methods::{Attempt, METHODS, Method};
use space::Ballast;

/// Bytes that each attempt writes, which is the size of the largest request.
pub(crate) const LENGTH: usize = 1 << 20;

/// Limit of free space: enough for the file and its metadata.
const MOST_FREE: u64 = (LENGTH + LENGTH / 8) as u64;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("disk-check: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory: PathBuf = arguments.next().context("no directory given")?.into();
    let step: u64 = arguments.next().context("no step given")?.parse()?;
    let names: Vec<String> = arguments.collect();
    let mut failed = Vec::new();
    for (name, method) in METHODS {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        match sweep(&directory, step << 10, *method) {
            Ok(summary) => println!("{name}: {summary}"),
            Err(error) => {
                println!("{name}: FAILED: {error:#}");
                failed.push(*name);
            }
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// One method at every amount of free space.
fn sweep(directory: &Path, step: u64, method: Method) -> Result<String> {
    let path = directory.join("data");
    let mut ballast = Ballast::new(directory)?;
    let mut buffers = Buffers::new();
    let (mut runs, mut refused) = (0_u32, 0_u32);
    for free in (0..=MOST_FREE).step_by(usize::try_from(step)?) {
        space::empty(&path)?;
        ballast.leave(free)?;
        let attempt = match method(&path, buffers.content(runs)) {
            Ok(attempt) => attempt,
            // A share without a page cache has no shared mappings.
            Err(Errno::NODEV) => return Ok("not supported".to_owned()),
            Err(error) => bail!("with {free} bytes free: {error}"),
        };
        runs += 1;
        refused += u32::from(!attempt.errors.is_empty());
        check(&path, &mut buffers, &attempt).with_context(|| format!("with {free} bytes free"))?;
    }
    // Freed space can be used again.
    ballast.remove()?;
    space::empty(&path)?;
    let attempt = method(&path, buffers.content(runs))?;
    ensure!(
        attempt.errors.is_empty() && attempt.acknowledged(LENGTH),
        "with all space free: {:?}",
        attempt.errors
    );
    check(&path, &mut buffers, &attempt).context("with all space free")?;
    std::fs::remove_file(&path)?;
    ensure!(
        refused > 0 && refused < runs,
        "{refused} of {runs} attempts met an error: the disk was not filled as it should be"
    );
    Ok(format!("{runs} runs, {refused} refused"))
}

/// Fails if acknowledged data is not in the file.
fn check(path: &Path, buffers: &mut Buffers, attempt: &Attempt) -> Result<()> {
    for (call, errno) in &attempt.errors {
        ensure!(*errno == Errno::NOSPC, "{call} failed with {errno}");
    }
    let (content, found) = (&buffers.content.0, &mut buffers.found);
    space::read_uncached(path, found).context("reading it back")?;
    for range in &attempt.ranges {
        let (written, there) = (content.get(range.clone()), found.get(range.clone()));
        if written.is_none() || written != there {
            let lost = range
                .clone()
                .filter(|at| content.get(*at) != found.get(*at))
                .count();
            bail!(
                "{lost} bytes of {range:?} were acknowledged and are lost; the calls said {:?}; \
                 the file has {} bytes",
                attempt.errors,
                found.len()
            );
        }
    }
    Ok(())
}

/// Buffers for the written data and for the data read back. They are reused, because fresh memory
/// is slow in User Mode Linux.
struct Buffers {
    content: Box<Block>,
    found: Vec<u8>,
}

/// Aligned for `O_DIRECT` on every block device and file system.
#[repr(C, align(4096))]
struct Block([u8; LENGTH]);

impl Buffers {
    fn new() -> Self {
        Self {
            content: Box::new(Block([0; LENGTH])),
            found: Vec::with_capacity(2 * LENGTH),
        }
    }

    /// The data of attempt number `run`. Its bytes differ by position and by attempt.
    fn content(&mut self, run: u32) -> &[u8] {
        let mut state = run.wrapping_mul(0x9e37_79b9) | 1;
        for bytes in self.content.0.chunks_exact_mut(4) {
            // xorshift32
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            // No byte is 0, because holes read as 0.
            bytes.copy_from_slice(&(state | 0x0101_0101).to_le_bytes());
        }
        &self.content.0
    }
}
