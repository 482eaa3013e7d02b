//! The loss of a backend: what becomes of the driver's queues.
//!
//! ```text
//!           start                   connection closed          FUSE_INIT
//!   waits ────────> backend's queues ───────────────> lost ──────────────> waits
//!                          │       replies cannot be made │
//!                          └──────────> broken <──────────┘        any ── reset ──> no driver
//! ```
//!
//! A driver that waits gets error replies after a time without a backend, and that of a broken
//! device gets them until it resets the device, so that it can be unbound. Without a reply stay
//! requests that a backend may still write to, and those in rings that cannot be read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gangplank_service::{error_chain, rate_limited};
use gangplank_vhost_user::client::Messages;

use super::fs_device::{Change, FsDevice};
use super::lost_rings::{Answered, LostRings};
use crate::mmio::{Activation, EventFds};

impl<M: Messages> FsDevice<M> {
    /// The backend has closed its connection. A driver whose queues were running loses its session:
    /// see [`FsDevice::on_backend_lost`]. A driver that waits for a backend goes on.
    pub fn detach(&mut self) -> Change {
        self.disconnect();
        match (std::mem::take(&mut self.started), self.abandoned) {
            (false, _) => Change::None,
            (true, false) => self.on_backend_lost(),
            (true, true) => self.leave_to_backend(),
        }
    }

    /// Closes the connection to a backend that may still work on the driver's queues.
    pub fn cut_off(&mut self) -> Change {
        self.disconnect();
        match std::mem::take(&mut self.started) {
            true => self.leave_to_backend(),
            false => Change::None,
        }
    }

    /// The backend that had the driver's queues is gone, and what it knew of the guest's files with
    /// it. The device takes the queues over, or is broken if it cannot.
    pub fn on_backend_lost(&mut self) -> Change {
        self.started = false;
        let Some(driver) = &self.driver else {
            return Change::None;
        };
        let taken_over = LostRings::of(driver, &self.memory).and_then(|mut rings| {
            self.error_replies += rings.reclaim(&self.eventfds)?;
            Ok(rings)
        });
        match taken_over {
            Ok(rings) => {
                self.lost = Some(rings);
                Change::Lost
            }
            Err(error) => {
                rate_limited!(
                    error,
                    "the guest's requests in flight cannot be replied to: {}",
                    error_chain(&error)
                );
                self.give_up()
            }
        }
    }

    /// Forgets a driver with whose queues no backend can go on. Until it resets the device, its
    /// requests get error replies, unless a backend may still work on them.
    pub fn give_up(&mut self) -> Change {
        if self.driver.is_none() {
            // It was given up before.
            return Change::None;
        }
        if self.abandoned {
            return self.leave_to_backend();
        }
        let Some(driver) = self.forget_driver() else {
            return Change::None;
        };
        match LostRings::of(&driver, &self.memory) {
            Ok(mut rings) => {
                // A backend that was disconnected may still be at work.
                if let Err(error) = rings.wait_until_stable() {
                    rate_limited!(warn, "{}", error_chain(&error));
                }
                self.error_replies += rings.reclaim_broken(&self.eventfds);
                self.lost = Some(rings).filter(|rings| !rings.is_empty());
                if let Some(handover) = &self.handover {
                    handover.forget_backend();
                }
            }
            Err(error) => rate_limited!(warn, "{}", error_chain(&error)),
        }
        Change::NeedsReset
    }

    /// Forgets a driver whose requests a backend may still work on. They get no error replies: the
    /// guest would use their memory for something else while the backend writes to it.
    pub(super) fn leave_to_backend(&mut self) -> Change {
        self.forget_driver()
            .map_or(Change::None, |_| Change::NeedsReset)
    }

    fn forget_driver(&mut self) -> Option<Activation> {
        self.started = false;
        self.lost = None;
        self.driver.take()
    }

    /// Replies with errors to requests that have waited for a backend for `limit`, also to one that
    /// opens a session.
    pub fn refuse_waiting(&mut self, limit: Duration) -> Change {
        let waits = !self.is_attached() && self.lost.is_none();
        let Some(driver) = self.driver.as_ref().filter(|_| waits) else {
            self.waiting_since = None;
            return Change::None;
        };
        let refused =
            LostRings::without_backend(driver, &self.memory, &self.bases).and_then(|mut rings| {
                if !rings.has_requests()? {
                    self.waiting_since = None;
                    return Ok(());
                }
                let since = *self.waiting_since.get_or_insert_with(Instant::now);
                if since.elapsed() < limit {
                    return Ok(());
                }
                rate_limited!(
                    error,
                    "the guest's requests fail: they have waited {} s for a daemon",
                    limit.as_secs()
                );
                self.waiting_since = None;
                rings.reply(&self.eventfds, &mut self.error_replies)?;
                self.bases = rings.bases();
                Ok(())
            });
        match refused {
            Ok(()) => Change::None,
            Err(error) => {
                rate_limited!(
                    error,
                    "the guest's requests get no reply: {}",
                    error_chain(&error)
                );
                self.give_up()
            }
        }
    }

    /// The queues whose requests get error replies, because their backend is lost, and the eventfds
    /// with their kicks.
    pub fn lost_queues(&self) -> Option<(Vec<u16>, Arc<EventFds>)> {
        let bases = self.lost.as_ref()?.bases().into_iter();
        let queues = bases.map(|(queue, _)| queue).collect();
        Some((queues, Arc::clone(&self.eventfds)))
    }

    /// Requests that got an error reply because their backend was lost.
    pub fn error_replies(&self) -> u64 {
        self.error_replies
    }

    /// The running queues, in order to wait for the end of a backend that is going.
    pub(super) fn running_rings(&self) -> Option<LostRings> {
        let driver = self.driver.as_ref().filter(|_| self.started)?;
        LostRings::of(driver, &self.memory).ok()
    }

    /// As [`LostRings::wait_until_stable`], of a backend that a predecessor had. Called before the
    /// guest is served.
    pub(super) fn wait_until_stable(&self) {
        let driver = self.driver.as_ref();
        let rings = driver.and_then(|driver| LostRings::of(driver, &self.memory).ok());
        // What cannot be read now cannot be taken over either, which tells why.
        let _ = rings.map(|rings| rings.wait_until_stable());
    }

    /// Replies with an error to the requests in the queues whose backend is lost, unless one opens
    /// a session: then the queues wait for the next backend.
    pub fn reply_errors(&mut self) -> Change {
        let Some(rings) = &mut self.lost else {
            return Change::None;
        };
        match rings.reply(&self.eventfds, &mut self.error_replies) {
            Ok(Answered::All) => Change::None,
            Ok(Answered::UpToInit) => {
                rate_limited!(info, "the guest mounts anew");
                self.bases = rings.bases();
                self.lost = None;
                if let Some(handover) = &self.handover {
                    handover.forget_backend();
                }
                Change::None
            }
            Err(error) => {
                rate_limited!(
                    error,
                    "the guest's requests get no reply: {}",
                    error_chain(&error)
                );
                self.give_up_again()
            }
        }
    }

    /// As [`FsDevice::give_up`], also of a driver that was given up before.
    fn give_up_again(&mut self) -> Change {
        if let Some(rings) = self.lost.as_mut().filter(|rings| rings.are_broken()) {
            self.error_replies += rings.reclaim_broken(&self.eventfds);
            if rings.is_empty() {
                self.lost = None;
            }
            return Change::None;
        }
        self.give_up()
    }
}
