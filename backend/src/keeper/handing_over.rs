//! How a keeper hands its guest over to the keeper of the next program.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use gangplank_service::error_chain;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::disconnected::Claim;
use super::sweep::passing;
use super::{Ended, Keeper, slow_requests, wait_for};
use crate::handover::channel::{Channel, Message};
use crate::handover::sending;
use crate::state::device::DeviceState;
use crate::state::recovery;
use crate::storage::Storage;

impl Keeper<'_> {
    /// Offers the guest to the keeper at the other end of `successor`.
    pub(super) fn offer(&self, successor: Channel) -> Option<Channel> {
        // On a disk, what takes long ends: a guest cannot hold a reload up by it.
        let may_hang = self.config.storage.as_ref().is_some_and(Storage::may_hang);
        // Without a connection, no worker runs.
        let may_hang = may_hang && recovery::disconnected_for(&self.arena).is_none();
        if may_hang && let Some(reason) = slow_requests::obstacle(&self.arena) {
            // If this fails, the successor has gone.
            let _ = successor.send(&Message::failed(&reason), &[]);
            return None;
        }
        let place = self.confined.place();
        let place = place.map_err(|error| sending::Error::Place(error_chain(&error)));
        let offered = place.and_then(|place| {
            sending::offer(
                &successor,
                self.arena.file(),
                self.assignment.connection.as_fd(),
                &place,
            )
        });
        match offered {
            Ok(()) => Some(successor),
            Err(error) => {
                let number = self.assignment.number;
                log::error!("cannot hand guest {number} over: {}", error_chain(&error));
                None
            }
        }
    }

    /// Stops the worker, if there is one, and sends all of its descriptors. Returns when the
    /// successor has failed; otherwise the process is killed.
    pub(super) fn hand_over(
        &self,
        worker: Option<Pid>,
        successor: &Channel,
        claim: Option<&Claim>,
    ) -> io::Result<Ended> {
        if let Some(worker) = worker {
            // The next worker finds everything as after any other death.
            kill_process(worker, Signal::KILL)?;
            match wait_for(worker)? {
                Ended::Died(_) => self.settle_reply(),
                // Just before.
                Ended::Disconnected => self.close_connection(&passing(Some(successor), claim)),
                ended => return Ok(ended),
            }
        }
        recovery::note_stop(&self.arena);
        let mut own = self.descriptors.clone();
        own.push(successor.as_fd().as_raw_fd());
        let open = self.confined.descriptors().map_err(io::Error::other);
        let sent = open.and_then(|open| {
            sending::send_descriptors(successor, open, &own).map_err(io::Error::other)
        });
        let number = self.assignment.number;
        if let Err(error) = sent {
            log::error!("cannot hand guest {number} over: {}", error_chain(&error));
        } else if self.is_succeeded_by(successor) {
            return Ok(Ended::InOrder(0));
        }
        log::warn!("guest {number} was not taken over, another worker goes on");
        Ok(Ended::Stopped)
    }

    /// Sends the reply that the worker has left: the pipe with it is not handed over.
    fn settle_reply(&self) {
        let state = DeviceState::load(&self.arena).unwrap_or_default();
        if state.pending.is_none() {
            // If this fails, the frontend has hung up, or does not read its replies.
            let _ = self.replies.send_now(self.assignment.connection.as_fd());
        }
    }

    /// Waits until it is decided who goes on. Usually, the supervisor kills this process then.
    fn is_succeeded_by(&self, successor: &Channel) -> bool {
        let mut ready = [
            // At its end if the successor has failed.
            PollFd::new(successor, PollFlags::IN),
            // At its end if the acceptor has been killed, and the successor's serves.
            PollFd::new(&self.assignment.control, PollFlags::RDHUP),
        ];
        while let Err(Errno::INTR) = poll(&mut ready, None) {}
        ready[0].revents().is_empty()
    }
}
