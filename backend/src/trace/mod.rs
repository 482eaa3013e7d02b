//! `--trace`: a record of each request, in the format of `gangplank-trace`.
//!
//! ```text
//!   request ── session: header, dialect, errno ── capture (per thread) ──┐
//!                                                                        v
//!   threads that serve ── Tracer::end: one record ── buffer ── thread `trace` ── write(2) ── file
//! ```
//!
//! The program opens the file before it is confined, and all its processes append to it. A record
//! is a copy of what the session works on, so guest memory is not read a second time. A buffer of
//! limited size takes the records. What does not fit is counted, and never waited for.
//!
//! Without `--trace` a request costs two looks at a variable of its thread.

mod capture;
mod file;
mod sink;

use gangplank_fuse::InHeader;
use gangplank_trace::{Kind, Record};
use rustix::time::ClockId;

use self::capture::Capture;
pub use self::capture::{note_dialect, note_errno, note_header, note_reply};
pub use self::file::{Error, move_up, open};
use self::sink::Sink;
use crate::sys::clock;

/// Writes the records of one guest's requests.
#[derive(Debug)]
pub struct Tracer {
    guest: u32,
    sink: Sink,
}

/// What a request keeps for its record while no thread serves it.
#[derive(Debug, Default)]
pub struct Pending {
    /// When a thread began with it, by `CLOCK_MONOTONIC` in nanoseconds; 0 if none has.
    began: u64,
    /// What was noted of it.
    capture: Capture,
}

impl Tracer {
    /// A tracer of guest `number`, with a thread that writes; `None` if there is no trace.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub fn start(number: u64) -> std::io::Result<Option<Self>> {
        let Some(file) = file::current()? else {
            return Ok(None);
        };
        let tracer = Self {
            guest: u32::try_from(number).unwrap_or(u32::MAX),
            sink: Sink::start(file)?,
        };
        tracer.mark(Kind::WorkerBegins);
        Ok(Some(tracer))
    }

    /// The calling thread begins with a request, or goes on with it.
    pub fn begin(&self, pending: &mut Pending) {
        if pending.began == 0 {
            pending.began = now();
        }
        capture::begin(std::mem::take(&mut pending.capture));
    }

    /// The calling thread leaves the request to another one.
    pub fn leave(&self, pending: &mut Pending) {
        pending.capture = capture::end();
    }

    /// The request has its reply of `reply_len` bytes. `args` are its arguments.
    pub fn end(&self, pending: &mut Pending, ring: u16, args: &[u8], reply_len: usize) {
        let Capture {
            header,
            dialect,
            errno,
            words,
            ..
        } = capture::end();
        let duration = now().saturating_sub(std::mem::take(&mut pending.began));
        // Without a header there was no request.
        if header == InHeader::default() {
            return;
        }
        let record = Record {
            guest: self.guest,
            ring,
            time: time().saturating_sub(duration),
            duration,
            errno: errno.unsigned_abs(),
            reply_len: u32::try_from(reply_len).unwrap_or(u32::MAX),
            words,
            dialect,
            header,
            ..Record::default()
        };
        self.sink.push(&record, args);
    }

    fn mark(&self, kind: Kind) {
        let record = Record {
            kind,
            guest: self.guest,
            time: time(),
            ..Record::default()
        };
        self.sink.push(&record, &[]);
    }

    /// Writes what is left: the guest has gone. Waits a second at most.
    pub fn close(&self) {
        self.mark(Kind::WorkerEnds);
        self.sink.close();
    }
}

/// `CLOCK_MONOTONIC`, in nanoseconds.
fn now() -> u64 {
    clock::now(ClockId::Monotonic).unsigned_abs()
}

/// Nanoseconds since the epoch.
fn time() -> u64 {
    clock::now(ClockId::Realtime).unsigned_abs()
}

#[cfg(test)]
mod tests;
