//! The session as the device's request handler.

use std::sync::Arc;

use gangplank_fuse::{InHeader, Opcode, Unique};
use gangplank_service::rate_limited;

use super::file_system::FileSystem;
use super::lock_threads::{LockThreads, Waiting};
use super::lock_waits::LockRequest;
use super::reply::put_error;
use super::{EventRead, Served, Session, cost, event_thread};
use crate::device::request::{Cost, Handled, Handler, IoMode, Request, Scratch};
use crate::state::migration::TransferError;
use crate::state::requests::Interrupted;
use crate::trace::{self, Tracer};

/// Serves a device's requests with a session.
pub struct SessionHandler<F> {
    session: Arc<Session<F>>,
    lock_threads: LockThreads<F>,
    tracer: Option<Arc<Tracer>>,
}

impl<F: FileSystem + 'static> SessionHandler<F> {
    /// A handler that serves requests with `session`. At most `lock_threads` threads wait for
    /// locks, and one more tries those of further requests from time to time.
    pub fn new(session: Session<F>, lock_threads: usize, tracer: Option<Arc<Tracer>>) -> Self {
        let session = Arc::new(session);
        Self {
            lock_threads: LockThreads::new(Arc::clone(&session), lock_threads, tracer.clone()),
            session,
            tracer,
        }
    }

    fn begin_trace(&self, scratch: &mut Scratch) {
        if let Some(tracer) = &self.tracer {
            tracer.begin(&mut scratch.trace);
        }
    }

    fn handled(&self, mut request: Box<Request>, served: Served) -> Handled {
        if let Some(tracer) = &self.tracer {
            match &served {
                Served::Replied(len) => request.end_trace(tracer, *len),
                Served::WouldBlock | Served::WaitsForLock(_) | Served::WaitsForEvents(_) => {
                    request.leave_trace(tracer)
                }
            }
        }
        match served {
            Served::WouldBlock => Handled::WouldBlock(request),
            Served::Replied(len) => {
                request.set_reply_len(len);
                Handled::Replied(request)
            }
            Served::WaitsForLock(lock) => self.wait_on_other_thread(request, lock),
            Served::WaitsForEvents(read) => self.wait_for_events(request, read),
        }
    }

    /// Keeps the request until there are changes. No thread waits for it.
    fn wait_for_events(&self, request: Box<Request>, read: EventRead) -> Handled {
        // It has taken nothing yet, and may wait for long.
        request.park();
        let unique = read.unique();
        let Some(events) = &self.session.events else {
            return self.fail(request, unique, Opcode::Read, libc::EIO);
        };
        let starts = match events.wait(request, read) {
            Ok(starts) => starts,
            Err(request) => return self.fail(request, unique, Opcode::Read, libc::EINTR),
        };
        if starts
            && let Err(error) =
                event_thread::start(&self.session, events, self.tracer.as_ref().map(Arc::clone))
        {
            rate_limited!(
                error,
                "cannot start a thread to wait for changes: {error}; raise the limits of tasks \
                 and memory"
            );
            event_thread::answer(&self.session, events.give_up(), self.tracer.as_deref());
        }
        Handled::Kept
    }

    /// Has another thread wait for the lock and return the request's chain. If no thread can be
    /// started, the reply is ENOLCK.
    fn wait_on_other_thread(&self, mut request: Box<Request>, lock: LockRequest) -> Handled {
        // It has done nothing yet, and may wait for long.
        request.park();
        if let Some(interruption) = self.session.lock_waits.interruption(lock.unique) {
            request.set_interruption(interruption);
        }
        let Err((waiting, error)) = self.lock_threads.submit(Waiting { request, lock }) else {
            return Handled::Kept;
        };
        rate_limited!(
            error,
            "cannot start a thread to wait for a lock: {error}; raise the limits of tasks and \
             memory"
        );
        let Waiting { request, lock } = waiting;
        self.session.lock_waits.unregister(lock.unique);
        self.fail(request, lock.unique, Opcode::Setlkw, libc::ENOLCK)
    }

    /// Answers a request that was to wait with an error.
    fn fail(
        &self,
        mut request: Box<Request>,
        unique: Unique,
        opcode: Opcode,
        errno: i32,
    ) -> Handled {
        let (_, mut reply, scratch) = request.parts();
        self.begin_trace(scratch);
        let written = put_error(&mut reply, unique, errno);
        self.session.count_refusal(Some(opcode), 0, written);
        if let Some(tracer) = &self.tracer {
            request.end_trace(tracer, written);
        }
        request.set_reply_len(written);
        Handled::Replied(request)
    }
}

impl<F: FileSystem + 'static> Handler for SessionHandler<F> {
    fn handle(&self, mut request: Box<Request>, mode: IoMode) -> Handled {
        let (mut reader, mut writer, scratch) = request.parts();
        self.begin_trace(scratch);
        let served = self.session.serve(&mut reader, &mut writer, scratch, mode);
        self.handled(request, served)
    }

    fn recover(&self, mut request: Box<Request>, interrupted: Interrupted) -> Handled {
        let (mut reader, mut writer, scratch) = request.parts();
        self.begin_trace(scratch);
        let served = self
            .session
            .repeat(&mut reader, &mut writer, scratch, interrupted.into());
        self.handled(request, served)
    }

    fn refuse(&self, request: &mut Request) {
        let (mut reader, mut writer, scratch) = request.parts();
        self.begin_trace(scratch);
        let total = reader.remaining() as u64;
        let header = reader.read_value::<InHeader>();
        scratch.input.clear();
        if let Some(header) = &header {
            trace::note_header(header);
        }
        let expects_reply = |header: &InHeader| {
            let opcode = header.opcode();
            opcode.map_or(true, Opcode::expects_reply)
        };
        let written = match header {
            Some(header) if expects_reply(&header) => {
                put_error(&mut writer, header.unique(), libc::EIO)
            }
            _ => 0,
        };
        let opcode = header.and_then(|header| header.opcode().ok());
        self.session.count_refusal(opcode, total, written);
        if let Some(tracer) = &self.tracer {
            request.end_trace(tracer, written);
        }
        request.set_reply_len(written);
    }

    fn cost(&self, request: &mut Request) -> Cost {
        let (reader, _, _) = request.parts();
        cost::peek(&reader)
    }

    fn end_waits(&self) {
        self.session.lock_waits.close();
        if let Some(events) = &self.session.events {
            events.close();
        }
    }

    fn save_state(&self) -> Result<Vec<u8>, TransferError> {
        self.session.save()
    }

    fn load_state(&self, stream: &[u8]) -> Result<(), TransferError> {
        self.session.load(stream)
    }

    fn reset(&self) {
        self.session.end();
    }
}
