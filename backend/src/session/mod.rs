//! One guest's FUSE session: INIT negotiation, decoding, the call of a [`FileSystem`], encoding.
//!
//! A request's bytes are copied out of guest memory once and only the copy is looked at; file data is not copied but
//! moves straight between guest memory and the file. What a guest sends wrong costs it an error reply, and nobody else
//! anything.

mod dispatch;
mod file_system;
mod lock_waits;
mod name;
mod negotiation;
mod reply;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use gangplank_fuse::{Dialect, InHeader, LkIn, NodeId, Opcode, Operation, Unique};

pub use file_system::{Caller, Creator, FileSystem, LockWait};
pub use name::{InvalidName, Name};

use self::dispatch::Call;
use self::lock_waits::LockWaits;
use self::reply::{ReplyHeader, put_error};
pub use crate::device::request::IoMode;
use crate::device::request::{Handled, Handler, Request, Scratch};
use crate::rate_limited;
use crate::sys::buffers::{Reader, Writer};

/// Longest arguments a request may have, bulk data not counted: an extended attribute of 64 KiB with its name, and room.
const MAX_ARGS_LEN: usize = 128 * 1024;

/// A session of one guest on a file system of its own.
pub struct Session<F> {
    file_system: Arc<F>,
    lock_waits: Arc<LockWaits>,
    /// What INIT agreed on; `None` before INIT and after DESTROY.
    dialect: RwLock<Option<Dialect>>,
}

/// How a request went.
#[derive(Debug)]
pub enum Served {
    /// This many bytes of the reply were written, none for a request that has no reply.
    Replied(usize),
    /// It asks for a lock that another holds, and wants to wait.
    WaitsForLock(LockRequest),
    /// It would wait for a disk, which it may not; nothing was done.
    WouldBlock,
}

/// A lock that a guest waits for.
#[derive(Debug)]
pub struct LockRequest {
    unique: Unique,
    node: NodeId,
    args: LkIn,
}

impl<F: FileSystem + 'static> Session<F> {
    /// A session that waits for INIT.
    pub fn new(file_system: F) -> Self {
        Self {
            file_system: Arc::new(file_system),
            lock_waits: Arc::new(LockWaits::default()),
            dialect: RwLock::new(None),
        }
    }

    /// Serves the request in `request` and writes its reply into `reply`, unless that means to wait for a disk and it may not.
    pub fn serve(
        &self,
        request: &mut Reader<'_>,
        reply: &mut Writer<'_>,
        scratch: &mut Scratch,
        mode: IoMode,
    ) -> Served {
        let total = request.remaining();
        let Some(header) = request.read_value::<InHeader>() else {
            rate_limited!(
                warn,
                "a guest sent a request of {total} bytes, less than its header has"
            );
            return Served::Replied(put_error(reply, Unique::new(0), libc::EINVAL));
        };
        let unique = header.unique();
        if usize::try_from(header.len) != Ok(total) {
            let claimed = header.len;
            rate_limited!(
                warn,
                "a guest sent a request of {total} bytes whose header claims {claimed}"
            );
            return Served::Replied(put_error(reply, unique, libc::EINVAL));
        }
        let opcode = match header.opcode() {
            Ok(opcode) => opcode,
            Err(unknown) => {
                rate_limited!(warn, "a guest sent a request that is not known: {unknown}");
                return Served::Replied(put_error(reply, unique, libc::ENOSYS));
            }
        };
        let args_len = opcode
            .bulk_offset()
            .unwrap_or(usize::MAX)
            .min(request.remaining());
        if args_len > MAX_ARGS_LEN {
            rate_limited!(
                warn,
                "a guest sent {args_len} bytes of arguments with {}",
                opcode.name()
            );
            return Served::Replied(put_error(reply, unique, libc::E2BIG));
        }
        scratch.input.resize(args_len, 0);
        request.read(&mut scratch.input);

        let dialect = *self.dialect.read().unwrap_or_else(PoisonError::into_inner);
        let decoded = Operation::decode(&header, &scratch.input, dialect.unwrap_or_default());
        let decoded = match decoded {
            Ok(decoded) => decoded,
            Err(error) => {
                rate_limited!(warn, "a guest sent a malformed request: {error}");
                return Served::Replied(put_error(reply, unique, libc::EINVAL));
            }
        };
        log::debug!(
            "{} of node {}, unique {}",
            opcode.name(),
            header.node(),
            unique
        );

        if let (Operation::Setlkw(args), Some(_)) = (&decoded.operation, dialect) {
            return self.lock_or_wait(reply, unique, header.node(), *args);
        }
        if mode == IoMode::NonBlocking && may_wait_for_disk(opcode) {
            return Served::WouldBlock;
        }
        let Some(reply_header) = ReplyHeader::reserve(reply, opcode) else {
            rate_limited!(
                warn,
                "a guest left no room for the reply to {}",
                opcode.name()
            );
            return Served::Replied(0);
        };
        let result = if dialect.is_none() && opcode != Opcode::Init {
            Err(io::Error::from_raw_os_error(libc::EIO))
        } else {
            let mut call = Call {
                header: &header,
                data: request,
                reply,
                buffer: &mut scratch.output,
                mode,
            };
            self.dispatch(&decoded, &mut call)
        };
        if mode == IoMode::NonBlocking && opcode == Opcode::Read && would_block(&result) {
            return Served::WouldBlock;
        }
        Served::Replied(reply_header.fill(unique, result))
    }

    /// Waits for the lock on the calling thread, and writes the reply.
    pub fn wait_for_lock(&self, lock: &LockRequest, reply: &mut Writer<'_>) -> usize {
        let result = self.lock_waits.wait(lock, &*self.file_system);
        ReplyHeader::reserve(reply, Opcode::Setlkw).map_or(0, |reply_header| {
            reply_header.fill(lock.unique, result.map(|()| 0))
        })
    }

    /// Ends the session, if there is one: all that the guest held is freed, and all that wait for a lock fail.
    pub fn end(&self) {
        let ended = self
            .dialect
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.lock_waits.interrupt_all();
        if ended.is_some() {
            self.file_system.destroy();
        }
    }

    /// Takes the lock if it is free, so that only those that really wait cost a thread.
    fn lock_or_wait(
        &self,
        reply: &mut Writer<'_>,
        unique: Unique,
        node: NodeId,
        args: LkIn,
    ) -> Served {
        let result = self.file_system.setlk(node, &args, LockWait::No);
        if would_block(&result) {
            return match self.lock_waits.register(unique) {
                Ok(()) => Served::WaitsForLock(LockRequest { unique, node, args }),
                Err(too_many) => Served::Replied(put_error(reply, unique, too_many)),
            };
        }
        let reply_header = ReplyHeader::reserve(reply, Opcode::Setlkw);
        Served::Replied(reply_header.map_or(0, |reply_header| {
            reply_header.fill(unique, result.map(|()| 0))
        }))
    }
}

/// Whether what was asked for usually waits for a disk.
fn may_wait_for_disk(opcode: Opcode) -> bool {
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

fn would_block<T>(result: &io::Result<T>) -> bool {
    result
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// A session as the device sees it.
pub struct SessionHandler<F>(Arc<Session<F>>);

impl<F: FileSystem + 'static> SessionHandler<F> {
    /// Hands a device's requests to `session`.
    pub fn new(session: Session<F>) -> Self {
        Self(Arc::new(session))
    }

    /// Gives the request a thread to wait on; gives it back where there is none to be had.
    fn wait_on_own_thread(&self, mut request: Box<Request>, lock: LockRequest) -> Handled {
        if let Some(interruption) = self.0.lock_waits.interruption(lock.unique) {
            request.set_interruption(interruption);
        }
        let unique = lock.unique;
        // A thread that does not start drops its closure, which must not take the request with it.
        let kept = Arc::new(Mutex::new(Some(request)));
        let (session, given) = (Arc::clone(&self.0), Arc::clone(&kept));
        let take = |kept: &Mutex<Option<Box<Request>>>| {
            kept.lock().unwrap_or_else(PoisonError::into_inner).take()
        };
        let started = std::thread::Builder::new()
            .name("lock_wait".into())
            .spawn(move || {
                if let Some(mut request) = take(&given) {
                    let (_, mut reply, _) = request.parts();
                    let written = session.wait_for_lock(&lock, &mut reply);
                    request.set_reply_len(written);
                    request.finish();
                }
            });
        let Err(error) = started else {
            return Handled::Kept;
        };
        rate_limited!(error, "cannot start a thread to wait for a lock: {error}");
        self.0.lock_waits.unregister(unique);
        let Some(mut request) = take(&kept) else {
            return Handled::Kept;
        };
        let (_, mut reply, _) = request.parts();
        let written = put_error(&mut reply, unique, libc::ENOLCK);
        request.set_reply_len(written);
        Handled::Replied(request)
    }
}

impl<F: FileSystem + 'static> Handler for SessionHandler<F> {
    fn handle(&self, mut request: Box<Request>, mode: IoMode) -> Handled {
        let (mut reader, mut writer, scratch) = request.parts();
        match self.0.serve(&mut reader, &mut writer, scratch, mode) {
            Served::WouldBlock => Handled::WouldBlock(request),
            Served::Replied(len) => {
                request.set_reply_len(len);
                Handled::Replied(request)
            }
            Served::WaitsForLock(lock) => self.wait_on_own_thread(request, lock),
        }
    }

    fn end_waits(&self) {
        self.0.lock_waits.close();
    }

    fn reset(&self) {
        self.0.end();
    }
}
