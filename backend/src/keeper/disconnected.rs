//! What a keeper does while its guest has no connection, and its session is kept: the frontend may
//! come back, as Cloud Hypervisor does, and its guest has noticed nothing.
//!
//! No worker runs then, and all that the frontend has sent is closed, copies of the last worker
//! included: its memory must not stay in use if it has ended. The guest's inodes, open files and
//! locks stay, and so do its requests in flight, which the next worker finishes.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::holding::{hold_device, hold_guest};
use super::new_connection::{self, NewConnection};
use super::sweep::passing;
use super::{Ended, Keeper};
use crate::handover::channel::{Channel, Message};
use crate::state::device::DeviceState;
use crate::state::recovery;
use crate::sys::process;

/// How long the end of the old connection may take to be noticed once the frontend has a new one.
/// Once the worker has noticed it, the claim waits for the worker's end as long as that takes.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(3);

/// A new guest whose frontend has the memory of this one.
#[derive(Debug)]
pub(super) struct Claim {
    /// The number of that guest.
    number: u64,
    /// The channel to its worker.
    channel: Channel,
    /// Until when this guest's connection must have ended.
    pub(super) deadline: Instant,
}

impl AsFd for Claim {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Claim {
    pub(super) fn new(number: u64, channel: Channel) -> Self {
        Self {
            number,
            channel,
            deadline: Instant::now() + CLAIM_TIMEOUT,
        }
    }

    /// Until now, the connection could not be known to be open.
    pub(super) fn wait_longer(&mut self) {
        self.deadline = Instant::now() + CLAIM_TIMEOUT;
    }
}

/// How the wait for the frontend has ended.
pub(super) enum Waited {
    /// It is back.
    Reconnected,
    /// The keeper ends with this status.
    Over(u8),
}

impl Keeper<'_> {
    /// Waits until the guest's frontend has connected again, or the time for that is over.
    pub(super) fn wait_for_frontend(
        &mut self,
        successor: &mut Option<Channel>,
        claim: &mut Option<Claim>,
    ) -> io::Result<Waited> {
        let number = self.assignment.number;
        let limit = self.config.keep_session();
        let is_new = recovery::disconnected_for(&self.arena).is_none();
        self.close_connection(&passing(successor.as_ref(), claim.as_ref()));
        self.is_disconnected = false;
        self.announce();
        if is_new {
            log::info!(
                "guest {number} has lost its connection; its session is kept for {} s, in case that \
                 its frontend reconnects (--keep-session)",
                limit.as_secs()
            );
        }
        loop {
            // A keeper that is to take the guest over has been offered the old connection.
            if successor.is_none()
                && let Some(claim) = claim.take()
                && self.take_connection(claim)
            {
                return Ok(Waited::Reconnected);
            }
            let lost_for = recovery::disconnected_for(&self.arena).unwrap_or_default();
            let left = limit.saturating_sub(lost_for);
            if left.is_zero() {
                log::info!(
                    "guest {number} has gone: its frontend has not reconnected within {} s",
                    limit.as_secs()
                );
                return Ok(Waited::Over(0));
            }
            let waited = [Some(self.assignment.control.as_fd())]
                .into_iter()
                .chain([successor.as_ref().map(AsFd::as_fd)]);
            let mut ready: Vec<_> = waited
                .flatten()
                .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
                .collect();
            match poll(&mut ready, Timespec::try_from(left).ok().as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut ready = ready.iter().map(|ready| !ready.revents().is_empty());
            let [is_told, is_asked] = [(); 2].map(|()| ready.next().unwrap_or_default());
            if is_asked && let Some(successor) = successor.take() {
                match successor.receive(None) {
                    Ok(Some(arrived)) if arrived.message == Message::Take => {
                        let ended = self.hand_over(None, &successor, claim.as_ref())?;
                        if let Ended::InOrder(status) = ended {
                            return Ok(Waited::Over(status));
                        }
                    }
                    // The successor has gone.
                    _ => {}
                }
            }
            if is_told && !self.hear(successor, claim)? {
                if self.arena.holder().is_none() {
                    log::info!("guest {number} has gone while its connection was lost");
                }
                // Otherwise the session outlives this process.
                return Ok(Waited::Over(0));
            }
        }
    }

    /// Closes what the frontend had sent, except the memory by which it is recognised. `passing`
    /// stays open.
    pub(super) fn close_connection(&self, passing: &[Option<BorrowedFd<'_>>]) {
        // The last reply was for the connection that is lost.
        let _ = self.replies.clear();
        let left = recovery::note_disconnected(&self.arena);
        if let Some(holder) = self.arena.holder() {
            holder.release(&left);
        }
        for number in left {
            if let Ok(number) = u32::try_from(number) {
                // It was the state's, and no worker runs.
                let _ = process::close_range(number, number);
            }
        }
        // If descriptors of the state are lost, the next worker makes it whole.
        let is_complete = self.arena.header().is_incomplete.load(Ordering::Acquire) == 0;
        if is_complete && let Err(error) = self.sweep(passing, &[]) {
            log::error!(
                "what the frontend of guest {} has sent cannot be closed: {error}",
                self.assignment.number
            );
        }
    }

    /// Tells the acceptor by what the guest's frontend is recognised, and whether it is away.
    pub(super) fn announce(&self) {
        if self.config.keep_session().is_zero() {
            return;
        }
        let control = &self.assignment.control;
        let state = DeviceState::load(&self.arena).unwrap_or_default();
        // If this fails, the acceptor has ended. The next one asks again.
        if let Some(inflight) = state.inflight {
            let _ = control.send(&Message::Inflight, &[process::borrow(inflight.file)]);
        }
        let is_disconnected = recovery::disconnected_for(&self.arena).is_some();
        let _ = control.send(&Message::Disconnected(is_disconnected), &[]);
    }

    /// Gives the guest the connection of `claim`. Returns whether it has it.
    fn take_connection(&mut self, claim: Claim) -> bool {
        let number = self.assignment.number;
        let lost_for = recovery::disconnected_for(&self.arena).unwrap_or_default();
        let Claim {
            number: new,
            channel,
            ..
        } = claim;
        let taken = new_connection::take(&channel, self.unused_number())
            .and_then(|taken| self.connect(taken));
        match taken {
            Ok(()) => {
                let seconds = lost_for.as_secs_f64();
                log::info!("guest {number} has reconnected after {seconds:.1} s, as guest {new}");
                true
            }
            Err(error) => {
                log::warn!(
                    "guest {number} cannot go on with the connection of guest {new}: {error}"
                );
                false
            }
        }
    }

    /// The number from which on a descriptor may be added. If the state still refers to descriptors
    /// that are lost, another one must not be taken for one of them.
    fn unused_number(&self) -> RawFd {
        let end = &self.arena.header().descriptors_end;
        let end = self.arrived.as_ref().map(|_| end.load(Ordering::Acquire));
        end.map_or(0, |end| RawFd::try_from(end).unwrap_or(RawFd::MAX))
    }

    fn connect(&mut self, new: NewConnection) -> io::Result<()> {
        let NewConnection { connection, state } = new;
        let old = self.assignment.connection.as_raw_fd();
        self.descriptors.retain(|number| *number != old);
        self.descriptors.push(connection.as_raw_fd());
        self.assignment.connection = connection;
        let before = recovery::descriptors(&self.arena);
        if !recovery::note_reconnected(&self.arena, &state) {
            // It was found to fit. Nobody is left to serve the frontend, which can connect again.
            let _ = self.assignment.connection.shutdown(Shutdown::Both);
            return Err(io::Error::other("its set-up cannot be stored"));
        }
        if let Some(arrived) = &mut self.arrived {
            arrived.extend(state.descriptors());
        }
        if let Some(holder) = self.arena.holder() {
            // The next worker closes these.
            holder.release(&before);
            hold_device(holder, &state);
            let connection = &self.assignment.connection;
            let held = hold_guest(holder, connection, &self.arena, &self.confined);
            if let Err(reason) = held {
                log::error!("a guest's new connection is not held outside of the daemon: {reason}");
            }
        }
        let _ = self
            .assignment
            .control
            .send(&Message::Disconnected(false), &[]);
        Ok(())
    }

    /// Gives up a claim to this guest's session, since its connection has not ended.
    pub(super) fn refuse(&self, claim: &Claim) {
        log::warn!(
            "guest {} has the memory for requests in flight of guest {}, whose connection is still \
             open, and gets a session of its own",
            claim.number,
            self.assignment.number
        );
        // If there is no room for it, that one is not waiting.
        let _ = claim.channel.send_at_once(&Message::Gone, &[]);
    }
}
