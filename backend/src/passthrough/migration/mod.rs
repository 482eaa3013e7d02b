//! A guest that leaves for another daemon, or arrives from one.
//!
//! `save` only reads: if the migration is given up, the guest goes on here. `load` replaces all
//! that the guest held. `paths` finds out by which path another daemon reaches an inode.

mod listing;
mod load;
mod paths;
mod save;

use super::fs::PassthroughFs;
use crate::session::file_system::Migration;
use crate::state::migration::{GuestState, MigratedGuest, TransferError};

impl Migration for PassthroughFs {
    fn save(&self) -> Result<GuestState, TransferError> {
        self.save_guest()
    }

    fn load(&self, guest: &MigratedGuest) -> Result<(), TransferError> {
        self.load_guest(guest).inspect_err(|_| self.state.clear())
    }
}
