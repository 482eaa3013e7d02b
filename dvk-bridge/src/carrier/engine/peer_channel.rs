//! One endpoint's commands to one peer: one exchange at a time, and what has to wait for its end.
//!
//! A DVK loses, without a word, a command from an endpoint whose earlier one it has not finished. So from a command that is
//! acknowledged until its acknowledgement, nothing else is sent: other commands queue for their turn, acknowledgements of
//! our own are kept back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::fair_lock::FairLock;
use super::peer_transport::{NotConnected, PeerTransport};
use crate::abi::{Code, Command, Endpoint, Header};

/// Most acknowledgements that are kept back. Each belongs to a partner that waits for it and sends nothing else meanwhile.
const MAX_HELD_ACKS: usize = 1024;

/// How often one who waits for a connection looks whether the endpoint is still there.
const CLOSED_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Why an exchange did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExchangeError {
    /// The peer says no.
    Refused(Code),
    /// There was no acknowledgement, or no turn, in time.
    TimedOut,
    /// There is no connection, or there is none any more.
    NotConnected,
    /// The endpoint was given up.
    Unbound,
}

/// What ends an exchange well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExpectedAck {
    /// The message was received.
    Sent,
    /// So many bytes were copied to the partner, by the copy of this tag.
    CopiedIn {
        /// Bytes.
        bytes: i32,
        /// The address that means nothing to the peer, and comes back.
        tag: u32,
    },
    /// So many bytes of the partner come along, by the copy of this tag.
    CopiedOut {
        /// Bytes.
        bytes: i32,
        /// The address that means nothing to the peer, and comes back.
        tag: u32,
    },
}

struct InFlight {
    command: Command,
    ack_seq: u32,
    since: Instant,
    partner: Endpoint,
    expected: ExpectedAck,
    outcome: Option<Result<Vec<u8>, ExchangeError>>,
}

/// When to try again what cannot be done while its partner moves to another node: a DVK tells so, and expects that.
#[derive(Debug)]
pub(super) struct RetryBackoff(Duration);

impl Default for RetryBackoff {
    fn default() -> Self {
        Self(Duration::from_millis(20))
    }
}

impl RetryBackoff {
    /// When to try next, if that is before `deadline`: each time later, up to half a second.
    pub(super) fn until(&mut self, deadline: Instant) -> Option<Instant> {
        let time = Instant::now() + self.0;
        self.0 = self.0.saturating_mul(2).min(Duration::from_millis(500));
        (time < deadline).then_some(time)
    }
}

#[derive(Default)]
struct State {
    in_flight: Option<InFlight>,
    held_acks: VecDeque<(Header, Vec<u8>)>,
    /// The last exchange was not finished in time.
    stuck: bool,
    /// The endpoint was given up.
    closed: bool,
    /// One whose acknowledgement did not come in time, and until when it is let pass.
    late: Option<(Endpoint, Instant)>,
}

impl State {
    /// An exchange is about to be sent, unless the endpoint was given up.
    fn begin(&mut self, header: &Header, expected: ExpectedAck) -> Result<(), ExchangeError> {
        if self.closed {
            return Err(ExchangeError::Unbound);
        }
        self.in_flight = Some(InFlight {
            command: header.command,
            ack_seq: header.ack_seq,
            since: Instant::now(),
            partner: header.dst,
            expected,
            outcome: None,
        });
        Ok(())
    }
}

/// The lane.
pub(super) struct PeerChannel {
    transport: Arc<dyn PeerTransport>,
    /// Acknowledgements say the mark of what they acknowledge.
    has_ack_seq: bool,
    send_lock: FairLock,
    state: Mutex<State>,
    changed: Condvar,
}

impl PeerChannel {
    /// A lane on `transport`. `has_ack_seq` says whether an acknowledgement has the mark (`c_ack_seq`) of what it acknowledges.
    pub(super) fn new(transport: Arc<dyn PeerTransport>, has_ack_seq: bool) -> Self {
        Self {
            transport,
            has_ack_seq,
            send_lock: FairLock::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Waits until there is a connection, or `deadline`, or the endpoint is given up.
    pub(super) fn wait_for_transport(&self, deadline: Instant) {
        let mut now = Instant::now();
        while now < deadline && !self.state.lock().closed {
            if self
                .transport
                .wait(deadline.min(now + CLOSED_CHECK_INTERVAL))
            {
                return;
            }
            now = Instant::now();
        }
    }

    /// Sends a command to `header.dst` and waits at most `limit` for what is `expected`: the bytes that came along.
    ///
    /// Each time that it is to be sent, `permit` says whether it still is, and what it gives is held until it was; if it gives
    /// nothing, there is nothing to be done any more.
    pub(super) fn exchange<H>(
        &self,
        header: Header,
        payload: &[u8],
        expected: ExpectedAck,
        limit: Duration,
        permit: impl Fn() -> Result<Option<H>, ExchangeError>,
    ) -> Result<Vec<u8>, ExchangeError> {
        let deadline = Instant::now() + limit;
        let _guard = self
            .send_lock
            .take(deadline)
            .ok_or(ExchangeError::TimedOut)?;
        self.wait_out_late_ack(header.dst);
        // A turn that came late leaves its exchange some time all the same.
        let deadline = deadline.max(Instant::now() + limit / 2);
        let mut backoff = RetryBackoff::default();
        loop {
            let Some(held) = permit()? else {
                return Ok(Vec::new());
            };
            self.state.lock().begin(&header, expected)?;
            // The acknowledgement may be there before this returns, and who takes it is not to wait for us.
            let posted = self.transport.post(header, payload);
            drop(held);
            let (mut state, outcome) = match posted {
                Ok(()) => self.wait_for_outcome(deadline),
                Err(error) => (self.state.lock(), Err(error.into())),
            };
            state.in_flight = None;
            if outcome == Err(ExchangeError::TimedOut)
                && expected == ExpectedAck::Sent
                && !self.has_ack_seq
            {
                state.late = Some((header.dst, Instant::now() + limit / 30));
            }
            self.note(&mut state, &outcome, header.command, header.dst);
            for (header, payload) in state.held_acks.drain(..) {
                // Without a connection nobody waits for it any more.
                let _ = self.transport.post(header, &payload);
            }
            let migrates = outcome == Err(ExchangeError::Refused(Code::EDVSMIGRATE));
            let Some(again) = backoff.until(deadline).filter(|_| migrates) else {
                return outcome;
            };
            let mut late = false;
            while !late && !state.closed {
                late = self.changed.wait_until(&mut state, again).timed_out();
            }
        }
    }

    /// Waits for a moment if an acknowledgement of `partner`'s, which does not say of what it is, did not come in time and may
    /// still come: it would be taken for that of what is sent next.
    fn wait_out_late_ack(&self, partner: Endpoint) {
        let mut state = self.state.lock();
        let mut over = false;
        while let Some((_, until)) = state.late.filter(|(late, _)| *late == partner)
            && !over
            && !state.closed
        {
            over = self.changed.wait_until(&mut state, until).timed_out();
        }
        state.late = state.late.filter(|(late, _)| *late != partner);
    }

    /// Waits for the end of what was just sent.
    fn wait_for_outcome(
        &self,
        deadline: Instant,
    ) -> (MutexGuard<'_, State>, Result<Vec<u8>, ExchangeError>) {
        let mut state = self.state.lock();
        let mut late = false;
        let outcome = loop {
            let outcome = state.in_flight.as_mut().and_then(|it| it.outcome.take());
            if let Some(outcome) = outcome {
                break outcome;
            }
            if late {
                break Err(ExchangeError::TimedOut);
            }
            late = self.changed.wait_until(&mut state, deadline).timed_out();
        };
        (state, outcome)
    }

    /// Says once that the peer does not answer, and once that it does again.
    fn note(
        &self,
        state: &mut State,
        outcome: &Result<Vec<u8>, ExchangeError>,
        command: Command,
        partner: Endpoint,
    ) {
        match outcome {
            Err(ExchangeError::TimedOut) if !state.stuck => {
                state.stuck = true;
                log::warn!(
                    "{command} to {partner} was not acknowledged in time: its node may lose what we send until it does"
                );
            }
            Ok(_) if state.stuck => {
                state.stuck = false;
                log::info!("{partner}'s node acknowledges again");
            }
            _ => {}
        }
    }

    /// Sends a command that nobody acknowledges, when it is its turn.
    pub(super) fn send(
        &self,
        header: Header,
        payload: &[u8],
        deadline: Instant,
    ) -> Result<(), ExchangeError> {
        let _guard = self
            .send_lock
            .take(deadline)
            .ok_or(ExchangeError::TimedOut)?;
        if self.state.lock().closed {
            return Err(ExchangeError::Unbound);
        }
        self.transport.post(header, payload)?;
        Ok(())
    }

    /// Sends an acknowledgement, or keeps it back until the exchange that is going on is over. Never waits.
    pub(super) fn acknowledge(&self, header: Header, payload: &[u8]) {
        let mut state = self.state.lock();
        if state.in_flight.is_none() {
            // Without a connection nobody waits for it any more.
            let _ = self.transport.post(header, payload);
        } else if state.held_acks.len() < MAX_HELD_ACKS {
            state.held_acks.push_back((header, payload.to_vec()));
        } else {
            log::warn!(
                "{MAX_HELD_ACKS} acknowledgements wait for {}'s node to finish one exchange: {} is dropped",
                header.dst,
                header.command
            );
        }
    }

    /// Takes an acknowledgement that came. Whether it was waited for.
    pub(super) fn acknowledged(&self, header: &Header, payload: &[u8]) -> bool {
        let mut state = self.state.lock();
        let Some(in_flight) = &mut state.in_flight else {
            let late = state.late.is_some_and(|(late, _)| late == header.src);
            if late && header.command == Command::SEND_ACK {
                state.late = None;
                self.changed.notify_all();
            }
            return false;
        };
        let due = !self.has_ack_seq || in_flight.ack_seq == header.ack_seq;
        if !due || in_flight.partner != header.src || in_flight.outcome.is_some() {
            return false;
        }
        let Some(outcome) = outcome(in_flight.expected, header, payload) else {
            return false;
        };
        in_flight.outcome = Some(outcome);
        drop(state);
        self.changed.notify_all();
        true
    }

    /// The partner is known to have gone: what waits for it fails.
    pub(super) fn partner_gone(&self, partner: Endpoint, code: Code) {
        self.fail(ExchangeError::Refused(code), |in_flight| {
            in_flight.partner == partner
        });
    }

    /// The connection is lost: what is going on fails, what was kept back has nobody to go to.
    pub(super) fn lost(&self) {
        let mut state = self.state.lock();
        state.held_acks.clear();
        state.late = None;
        drop(state);
        self.fail(ExchangeError::NotConnected, |_| true);
    }

    /// The endpoint is given up: what is going on fails, and what waits for its turn when that comes.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
        self.fail(ExchangeError::Unbound, |_| true);
    }

    /// What goes on; nothing if nothing does, and nothing is wrong.
    pub(super) fn describe(&self) -> Option<String> {
        let state = self.state.lock();
        let stuck = if state.stuck {
            "; an earlier one was not acknowledged in time"
        } else {
            ""
        };
        match &state.in_flight {
            Some(it) => Some(format!(
                "{} to {} for {} ms, {} acknowledgements wait for its end{stuck}",
                it.command,
                it.partner,
                it.since.elapsed().as_millis(),
                state.held_acks.len()
            )),
            None => state.stuck.then(|| format!("no exchange{stuck}")),
        }
    }

    fn fail(&self, failure: ExchangeError, concerned: impl Fn(&InFlight) -> bool) {
        let mut state = self.state.lock();
        if let Some(in_flight) = state.in_flight.as_mut().filter(|it| concerned(it)) {
            in_flight.outcome.get_or_insert(Err(failure));
            self.changed.notify_all();
        }
    }
}

impl From<NotConnected> for ExchangeError {
    fn from(_: NotConnected) -> Self {
        Self::NotConnected
    }
}

/// What an acknowledgement means for an exchange; nothing if it is another's.
///
/// A failure's copy block is of some earlier copy in real nodes, so only that of a success is looked at: by its tag, an
/// answer to an earlier copy that came too late is not mistaken for this one's.
fn outcome(
    expected: ExpectedAck,
    header: &Header,
    payload: &[u8],
) -> Option<Result<Vec<u8>, ExchangeError>> {
    let refused = Code::from_result(header.rcode).map(|code| Err(ExchangeError::Refused(code)));
    match (expected, header.command) {
        (ExpectedAck::Sent, Command::SEND_ACK) => Some(refused.unwrap_or(Ok(Vec::new()))),
        (ExpectedAck::CopiedIn { bytes, tag }, Command::COPYIN_ACK) => {
            if refused.is_some() {
                return refused;
            }
            let whole = header.rcode == bytes || header.rcode == 0;
            let result = whole.then_some(Vec::new());
            (header.copy.src_address == tag).then_some(result.ok_or(short()))
        }
        (ExpectedAck::CopiedOut { bytes, tag }, Command::COPYOUT_DATA) => {
            if refused.is_some() {
                return refused;
            }
            let whole = usize::try_from(bytes) == Ok(payload.len());
            let result = whole.then(|| payload.to_vec());
            (header.copy.dst_address == tag).then_some(result.ok_or(short()))
        }
        _ => None,
    }
}

/// Less was copied than was asked for: the memory ended.
fn short() -> ExchangeError {
    ExchangeError::Refused(Code::EFAULT)
}

#[cfg(test)]
mod tests;
