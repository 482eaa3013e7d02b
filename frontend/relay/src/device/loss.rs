//! The loss of a daemon: error replies to the requests that it had, and to all that come after
//! them.

use std::time::{Duration, Instant};

use gangplank_rings::{
    Progress, QueueError, Reclaimed, SessionOpening, reclaim_inflight, reply_errors,
    wait_until_stable,
};
use gangplank_service::{error_chain, rate_limited};

use super::{Device, Fatal, Phase, Retry};
use crate::daemon::DaemonError;

/// A successor that has served for that long has come to stay, even if it has completed nothing: a
/// request may wait for a lock.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

impl Device {
    /// The daemon's connection has become readable, which means that the daemon has closed it.
    pub(crate) fn daemon_hung_up(&mut self) -> Result<(), Fatal> {
        let is_noted = self.is_noted();
        match &mut self.phase {
            Phase::Paused { daemon, state } if state.is_some() || is_noted => {
                *daemon = None;
                rate_limited!(
                    info,
                    "the daemon of guest {}, which is paused, has gone; what it knew is kept",
                    self.guest
                );
                Ok(())
            }
            Phase::Waiting | Phase::Lost => Ok(()),
            _ => self.on_backend_lost("it closed the connection"),
        }
    }

    /// [`Device::on_backend_lost`] after an error. A daemon that has rings and is still connected
    /// ends the guest's connection: the daemon may go on writing to the guest's memory.
    pub(super) fn lose_after(&mut self, error: &DaemonError) -> Result<(), Fatal> {
        if !error.is_end() && self.rings.iter().any(|ring| ring.is_started) {
            return Err(Fatal::BackendUnresponsive(error_chain(error)));
        }
        self.on_backend_lost(&error_chain(error))
    }

    /// [`Device::lose_after`] for a daemon that had rings, even if they are stopped: no other
    /// process knows what it did with their requests.
    pub(super) fn lose_with_rings(&mut self, error: &DaemonError) -> Result<(), Fatal> {
        self.phase = Phase::Paused {
            daemon: None,
            state: None,
        };
        self.lose_after(error)
    }

    /// The daemon is gone, and with it what it knew of the guest's files. The relay replies with
    /// errors to the requests that it had, and to all that come after them.
    pub(super) fn on_backend_lost(&mut self, why: &str) -> Result<(), Fatal> {
        let was_started = self.rings.iter().any(|ring| ring.is_started);
        let was_paused = matches!(self.phase, Phase::Paused { .. });
        self.phase = Phase::Waiting;
        self.retry = Retry::now();
        if !was_started && !was_paused {
            rate_limited!(warn, "the daemon of guest {} has gone: {why}", self.guest);
            return Ok(());
        }
        if was_started && self.await_successor()? {
            rate_limited!(
                warn,
                "guest {} has lost its daemon, and its requests wait for the next: {why}",
                self.guest
            );
            return Ok(());
        }
        self.refuse_all(why)
    }

    /// Whether the daemon has noted which requests of the rings it has, for a successor that
    /// requests wait for.
    fn is_noted(&self) -> bool {
        let inflight = self.inflight.as_ref();
        let is_covered = inflight.is_some_and(|inflight| inflight.covers(&self.rings));
        is_covered && self.options.return_time.is_some()
    }

    /// Lets the requests wait for the successor of the daemon that is lost, if that has noted which
    /// it had. Returns whether they do.
    pub(super) fn await_successor(&mut self) -> Result<bool, Fatal> {
        let event_idx = self.has_event_idx();
        let is_noted = self.is_noted();
        let (Some(time), Some(memory), true) = (self.options.return_time, &self.memory, is_noted)
        else {
            return Ok(false);
        };
        let (mut used, mut has_requests) = (Vec::new(), false);
        for ring in &mut self.rings {
            if std::mem::take(&mut ring.is_started)
                && let Some(queue) = ring.queue(memory, event_idx)
            {
                // The successor adds what is in flight.
                ring.base = queue.used_index()?;
                has_requests |= queue.waiting(ring.base)? > 0;
                used.push(ring.base);
            }
        }
        self.counters.losses += 1;
        // Requests that no successor gets ahead with do not wait for ever.
        let is_settled = self.served_since.elapsed() >= time.min(SETTLED_AFTER);
        let before = self.last_loss.take();
        let before = before.filter(|(_, before)| !is_settled && has_requests && *before == used);
        let until = before.map_or_else(|| Instant::now() + time, |(until, _)| until);
        self.last_loss = has_requests.then_some((until, used));
        self.successor_until = Some(until);
        Ok(true)
    }

    /// Refuses the requests if the successor of a daemon has not come in time.
    pub(crate) fn refuse_if_late(&mut self) -> Result<(), Fatal> {
        let is_late = self
            .successor_until
            .is_some_and(|until| until <= Instant::now());
        if !is_late || !matches!(self.phase, Phase::Waiting) {
            return Ok(());
        }
        // As the daemon had them.
        for ring in &mut self.rings {
            ring.is_started = ring.is_ready();
        }
        self.counters.losses -= 1;
        self.refuse_all("no other has come in time")
    }

    fn refuse_all(&mut self, why: &str) -> Result<(), Fatal> {
        rate_limited!(
            error,
            "guest {} has lost its daemon, and its requests fail until it mounts anew: {why}",
            self.guest
        );
        self.counters.losses += 1;
        self.phase = Phase::Lost;
        // The next session has nothing of this one's.
        self.successor_until = None;
        self.inflight = None;
        self.last_loss = None;
        self.reclaim_rings()?;
        self.reply_errors_to_all()
    }

    fn reclaim_rings(&mut self) -> Result<(), Fatal> {
        let event_idx = self.has_event_idx();
        let Some(memory) = &self.memory else {
            return Ok(());
        };
        for ring in &mut self.rings {
            let was_started = std::mem::take(&mut ring.is_started);
            let Some(queue) = ring.queue(memory, event_idx) else {
                continue;
            };
            if !was_started && (!ring.is_ready() || queue.used_index()? == ring.base) {
                continue;
            }
            wait_until_stable(&queue)?;
            match reclaim_inflight(&queue)? {
                Reclaimed::At { base, refused } => {
                    ring.base = base;
                    self.counters.refused += u64::from(refused);
                    ring.signal_call();
                }
                Reclaimed::Undecidable => return Err(Fatal::Undecidable),
            }
        }
        Ok(())
    }

    /// While the daemon is lost: replies with errors to all requests in the rings. A request that
    /// opens a session makes the device wait for a daemon again.
    ///
    /// # Errors
    /// The guest's memory cannot be written, so that no reply reaches the guest.
    pub(crate) fn reply_errors_to_all(&mut self) -> Result<(), Fatal> {
        let event_idx = self.has_event_idx();
        let (Phase::Lost, Some(memory)) = (&self.phase, &self.memory) else {
            return Ok(());
        };
        let mut is_session_opened = false;
        for (index, ring) in self.rings.iter_mut().enumerate() {
            if !ring.is_ready() || ring.broken {
                continue;
            }
            ring.take_kicks();
            let Some(queue) = ring.queue(memory, event_idx) else {
                continue;
            };
            let (mut base, mut count) = (ring.base, 0);
            let progress = reply_errors(&queue, &mut base, &mut count, SessionOpening::Stays);
            ring.base = base;
            self.counters.refused += count;
            if count > 0 {
                ring.signal_call();
            }
            match progress {
                Ok(Progress::All) => {}
                // The next wait ends at once, after the other descriptors had their chance.
                Ok(Progress::Some) => ring.signal_kick(),
                Ok(Progress::UpToInit) => is_session_opened = true,
                Err(error @ QueueError::Memory(_)) => return Err(error.into()),
                Err(error) => {
                    rate_limited!(
                        error,
                        "ring {index} of guest {} is stopped: {}",
                        self.guest,
                        error_chain(&error)
                    );
                    ring.broken = true;
                    ring.signal_error();
                }
            }
        }
        if is_session_opened {
            rate_limited!(info, "guest {} mounts anew", self.guest);
            self.phase = Phase::Waiting;
            self.retry = Retry::now();
        }
        Ok(())
    }
}
