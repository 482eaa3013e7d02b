//! The buffer between the threads that serve a guest and the one that writes.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gangplank_trace::{MAX_RECORD, Record, write_record};
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::file::TraceFile;

/// Bytes of records that wait to be written at most. As many again are being written.
const CAPACITY: usize = 1 << 20;

/// Bytes that are written to a file at once. Other guests' records come between.
const MAX_WRITE: usize = 64 << 10;

/// Bytes that a FIFO takes whole or not at all (`PIPE_BUF`).
const MAX_FIFO_WRITE: usize = 4096;

/// How long a worker that ends waits for its last records.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Takes records, and has a thread write them.
#[derive(Debug)]
pub(super) struct Sink(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when the buffer is not empty any more, and at the end.
    filled: Condvar,
    /// Signalled when the thread has written all.
    drained: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Whole blocks.
    buffer: Vec<u8>,
    /// Records that were lost since the last one in the buffer.
    lost: u64,
    is_writing: bool,
    is_closed: bool,
}

impl Sink {
    /// Starts the thread.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub(super) fn start(file: TraceFile) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writes = Arc::clone(&shared);
        let thread = thread::Builder::new().name("trace".into());
        thread.spawn(move || writes.write_all(&file))?;
        Ok(Self(shared))
    }

    /// Takes a record, or counts it as lost if the thread does not keep up.
    pub(super) fn push(&self, record: &Record, args: &[u8]) {
        let mut state = self.0.state.lock();
        if state.buffer.len() + MAX_RECORD > CAPACITY {
            state.lost += 1;
            return;
        }
        let lost = std::mem::take(&mut state.lost);
        write_record(&mut state.buffer, record, args, lost);
        drop(state);
        self.0.filled.notify_one();
    }

    /// Waits until all records are written, a second at most.
    pub(super) fn close(&self) {
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        let mut state = self.0.state.lock();
        state.is_closed = true;
        self.0.filled.notify_one();
        while state.is_writing || !state.buffer.is_empty() {
            if self.0.drained.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }
}

impl Shared {
    fn write_all(&self, file: &TraceFile) {
        let mut blocks = Vec::new();
        loop {
            let mut state = self.state.lock();
            state.is_writing = false;
            if state.buffer.is_empty() {
                self.drained.notify_all();
                if state.is_closed {
                    return;
                }
                self.filled.wait(&mut state);
            }
            state.is_writing = true;
            std::mem::swap(&mut state.buffer, &mut blocks);
            drop(state);
            let lost = write_blocks(file, &blocks);
            blocks.clear();
            if lost > 0 {
                self.state.lock().lost += lost;
            }
        }
    }
}

/// Writes whole blocks by few calls. Returns how many could not be written.
fn write_blocks(file: &TraceFile, mut blocks: &[u8]) -> u64 {
    let limit = if file.is_fifo {
        MAX_FIFO_WRITE
    } else {
        MAX_WRITE
    };
    let mut lost = 0;
    while !blocks.is_empty() {
        let (len, count) = piece(blocks, limit);
        let (piece, rest) = blocks.split_at_checked(len).unwrap_or((blocks, &[]));
        if !write(file, piece) {
            lost += count;
        }
        blocks = rest;
    }
    lost
}

/// Length and number of the first blocks that have together at most `limit` bytes.
fn piece(blocks: &[u8], limit: usize) -> (usize, u64) {
    let (mut end, mut count) = (0, 0);
    loop {
        let len = blocks.get(end + 4..).and_then(<[u8]>::first_chunk);
        let len = len.map_or(0, |len| u32::from_le_bytes(*len));
        let len = usize::try_from(len).unwrap_or(0);
        if len == 0 || (count > 0 && end + len > limit) {
            // Without a length, there are no more blocks.
            return if end == 0 {
                (blocks.len(), 1)
            } else {
                (end, count)
            };
        }
        end += len;
        count += 1;
    }
}

/// Writes `bytes` by one call, so that no other process's come between. Returns whether all of
/// them were written.
fn write(file: &TraceFile, bytes: &[u8]) -> bool {
    let deadline = Instant::now() + CLOSE_TIMEOUT;
    loop {
        match rustix::io::write(&file.descriptor, bytes) {
            Ok(written) => return written == bytes.len(),
            Err(Errno::INTR) => {}
            // The buffer fills meanwhile, and what does not fit is lost.
            Err(Errno::AGAIN) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let mut ready = [PollFd::new(&file.descriptor, PollFlags::OUT)];
                let limit = Timespec::try_from(left).unwrap_or_default();
                if left.is_zero() || poll(&mut ready, Some(&limit)) == Ok(0) {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use gangplank_trace::{Item, Reader, section_header};
    use rustix::fs::{Mode, OFlags};

    use super::*;

    fn record(guest: u32) -> Record {
        Record {
            guest,
            ..Record::default()
        }
    }

    fn items(bytes: &[u8]) -> (u64, u64) {
        let bytes = [section_header("test").as_slice(), bytes].concat();
        let mut reader = Reader::new(&bytes[..]);
        let (mut count, mut missing) = (0, 0);
        while let Some(item) = reader.next(false).unwrap() {
            let Item::Record { lost, .. } = item else {
                panic!("{item:?}");
            };
            count += 1;
            missing += lost;
        }
        (count, missing)
    }

    #[test]
    fn records_are_written_whole_and_in_order() {
        let mut file = tempfile::tempfile().unwrap();
        let sink = Sink::start(TraceFile {
            descriptor: file.try_clone().unwrap().into(),
            is_fifo: false,
        })
        .unwrap();
        for guest in 0..1000 {
            sink.push(&record(guest), &[7; 100]);
        }
        sink.close();
        let mut bytes = Vec::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(items(&bytes), (1000, 0));
    }

    #[test]
    fn records_that_nobody_reads_are_lost_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fifo = rustix::fs::open(&path, flags, Mode::empty()).unwrap();
        let mut reader = File::from(fifo.try_clone().unwrap());
        let sink = Sink::start(TraceFile {
            descriptor: fifo,
            is_fifo: true,
        })
        .unwrap();
        // More than the buffers and the FIFO hold.
        let pushed = 40_000;
        for guest in 0..pushed {
            sink.push(&record(guest), &[7; 100]);
        }
        let mut bytes = Vec::new();
        let reads = |bytes: &mut Vec<u8>, reader: &mut File| {
            // Ends by WouldBlock.
            let _ = reader.read_to_end(bytes);
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        let is_busy = || {
            let state = sink.0.state.lock();
            state.is_writing || !state.buffer.is_empty()
        };
        while is_busy() {
            assert!(Instant::now() < deadline);
            reads(&mut bytes, &mut reader);
            thread::sleep(Duration::from_millis(1));
        }
        reads(&mut bytes, &mut reader);
        // The last record tells of those that were lost before it.
        sink.push(&record(pushed), &[]);
        sink.close();
        reads(&mut bytes, &mut reader);
        let (count, missing) = items(&bytes);
        assert!(missing > 0, "{count} records");
        assert_eq!(count + missing, u64::from(pushed) + 1);
    }

    #[test]
    fn full_disk_loses_records_and_stops_nothing() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let sink = Sink::start(TraceFile {
            descriptor: full.into(),
            is_fifo: false,
        })
        .unwrap();
        sink.push(&record(1), &[]);
        let deadline = Instant::now() + Duration::from_secs(10);
        while sink.0.state.lock().lost == 0 {
            assert!(Instant::now() < deadline);
            thread::sleep(Duration::from_millis(1));
        }
        sink.close();
    }
}
