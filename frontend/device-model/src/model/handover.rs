//! What a device leaves to its successor, and gets from its predecessor.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use gangplank_service::{error_chain, rate_limited};
use gangplank_vhost_user::client::Facts;

use crate::fd_store::{Entry, FdStoreError, Slot};
use crate::hypervisor::{Port, PortError};
use crate::journal::{Journal, SavedRegisters};
use crate::mmio::{EventFds, RegisterLog, Registers};

/// A device's journal, and its entry in the fd store.
#[derive(Debug)]
pub struct Handover {
    entry: Arc<Entry>,
    journal: Arc<Journal>,
    saved_registers: SavedRegisters,
}

impl Handover {
    /// Uses `entry` and `journal`. The journal of another version is reset, and its registers count
    /// as [`SavedRegisters::Unreadable`].
    pub fn new(entry: Arc<Entry>, journal: Arc<Journal>, readable: bool) -> Self {
        let saved_registers = match readable {
            true => journal.saved_registers(),
            false => {
                journal.reset();
                SavedRegisters::Unreadable
            }
        };
        Self {
            entry,
            journal,
            saved_registers,
        }
    }

    /// The predecessor's registers.
    pub(super) fn saved_registers(&self) -> &SavedRegisters {
        &self.saved_registers
    }

    /// Saves registers in the journal.
    pub(super) fn register_log(&self) -> Box<dyn RegisterLog> {
        Box::new(JournalLog(Arc::clone(&self.journal)))
    }

    /// The predecessor's eventfds, or new ones, connected at `port`. They are stored before they
    /// are connected: kicks to an eventfd that no process has are lost.
    pub(super) fn eventfds<P: Port + ?Sized>(
        &self,
        port: &P,
        queues: u16,
    ) -> Result<EventFds, EventFdError> {
        let kicks = (0..queues)
            .map_while(|queue| u8::try_from(queue).ok())
            .map(|queue| self.entry.eventfd(Slot::Kick(queue)))
            .collect::<Result<_, _>>()?;
        let eventfds = EventFds::of(kicks, self.entry.eventfd(Slot::Interrupt)?);
        eventfds.connect_to(port)?;
        Ok(eventfds)
    }

    /// The predecessor's connection to the backend, with its state; no state if a message was on
    /// its way.
    pub(super) fn backend_connection(
        &self,
    ) -> Result<Option<(OwnedFd, Option<Facts>)>, FdStoreError> {
        let connection = self.entry.get(Slot::Backend)?;
        Ok(connection.map(|connection| (connection, self.journal.saved_backend())))
    }

    /// A backend was connected.
    pub(super) fn on_backend_connected(&self, connection: &OwnedFd) {
        self.journal.clear_backend();
        if let Err(error) = self.entry.put(Slot::Backend, connection.as_fd()) {
            self.warn_not_saved(&error);
        }
    }

    /// A message is about to be sent.
    pub(super) fn begin_exchange(&self) {
        self.journal.invalidate_backend();
    }

    /// All messages were answered.
    pub(super) fn end_exchange(&self, facts: &Facts) {
        self.journal.save_backend(facts);
    }

    /// The backend has gone, and the driver's session with it is not reset yet.
    pub(super) fn on_backend_gone(&self) {
        self.journal.clear_backend();
    }

    /// The driver has no session with a backend that has gone.
    pub(super) fn forget_backend(&self) {
        if let Err(error) = self.entry.remove(Slot::Backend) {
            self.warn_not_saved(&error);
        }
    }

    fn warn_not_saved(&self, error: &FdStoreError) {
        let device = self.entry.device();
        rate_limited!(
            warn,
            "device {device}: a successor may not find its state: {}",
            error_chain(error)
        );
    }
}

/// Why a device has no eventfds.
#[derive(Debug, thiserror::Error)]
pub enum EventFdError {
    /// The fd store does not keep them.
    #[error(transparent)]
    FdStore(#[from] FdStoreError),
    /// The hypervisor does not connect them.
    #[error(transparent)]
    Port(#[from] PortError),
}

#[derive(Debug)]
struct JournalLog(Arc<Journal>);

impl RegisterLog for JournalLog {
    fn save(&self, registers: &Registers) {
        self.0.save(registers);
    }
}
