//! The table of locks, and those who wait: what changes under one lock.

use std::collections::HashMap;
use std::net::IpAddr;

use gangplank_driver::Pending;
use gangplank_service::error_chain;
use log::debug;
use nfs3_types::nfs3::nfsstat3;

use super::daemon_file::{Answer, DaemonFile};
use super::locks::GrantTo;
use super::range::{Held, Range};
use super::table::{Owner, Table};
use crate::share::error::Result;
use crate::share::handle::FileHandle;

/// Most waits that are requests in flight at the daemon. Its queue has many times more room.
const MAX_DAEMON_WAITS: usize = 32;

/// A lock that a client waits for.
pub(super) struct Waiter {
    pub(super) file: FileHandle,
    pub(super) owner: Owner,
    pub(super) number: u64,
    pub(super) wanted: Held,
    pub(super) grant_to: GrantTo,
    /// The request at the daemon.
    pub(super) pending: Option<Pending<()>>,
    pub(super) is_canceled: bool,
}

/// A lock whose owner may not know yet that it has it.
pub(super) struct Unconfirmed {
    pub(super) file: FileHandle,
    pub(super) owner: Owner,
    pub(super) wanted: Held,
}

/// The state of [`super::locks::Locks`].
#[derive(Default)]
pub(super) struct State {
    pub(super) table: Table<DaemonFile>,
    /// In the order in which they came.
    pub(super) waiters: Vec<Waiter>,
    pub(super) unconfirmed: HashMap<u64, Unconfirmed>,
    pub(super) next_grant: u64,
    /// The number of the connection on which the locks are.
    pub(super) connection: u64,
    /// How often clients had started when they told last.
    pub(super) notified: HashMap<IpAddr, u32>,
}

impl State {
    pub(super) fn set(
        &self,
        file: FileHandle,
        number: u64,
        range: Range,
        lock: Option<bool>,
    ) -> Result<Answer> {
        match self.table.file(file) {
            Some(file) => file.set(number, range, lock),
            None => Err(nfsstat3::NFS3ERR_STALE.into()),
        }
    }

    /// The position of a wait.
    pub(super) fn waiting(&self, file: FileHandle, owner: &Owner, wanted: Held) -> Option<usize> {
        self.waiters.iter().position(|waiter| {
            !waiter.is_canceled
                && waiter.file == file
                && waiter.owner == *owner
                && waiter.wanted == wanted
        })
    }

    /// Lets a wait go on at the daemon, if not too many are there.
    pub(super) fn wait_at_daemon(&self, waiter: &mut Waiter) {
        let waiters = self.waiters.iter();
        let at_daemon = waiters.filter(|waiter| waiter.pending.is_some()).count();
        if at_daemon < MAX_DAEMON_WAITS
            && let Some(file) = self.table.file(waiter.file)
        {
            // Without the request, the wait is tried again at the next tick.
            waiter.pending = file.begin_wait(waiter.number, waiter.wanted).ok();
        }
    }

    /// Ends a wait.
    pub(super) fn end(&mut self, position: usize) {
        if let Some(waiter) = self.end_keeping(position) {
            self.tidy(waiter.file, &waiter.owner);
        }
    }

    /// Ends a wait, and keeps its owner's entry.
    pub(super) fn end_keeping(&mut self, position: usize) -> Option<Waiter> {
        if position >= self.waiters.len() {
            return None;
        }
        let waiter = self.waiters.remove(position);
        self.table.end_wait(waiter.file, &waiter.owner);
        Some(waiter)
    }

    /// Makes the daemon's locks of a wait's owner and range those in the table.
    pub(super) fn restore(&self, position: usize) {
        let Some(waiter) = self.waiters.get(position) else {
            return;
        };
        let Some(entry) = self.table.entry(waiter.file, &waiter.owner) else {
            return;
        };
        for (range, lock) in entry.ranges.pieces(waiter.wanted.range) {
            if let Err(failure) = self.set(waiter.file, waiter.number, range, lock) {
                debug!("undoing a lock: {}", error_chain(&failure));
            }
        }
    }

    /// Notes that a client knows of its locks on a range. Returns whether there was one of which it
    /// did not know before.
    pub(super) fn confirm(&mut self, file: FileHandle, owner: &Owner, range: Range) -> bool {
        let before = self.unconfirmed.len();
        self.unconfirmed.retain(|_, granted| {
            granted.file != file || granted.owner != *owner || !granted.wanted.range.overlaps(range)
        });
        self.unconfirmed.len() < before
    }

    pub(super) fn tidy(&mut self, file: FileHandle, owner: &Owner) {
        self.table.tidy(file, owner, DaemonFile::forget_owner);
    }
}
