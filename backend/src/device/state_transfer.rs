//! The transfer of a guest's state from or to the frontend (vhost-user, "Migrating back-end state").
//!
//! ```text
//! SET_DEVICE_STATE_FD ──> thread: writes the state into the descriptor, or reads it from there
//! CHECK_DEVICE_STATE  ──> waits for the thread, and returns its result
//! ```
//!
//! A worker that dies takes the transfer with it: the next one knows of none, so that
//! CHECK_DEVICE_STATE fails, and the frontend gives the migration up.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use gangplank_service::{error_chain, rate_limited};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use vhost::vhost_user::message::{VhostTransferStateDirection, VhostTransferStatePhase};

use super::request::Handler;
use crate::state::migration::{MAX_STREAM_LEN, TransferError};

/// Bytes that are read at a time.
const CHUNK_LEN: usize = 1 << 20;

/// The transfer that was begun last.
#[derive(Debug, Default)]
pub(super) struct StateTransfer(Mutex<Option<JoinHandle<io::Result<()>>>>);

impl StateTransfer {
    /// Begins a transfer. A former one whose result nobody has asked for is forgotten.
    ///
    /// # Errors
    /// A transfer is under way; the phase is unknown; the thread cannot be started.
    pub(super) fn begin(
        &self,
        handler: &Arc<dyn Handler>,
        direction: VhostTransferStateDirection,
        phase: VhostTransferStatePhase,
        file: File,
    ) -> io::Result<()> {
        if phase != VhostTransferStatePhase::STOPPED {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut transfer = self.0.lock();
        if transfer
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
        {
            rate_limited!(
                error,
                "the frontend asks for a guest's state while another transfer goes on"
            );
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let handler = Arc::clone(handler);
        let thread = thread::Builder::new().name("migration".to_owned());
        let started = thread.spawn(move || match direction {
            VhostTransferStateDirection::SAVE => save(&*handler, file),
            VhostTransferStateDirection::LOAD => load(&*handler, file),
        })?;
        *transfer = Some(started);
        Ok(())
    }

    /// Waits for the transfer.
    ///
    /// # Errors
    /// It has failed, or there was none.
    pub(super) fn check(&self) -> io::Result<()> {
        let thread = self.0.lock().take();
        let thread = thread.ok_or_else(|| io::Error::other("no state was transferred"));
        let joined = thread?.join();
        joined.unwrap_or_else(|_| Err(io::Error::other("the transfer has panicked")))
    }
}

fn save(handler: &dyn Handler, mut file: File) -> io::Result<()> {
    let stream = handler.save_state().map_err(|error| {
        rate_limited!(error, "a guest cannot migrate: {}", error_chain(&error));
        io::Error::other(error)
    })?;
    let mut rest = stream.as_slice();
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) => wait_if_full(&file, error, PollFlags::OUT).inspect_err(|error| {
                rate_limited!(error, "cannot write a guest's state: {error}");
            })?,
        }
    }
    rate_limited!(info, "a guest's state was saved, {} bytes", stream.len());
    Ok(())
}

fn load(handler: &dyn Handler, mut file: File) -> io::Result<()> {
    let mut stream = Vec::new();
    let mut chunk = vec![0; CHUNK_LEN];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(len) if stream.len() + len > MAX_STREAM_LEN => {
                rate_limited!(
                    error,
                    "a guest's state has more than {MAX_STREAM_LEN} bytes"
                );
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            Ok(len) => stream.extend_from_slice(chunk.get(..len).unwrap_or_default()),
            Err(error) => wait_if_full(&file, error, PollFlags::IN).inspect_err(|error| {
                rate_limited!(error, "cannot read a guest's state: {error}");
            })?,
        }
    }
    handler
        .load_state(&stream)
        .map_err(|error: TransferError| {
            rate_limited!(
                error,
                "a guest cannot be taken over: {}",
                error_chain(&error)
            );
            io::Error::other(error)
        })?;
    rate_limited!(info, "a guest's state was loaded, {} bytes", stream.len());
    Ok(())
}

/// Waits if the descriptor does not block by itself.
fn wait_if_full(file: &File, error: io::Error, events: PollFlags) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock => {
            poll(&mut [PollFd::new(file, events)], None)?;
            Ok(())
        }
        _ => Err(error),
    }
}
