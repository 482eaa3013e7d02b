//! The same work by system calls of this process, as the limit that the host sets.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, Mode, OFlags, RawDir, fstat, open, openat, statat, unlinkat};
use rustix::io::{Errno, pread, pwrite, write};

use super::transfer::{Offsets, drop_from_memory};
use super::{Direction, Order, Sort, Work};
use crate::tree::{LARGE, MADE, MANY, MANY_FILES, SMALL, SMALL_FILES, SMALL_LEN, names, numbered};
use crate::workload::{LATENCIES, LONGEST, Run};

/// Does `work` in the directory `share` for `time`. Calls `at` when counting begins and ends.
pub(crate) fn run(
    work: Work,
    share: &Path,
    time: Duration,
    at: &mut dyn FnMut() -> Result<()>,
) -> Result<Run> {
    let timed = Timed { time, at };
    let root = directory(share)?;
    let inside = |name: &std::ffi::CStr| directory(&share.join(name.to_string_lossy().as_ref()));
    match work {
        Work::Getattr => {
            let file = openat(&root, LARGE, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            timed.repeat(1, || {
                fstat(&file)?;
                Ok(true)
            })
        }
        Work::Lookup(sort) => {
            let parent = inside(SMALL)?;
            let names = match sort {
                Sort::Missing => numbered("none", SMALL_FILES),
                Sort::Known | Sort::New => names(SMALL_FILES),
            };
            let mut turn = names.iter().cycle();
            timed.repeat(1, || {
                let name = turn.next().context("no name")?;
                match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(_) => ensure!(
                        sort != Sort::Missing,
                        "a name that does not exist was found"
                    ),
                    Err(Errno::NOENT) if sort == Sort::Missing => {}
                    Err(errno) => return Err(errno.into()),
                }
                Ok(true)
            })
        }
        Work::Open => timed.repeat(1, || {
            drop(openat(&root, LARGE, OFlags::CLOEXEC, Mode::empty())?);
            Ok(true)
        }),
        Work::SmallFile => {
            let parent = inside(SMALL)?;
            let names = names(SMALL_FILES);
            let mut turn = names.iter().cycle();
            let mut buffer = vec![0; SMALL_LEN];
            timed.repeat(1, || {
                let name = turn.next().context("no name")?;
                statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                let file = openat(&parent, name, OFlags::CLOEXEC, Mode::empty())?;
                ensure!(pread(&file, &mut buffer, 0)? == SMALL_LEN, "a short read");
                Ok(true)
            })
        }
        Work::Create => {
            let parent = inside(MADE)?;
            let content = vec![0x5a; SMALL_LEN];
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            timed.repeat(1, || {
                let file = openat(&parent, c"made-directly", flags, Mode::from(0o644))?;
                ensure!(write(&file, &content)? == SMALL_LEN, "a short write");
                drop(file);
                unlinkat(&parent, c"made-directly", AtFlags::empty())?;
                Ok(true)
            })
        }
        Work::Listing { .. } => {
            let path = share.join(MANY.to_string_lossy().as_ref());
            let mut buffer = Vec::with_capacity(32 << 10);
            timed.repeat(MANY_FILES as u64, || {
                let listed = directory(&path)?;
                let mut entries = RawDir::new(&listed, buffer.spare_capacity_mut());
                let mut count = 0;
                while let Some(entry) = entries.next() {
                    statat(&listed, entry?.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                    count += 1;
                }
                ensure!(count >= MANY_FILES, "a listing of {count} names");
                Ok(true)
            })
        }
        Work::Transfer {
            direction,
            size,
            order,
        } => {
            let path = share.join(LARGE.to_string_lossy().as_ref());
            transfer(&path, direction, size, order, timed)
        }
    }
}

fn transfer(
    path: &Path,
    direction: Direction,
    size: usize,
    order: Order,
    mut timed: Timed<'_>,
) -> Result<Run> {
    let file: OwnedFd = File::options().read(true).write(true).open(path)?.into();
    let mut buffer = vec![0x5a; size];
    let mut offsets = Offsets::new(size, order);
    if order.is_cold() {
        drop_from_memory(path)?;
        timed.time = LONGEST;
    }
    timed.repeat(1, || {
        let at = offsets.next();
        let moved = match direction {
            Direction::Read => pread(&file, &mut buffer, at)?,
            Direction::Write => pwrite(&file, &buffer, at)?,
        };
        ensure!(moved == size, "{moved} of {size} bytes moved");
        Ok(!offsets.is_over())
    })
}

/// Work that is repeated for a time.
pub(crate) struct Timed<'a> {
    /// The duration.
    pub(crate) time: Duration,
    /// Called when counting begins and ends.
    pub(crate) at: &'a mut dyn FnMut() -> Result<()>,
}

impl Timed<'_> {
    /// Repeats an operation that counts for `units` until the time is over or it returns that it
    /// was the last.
    pub(crate) fn repeat(
        self,
        units: u64,
        mut operation: impl FnMut() -> Result<bool>,
    ) -> Result<Run> {
        let mut latencies = Vec::with_capacity(LATENCIES);
        (self.at)()?;
        let started = Instant::now();
        let mut begun = started;
        let mut count = 0;
        loop {
            let more = operation()?;
            count += 1;
            let now = Instant::now();
            if latencies.len() < LATENCIES {
                latencies.push((now - begun).as_secs_f32() * 1e6);
            }
            begun = now;
            if !more || now - started >= self.time {
                break;
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        (self.at)()?;
        latencies.sort_by(f32::total_cmp);
        Ok(Run {
            units: units * count,
            seconds,
            latencies,
        })
    }
}

fn directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).with_context(|| format!("opening {}", path.display()))
}
