//! Ways to write a file, each with the bytes that the system calls acknowledge.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use gangplank_service::output::close;
use gangplank_tests::mapping::Mapping;
use rustix::fs::OFlags;
use rustix::io::Errno;

/// Bytes of one write of a method that writes in pieces.
const PIECE: usize = 64 << 10;

/// The results of the system calls of an attempt.
#[derive(Debug, Default)]
pub(crate) struct Attempt {
    /// The acknowledged ranges.
    pub(crate) ranges: Vec<Range<usize>>,
    /// The failed calls with their errnos.
    pub(crate) errors: Vec<(&'static str, Errno)>,
}

/// Writes the content, which is aligned for `O_DIRECT`, to the existing empty file.
///
/// It returns an error only if the cause is not a lack of space.
pub(crate) type Method = fn(&Path, &[u8]) -> Result<Attempt, Errno>;

pub(crate) const METHODS: &[(&str, Method)] = &[
    ("write-fsync", write_fsync),
    ("write-close", write_close),
    ("append", append),
    ("direct", direct),
    ("sync", |path, content| {
        synchronous(path, content, OFlags::SYNC)
    }),
    ("dsync", |path, content| {
        synchronous(path, content, OFlags::DSYNC)
    }),
    ("mmap-msync", mmap_msync),
    ("mmap-fsync", mmap_fsync),
    ("mmap-close", mmap_close),
    ("two-writers", two_writers),
];

impl Attempt {
    /// Whether the first `length` bytes were acknowledged.
    pub(crate) fn acknowledged(&self, length: usize) -> bool {
        let mut end = 0;
        let mut ranges = self.ranges.clone();
        ranges.sort_by_key(|range| range.start);
        for range in ranges {
            if range.start <= end {
                end = end.max(range.end);
            }
        }
        end >= length
    }

    /// Records the result of a call. Returns whether it succeeded.
    fn did(&mut self, call: &'static str, result: Result<(), Errno>) -> bool {
        match result {
            Ok(()) => true,
            Err(errno) => {
                self.errors.push((call, errno));
                false
            }
        }
    }

    /// Writes `content` until an error. Returns the number of bytes written.
    fn write(&mut self, file: &File, content: &[u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = content.get(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::write(file, rest) {
                Ok(0) => self.errors.push(("write of nothing", Errno::IO)),
                Ok(written) => {
                    done += written;
                    continue;
                }
                Err(errno) => self.errors.push(("write", errno)),
            }
            break;
        }
        done
    }

    fn close(&mut self, file: File) -> bool {
        self.did("close", close(file).map_err(errno))
    }
}

fn open(path: &Path, options: &mut OpenOptions) -> Result<File, Errno> {
    options.open(path).map_err(errno)
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

fn write_fsync(path: &Path, content: &[u8]) -> Result<Attempt, Errno> {
    let file = open(path, File::options().write(true))?;
    let mut attempt = Attempt::default();
    let written = attempt.write(&file, content);
    if attempt.did("fsync", rustix::fs::fsync(&file)) {
        attempt.ranges.push(0..written);
    }
    attempt.close(file);
    Ok(attempt)
}

fn write_close(path: &Path, content: &[u8]) -> Result<Attempt, Errno> {
    let file = open(path, File::options().write(true))?;
    let mut attempt = Attempt::default();
    let written = attempt.write(&file, content);
    if attempt.close(file) {
        attempt.ranges.push(0..written);
    }
    Ok(attempt)
}

fn append(path: &Path, content: &[u8]) -> Result<Attempt, Errno> {
    let file = open(path, File::options().append(true))?;
    let mut attempt = Attempt::default();
    let mut written = 0;
    for piece in content.chunks(PIECE) {
        let count = attempt.write(&file, piece);
        written += count;
        if count < piece.len() {
            break;
        }
    }
    if attempt.did("fsync", rustix::fs::fsync(&file)) {
        attempt.ranges.push(0..written);
    }
    attempt.close(file);
    Ok(attempt)
}

fn direct(path: &Path, content: &[u8]) -> Result<Attempt, Errno> {
    let flags = OFlags::DIRECT.bits().cast_signed();
    let file = open(path, File::options().write(true).custom_flags(flags))?;
    let mut attempt = Attempt::default();
    let written = attempt.write(&file, content);
    if attempt.did("fsync", rustix::fs::fsync(&file)) {
        attempt.ranges.push(0..written);
    }
    attempt.close(file);
    Ok(attempt)
}

/// A synchronous write is acknowledged by its return value.
fn synchronous(path: &Path, content: &[u8], flag: OFlags) -> Result<Attempt, Errno> {
    let flags = flag.bits().cast_signed();
    let file = open(path, File::options().write(true).custom_flags(flags))?;
    let mut attempt = Attempt::default();
    let written = attempt.write(&file, content);
    attempt.ranges.push(0..written);
    attempt.close(file);
    Ok(attempt)
}

/// Makes a file of full length without content, and writes the content by a mapping.
fn mapped(path: &Path, content: &[u8]) -> Result<(File, Mapping), Errno> {
    let file = open(path, File::options().read(true).write(true))?;
    rustix::fs::ftruncate(&file, content.len() as u64)?;
    let mapping = Mapping::shared(file.as_fd(), content.len())?;
    mapping.store(content);
    Ok((file, mapping))
}

fn mmap_msync(path: &Path, content: &[u8]) -> Result<Attempt, Errno> {
    let (file, mapping) = mapped(path, content)?;
    let mut attempt = Attempt::default();
    if attempt.did("msync", mapping.sync()) {
        attempt.ranges.push(0..content.len());
    }
    drop(mapping);
    attempt.close(file);
    Ok(attempt)
}

fn mmap_fsync(path: &Path, content: &[u8]) -> Result<Attempt, Errno> {
    let (file, mapping) = mapped(path, content)?;
    drop(mapping);
    let mut attempt = Attempt::default();
    if attempt.did("fsync", rustix::fs::fsync(&file)) {
        attempt.ranges.push(0..content.len());
    }
    attempt.close(file);
    Ok(attempt)
}

fn mmap_close(path: &Path, content: &[u8]) -> Result<Attempt, Errno> {
    let (file, mapping) = mapped(path, content)?;
    drop(mapping);
    let mut attempt = Attempt::default();
    if attempt.close(file) {
        attempt.ranges.push(0..content.len());
    }
    Ok(attempt)
}

/// Two open files take turns. The fsync of each acknowledges what was written through it.
fn two_writers(path: &Path, content: &[u8]) -> Result<Attempt, Errno> {
    let files = [
        open(path, File::options().write(true))?,
        open(path, File::options().write(true))?,
    ];
    let mut attempt = Attempt::default();
    let mut written = [Vec::new(), Vec::new()];
    for (index, piece) in content.chunks(PIECE).enumerate() {
        let start = index * PIECE;
        let writer = index % 2;
        let mut done = 0;
        while let Some(rest) = piece.get(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pwrite(&files[writer], rest, (start + done) as u64) {
                Ok(0) => attempt.errors.push(("pwrite of nothing", Errno::IO)),
                Ok(count) => {
                    written[writer].push(start + done..start + done + count);
                    done += count;
                    continue;
                }
                Err(errno) => attempt.errors.push(("pwrite", errno)),
            }
            break;
        }
    }
    for (file, ranges) in files.iter().zip(written) {
        if attempt.did("fsync", rustix::fs::fsync(file)) {
            attempt.ranges.extend(ranges);
        }
    }
    for file in files {
        attempt.close(file);
    }
    Ok(attempt)
}
