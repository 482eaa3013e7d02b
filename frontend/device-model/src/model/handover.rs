//! What a device leaves to its successor, and finds of its predecessor.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use gangplank_service::error_chain;
use gangplank_vhost_user::client::Facts;
use log::warn;

use crate::holder::{HolderError, Keep, Slot};
use crate::hypervisor::{Port, PortError};
use crate::journal::{Journal, Left};
use crate::mmio::{Ledger, Registers, Wires};

/// A device's journal, and what the holder keeps of it.
#[derive(Debug)]
pub struct Handover {
    keep: Arc<Keep>,
    journal: Arc<Journal>,
    left: Left,
}

impl Handover {
    /// What `keep` keeps and `journal` tells. A journal that another version wrote is started over, and what it told counts as
    /// [`Left::Unreadable`].
    pub fn new(keep: Arc<Keep>, journal: Arc<Journal>, readable: bool) -> Self {
        let left = match readable {
            true => journal.left(),
            false => {
                journal.start_over();
                Left::Unreadable
            }
        };
        Self {
            keep,
            journal,
            left,
        }
    }

    /// The registers as they were left.
    pub(super) fn left(&self) -> &Left {
        &self.left
    }

    /// Where the registers are to be written down.
    pub(super) fn ledger(&self) -> Box<dyn Ledger> {
        Box::new(Written(Arc::clone(&self.journal)))
    }

    /// The eventfds that were left, or new ones, connected at `port`. They are kept before they are connected: what the
    /// kernel signals and nobody has takes all kicks with it.
    pub(super) fn wires<P: Port + ?Sized>(
        &self,
        port: &P,
        queues: u16,
    ) -> Result<Wires, WiresError> {
        let kicks = (0..queues)
            .map_while(|queue| u8::try_from(queue).ok())
            .map(|queue| self.keep.eventfd(Slot::Kick(queue)))
            .collect::<Result<_, _>>()?;
        let wires = Wires::of(kicks, self.keep.eventfd(Slot::Interrupt)?);
        wires.connect_to(port)?;
        Ok(wires)
    }

    /// The connection to the daemon that was left, and what was agreed on over it: none of that if a message was on its way.
    pub(super) fn daemon(&self) -> Result<Option<(OwnedFd, Option<Facts>)>, HolderError> {
        let connection = self.keep.left(Slot::Daemon)?;
        Ok(connection.map(|connection| (connection, self.journal.daemon())))
    }

    /// There is another daemon.
    pub(super) fn connected(&self, connection: &OwnedFd) {
        self.journal.note_daemon_gone();
        if let Err(error) = self.keep.keep(Slot::Daemon, connection.as_fd()) {
            self.complain(&error);
        }
    }

    /// A message is about to be sent.
    pub(super) fn busy(&self) {
        self.journal.note_daemon_busy();
    }

    /// All messages were answered.
    pub(super) fn agreed(&self, facts: &Facts) {
        self.journal.note_daemon(facts);
    }

    /// The daemon has gone, but what the driver had begun with it is not over.
    pub(super) fn gone(&self) {
        self.journal.note_daemon_gone();
    }

    /// The driver has nothing to do with a daemon that has gone.
    pub(super) fn over(&self) {
        if let Err(error) = self.keep.forget(Slot::Daemon) {
            self.complain(&error);
        }
    }

    fn complain(&self, error: &HolderError) {
        let device = self.keep.device();
        warn!(
            "device {device}: its state may be lost to a successor: {}",
            error_chain(error)
        );
    }
}

/// Why eventfds cannot be had or connected.
#[derive(Debug, thiserror::Error)]
pub enum WiresError {
    /// They are not kept.
    #[error(transparent)]
    Holder(#[from] HolderError),
    /// The hypervisor does not take them.
    #[error(transparent)]
    Port(#[from] PortError),
}

#[derive(Debug)]
struct Written(Arc<Journal>);

impl Ledger for Written {
    fn save(&self, registers: &Registers) {
        self.0.save(registers);
    }
}
