//! One guest's FUSE session: INIT negotiation, decoding, the call of a [`FileSystem`], encoding.
//!
//! The session copies a request's header and arguments out of guest memory once and uses only the
//! copy. File data moves straight between guest memory and the file. A guest that sends an invalid
//! request gets an error reply.
//!
//! INIT starts a session and ends the one before. DESTROY, a reset of the device and the end of the
//! connection end it.

mod caller;
mod cost;
mod dialect_cell;
mod dispatch;
mod event_thread;
pub mod events;
pub mod file_system;
mod find_again;
pub mod handler;
mod host_errors;
mod lock_threads;
mod lock_waits;
mod migration;
mod name;
mod negotiation;
mod receive;
mod repeat;
mod reply;
mod served;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use gangplank_fuse::{InHeader, InitIn, InitOut, LkIn, NodeId, Opcode, Operation, Request, Unique};
use gangplank_service::rate_limited;
use parking_lot::Mutex;

pub use events::EventRead;
pub use file_system::{Caller, Creator, FileSystem, LockWait};
pub use host_errors::{is_not_offered, not_offered};
pub use lock_waits::LockRequest;
pub use name::{InvalidName, Name};
pub use repeat::Interrupted;
pub use served::Served;

use self::dialect_cell::DialectCell;
use self::dispatch::Call;
use self::events::{Events, control};
use self::lock_waits::LockWaits;
use self::reply::{ReplyHeader, put, put_error};
use self::served::{Answer, Outcome};
use crate::crash_hook::{self, Point};
pub use crate::device::request::IoMode;
use crate::device::request::Scratch;
use crate::state::arena::Arena;
use crate::state::counters::Counters;
use crate::state::migration::Init;
use crate::state::requests;
use crate::state::session::SessionRecord;
use crate::sys::buffers::{Reader, Writer};
use crate::trace;

/// One guest's session, on a file system of its own.
pub struct Session<F> {
    file_system: F,
    lock_waits: LockWaits,
    /// The protocol that INIT negotiated; `None` before INIT and after DESTROY.
    dialect: DialectCell,
    /// What the reply to INIT said; `None` as above.
    init: Mutex<Option<Init>>,
    /// Changes that the guest hears of; `None` without `--events`.
    events: Option<Arc<Events>>,
    /// Where the session outlives the process; `None` in tests.
    arena: Option<Arc<Arena>>,
    /// Where requests are counted; `None` in tests.
    counters: Option<Arc<Counters>>,
}

impl<F: FileSystem> Session<F> {
    /// A session before INIT.
    pub fn new(file_system: F) -> Self {
        Self {
            file_system,
            lock_waits: LockWaits::default(),
            dialect: DialectCell::default(),
            init: Mutex::default(),
            events: None,
            arena: None,
            counters: None,
        }
    }

    /// The session whose state is in `arena`: the one that the worker before has left, or one
    /// before INIT.
    pub fn continued(file_system: F, arena: &Arc<Arena>) -> Self {
        let agreed = arena.header().session.offer().and_then(|offer| {
            // The worker before has negotiated the same.
            let wanted = file_system.resume(offer.features()).ok()?;
            let reply = negotiation::accept(&offer, wanted);
            Some((reply.dialect(&offer), agreement(&reply)))
        });
        let (dialect, init) = agreed.unzip();
        Self {
            dialect: DialectCell::new(dialect),
            init: Mutex::new(init),
            arena: Some(Arc::clone(arena)),
            counters: Some(Counters::new(arena)),
            ..Self::new(file_system)
        }
    }

    /// Lets the guest hear of changes.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn with_events(mut self) -> io::Result<Self> {
        let events = Events::new(self.arena.as_ref().map(Arc::clone))?;
        self.events = Some(Arc::new(events));
        Ok(self)
    }

    /// The file system.
    pub fn file_system(&self) -> &F {
        &self.file_system
    }

    /// Serves the request in `request` and writes its reply into `reply`.
    ///
    /// In [`IoMode::NonBlocking`], a request that would wait for a disk is not served. The content
    /// of `reply` is then undefined.
    pub fn serve(
        &self,
        request: &mut Reader<'_>,
        reply: &mut Writer<'_>,
        scratch: &mut Scratch,
        mode: IoMode,
    ) -> Served {
        self.serve_or_repeat(request, reply, scratch, mode, None)
    }

    /// Serves a request that an earlier process was serving when it died.
    pub fn repeat(
        &self,
        request: &mut Reader<'_>,
        reply: &mut Writer<'_>,
        scratch: &mut Scratch,
        earlier: Interrupted,
    ) -> Served {
        self.serve_or_repeat(request, reply, scratch, IoMode::Blocking, Some(earlier))
    }

    fn serve_or_repeat(
        &self,
        request: &mut Reader<'_>,
        reply: &mut Writer<'_>,
        scratch: &mut Scratch,
        mode: IoMode,
        earlier: Option<Interrupted>,
    ) -> Served {
        let total = request.remaining() as u64;
        let (header, opcode) = match receive::receive(request, &mut scratch.input) {
            Ok(received) => received,
            Err(invalid) => {
                let written = put_error(reply, invalid.unique, invalid.errno);
                self.count(None, total, Answer::error(written));
                return Served::Replied(written);
            }
        };
        let Some(counters) = &self.counters else {
            return self
                .serve_received((&header, opcode), request, reply, scratch, mode, earlier)
                .into();
        };
        let may_wait = mode == IoMode::Blocking || opcode != Opcode::Read;
        let running = counters.begin(opcode, may_wait);
        let outcome =
            self.serve_received((&header, opcode), request, reply, scratch, mode, earlier);
        if let Outcome::Answered(answer) = &outcome {
            running.count(answer.message(total));
        }
        outcome.into()
    }

    /// Counts a request that was answered with an error by whoever serves requests.
    fn count_refusal(&self, opcode: Option<Opcode>, request: u64, reply: usize) {
        self.count(opcode, request, Answer::error(reply));
    }

    fn count(&self, opcode: Option<Opcode>, request: u64, answer: Answer) {
        if let Some(counters) = &self.counters {
            counters.count(opcode, answer.message(request));
        }
    }

    /// Serves a request whose header and arguments were copied.
    fn serve_received(
        &self,
        (header, opcode): (&InHeader, Opcode),
        request: &mut Reader<'_>,
        reply: &mut Writer<'_>,
        scratch: &mut Scratch,
        mode: IoMode,
        earlier: Option<Interrupted>,
    ) -> Outcome {
        let (unique, node) = (header.unique(), header.node());
        let dialect = self.dialect.get();
        trace::note_dialect(dialect);
        let decoded = Operation::decode(header, &scratch.input, dialect.unwrap_or_default());
        let decoded = match decoded {
            Ok(decoded) => decoded,
            Err(error) => {
                rate_limited!(warn, "a guest sent a malformed request: {error}");
                return Outcome::error(put_error(reply, unique, libc::EINVAL));
            }
        };
        log::debug!("{} of node {node}, unique {unique}", opcode.name());
        if let Some(charged) = scratch.charged
            && !cost::of(opcode, &scratch.input).is_within(charged)
        {
            rate_limited!(
                warn,
                "a guest changed a request after it was sent, to exceed its limits: the reply to \
                 {} is EIO",
                opcode.name()
            );
            return Outcome::error(put_error(reply, unique, libc::EIO));
        }
        // Without a time, the operation had not begun.
        let has_begun = |earlier: &Interrupted| earlier.began != 0 || !begins_at_a_time(opcode);
        let earlier = earlier.filter(has_begun);
        // What is noted of a request that runs again stays: it began when it ran first.
        if earlier.is_none() {
            requests::note_operation(opcode as u32, begins_at_a_time(opcode));
        }

        if let (Operation::Setlkw(args), Some(_)) = (&decoded.operation, dialect) {
            return self.lock_or_wait(reply, unique, node, *args);
        }
        if let (Some(events), Some(_)) = (&self.events, dialect)
            && let Some(read) =
                control::waits(events, &self.file_system, header, &decoded.operation)
        {
            return Outcome::WaitsForEvents(read);
        }
        if mode == IoMode::NonBlocking && usually_waits_for_disk(opcode) {
            return Outcome::WouldBlock;
        }
        let Some(reply_header) = ReplyHeader::reserve(reply, opcode) else {
            rate_limited!(
                warn,
                "a guest left no room for the reply to {}",
                opcode.name()
            );
            return Outcome::error(0);
        };
        let has_ended = opcode == Opcode::Destroy && earlier.is_some();
        let result = if dialect.is_none() && opcode != Opcode::Init && !has_ended {
            Err(io::Error::from_raw_os_error(libc::EIO))
        } else {
            let mut call = Call {
                header,
                data: request,
                reply,
                buffer: &mut scratch.output,
                mode,
            };
            self.carry_out(&decoded, &mut call, earlier)
        };
        if mode == IoMode::NonBlocking && opcode == Opcode::Read && is_would_block(&result) {
            return Outcome::WouldBlock;
        }
        Outcome::Answered(Answer {
            is_error: result.is_err(),
            len: reply_header.fill(unique, for_guest(opcode, result)),
        })
    }

    /// Waits for the lock on the calling thread, and writes the reply. Returns the reply's length
    /// in bytes.
    pub fn wait_for_lock(&self, lock: &LockRequest, reply: &mut Writer<'_>) -> usize {
        let result = self.lock_waits.wait(lock, &self.file_system);
        self.lock_waited(reply, lock, result)
    }

    /// Takes the lock of a request that waits, if it is free, and writes the reply. Returns the
    /// reply's length in bytes, or `None` if the request waits on.
    pub fn retry_lock(&self, lock: &LockRequest, reply: &mut Writer<'_>) -> Option<usize> {
        let result = self.lock_waits.retry(lock, &self.file_system);
        (!is_would_block(&result)).then(|| self.lock_waited(reply, lock, result))
    }

    /// Answers and counts a request that has waited for a lock.
    fn lock_waited(
        &self,
        reply: &mut Writer<'_>,
        lock: &LockRequest,
        result: io::Result<()>,
    ) -> usize {
        let is_error = result.is_err();
        let len = put_lock_reply(reply, lock.unique, result);
        let request = size_of::<InHeader>() + size_of::<LkIn>();
        let answer = Answer { len, is_error };
        self.count(Some(Opcode::Setlkw), request as u64, answer);
        len
    }

    /// Ends the session: fails all waits for locks, and frees everything the guest holds.
    pub fn end(&self) {
        let ended = self.dialect.set(None);
        *self.init.lock() = None;
        self.lock_waits.interrupt_all();
        if let Some(events) = &self.events {
            let _held = events.hold_readers();
            events.end();
            self.file_system.unwatch();
        }
        if ended.is_some() {
            self.file_system.destroy();
        }
        // Last, so that the next worker ends a session that this one could not end.
        if let Some(record) = self.record() {
            record.close();
        }
    }

    /// Carries out an operation, on the session or the file system, and writes the reply's payload.
    /// Returns the payload's length in bytes.
    fn carry_out(
        &self,
        request: &Request<'_>,
        call: &mut Call<'_, '_, '_>,
        earlier: Option<Interrupted>,
    ) -> io::Result<usize> {
        let opcode = request.operation.opcode() as u32;
        if earlier.is_none() {
            repeat::prepare(&self.file_system, request, call.header.node());
        }
        crash_hook::pass(Point::Begun, || opcode);
        let events = self.events.as_ref();
        let own =
            events.and_then(|events| control::serve(events, &self.file_system, request, call));
        if let Some(result) = own {
            crash_hook::pass(Point::CarriedOut, || opcode);
            return result;
        }
        let result = match &request.operation {
            Operation::Init(args) => self.init(args).and_then(|reply| put(call.reply, &reply)),
            Operation::Destroy => {
                self.end();
                Ok(0)
            }
            Operation::Interrupt(args) => self.interrupt(Unique::new(args.unique)),
            _ => match earlier {
                None => self.dispatch_or_find_again(request, call),
                Some(earlier) => repeat::repeat(&self.file_system, request, call, earlier),
            },
        };
        crash_hook::pass(Point::CarriedOut, || opcode);
        result
    }

    /// Starts the session. A guest that sends INIT again has rebooted or reloaded its driver, so
    /// this ends the previous session first.
    ///
    /// # Errors
    /// EPROTO: the guest's protocol version is not supported, or its kernel does not support what
    /// the operator requires.
    fn init(&self, offer: &InitIn) -> io::Result<InitOut> {
        if let Some(reply) = negotiation::check_version(offer)? {
            return Ok(reply);
        }
        self.end();
        let wanted = self.file_system.init(offer.features())?;
        let reply = negotiation::accept(offer, wanted);
        *self.init.lock() = Some(agreement(&reply));
        self.dialect.set(Some(reply.dialect(offer)));
        if let Some(record) = self.record() {
            record.open(offer);
        }
        Ok(reply)
    }

    fn record(&self) -> Option<&SessionRecord> {
        Some(&self.arena.as_ref()?.header().session)
    }

    /// Ends the wait of a request for a lock or for changes.
    ///
    /// # Errors
    /// EAGAIN: no such request waits. The guest then sends INTERRUPT again, because the interrupted
    /// request may not have arrived.
    fn interrupt(&self, unique: Unique) -> io::Result<usize> {
        if self.lock_waits.interrupt(unique) {
            return Ok(0);
        }
        if (self.events.as_ref()).is_some_and(|events| events.interrupt(unique)) {
            return Ok(0);
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }

    /// Takes the lock if it is free. If not, the caller has to wait on a thread of its own.
    fn lock_or_wait(
        &self,
        reply: &mut Writer<'_>,
        unique: Unique,
        node: NodeId,
        args: LkIn,
    ) -> Outcome {
        let opcode = Opcode::Setlkw as u32;
        crash_hook::pass(Point::Begun, || opcode);
        let result = self.file_system.setlk(node, &args, LockWait::No);
        crash_hook::pass(Point::CarriedOut, || opcode);
        if is_would_block(&result) {
            return match self.lock_waits.register(unique) {
                Ok(()) => Outcome::WaitsForLock(LockRequest { unique, node, args }),
                Err(errno) => Outcome::error(put_error(reply, unique, errno)),
            };
        }
        Outcome::Answered(Answer {
            is_error: result.is_err(),
            len: put_lock_reply(reply, unique, result),
        })
    }
}

/// What another daemon needs to know of the reply to INIT.
fn agreement(reply: &InitOut) -> Init {
    Init {
        minor: reply.minor,
        flags: reply.features().bits(),
    }
}

/// The result with the errno that the guest gets.
fn for_guest(opcode: Opcode, result: io::Result<usize>) -> io::Result<usize> {
    result.map_err(|error| io::Error::from_raw_os_error(host_errors::errno(opcode, &error)))
}

fn put_lock_reply(reply: &mut Writer<'_>, unique: Unique, result: io::Result<()>) -> usize {
    ReplyHeader::reserve(reply, Opcode::Setlkw).map_or(0, |header| {
        let result = for_guest(Opcode::Setlkw, result.map(|()| 0));
        header.fill(unique, result)
    })
}

/// Whether the operation usually waits for a disk. READ is not among them: it finds out.
fn usually_waits_for_disk(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::Fsync
            | Opcode::Fsyncdir
            | Opcode::Syncfs
            | Opcode::Fallocate
            | Opcode::CopyFileRange
            | Opcode::CopyFileRange64
    )
}

/// Whether it matters after a death when the operation began: it makes or removes something, and
/// would fail if it were done again.
fn begins_at_a_time(opcode: Opcode) -> bool {
    opcode.creates()
        || matches!(
            opcode,
            Opcode::Link
                | Opcode::Unlink
                | Opcode::Rmdir
                | Opcode::Rename
                | Opcode::Rename2
                | Opcode::Setxattr
                | Opcode::Removexattr
        )
}

fn is_would_block<T>(result: &io::Result<T>) -> bool {
    result
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
