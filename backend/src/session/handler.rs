//! The session as the device's request handler.

use std::sync::{Arc, Mutex, PoisonError};

use gangplank_service::rate_limited;

use super::file_system::FileSystem;
use super::lock_waits::LockRequest;
use super::reply::put_error;
use super::{Served, Session};
use crate::device::request::{Handled, Handler, IoMode, Request};

/// Serves a device's requests with a session.
pub struct SessionHandler<F>(Arc<Session<F>>);

impl<F: FileSystem + 'static> SessionHandler<F> {
    /// A handler that serves requests with `session`.
    pub fn new(session: Session<F>) -> Self {
        Self(Arc::new(session))
    }

    /// Starts a thread that waits for the lock and returns the request's chain. If no thread can be
    /// started, the reply is ENOLCK.
    fn wait_on_own_thread(&self, mut request: Box<Request>, lock: LockRequest) -> Handled {
        if let Some(interruption) = self.0.lock_waits.interruption(lock.unique) {
            request.set_interruption(interruption);
        }
        let unique = lock.unique;
        // If the thread does not start, `spawn` drops its closure, which must not own the request.
        let shared = Arc::new(Mutex::new(Some(request)));
        let (session, for_thread) = (Arc::clone(&self.0), Arc::clone(&shared));
        let take = |shared: &Mutex<Option<Box<Request>>>| {
            shared.lock().unwrap_or_else(PoisonError::into_inner).take()
        };
        let started = std::thread::Builder::new()
            .name("lock_wait".into())
            .spawn(move || {
                if let Some(mut request) = take(&for_thread) {
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
        let Some(mut request) = take(&shared) else {
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
