//! One endpoint's commands to one peer: one exchange at a time, and the commands that wait for its
//! end.
//!
//! A DVK silently loses a command of an endpoint whose previous command it has not finished. So
//! between a command that needs an acknowledgement and that acknowledgement, the channel sends
//! nothing: other commands queue, and the channel holds back its own acknowledgements.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gangplank_service::rate_limited;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::fair_lock::FairLock;
use super::peer_transport::{NotConnected, PeerTransport};
use crate::abi::{Code, Command, Endpoint, Header};

/// Acknowledgements that a channel holds back at most. Each belongs to a partner that waits for it
/// and sends nothing else meanwhile.
const MAX_HELD_ACKS: usize = 1024;

/// Interval at which a thread that waits for a connection checks whether the endpoint was released.
const CLOSED_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Why an exchange failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExchangeError {
    /// The peer refused.
    Refused(Code),
    /// The acknowledgement, or the channel, was not available in time.
    TimedOut,
    /// The peer is not connected, or the connection was lost.
    NotConnected,
    /// The endpoint was released.
    Unbound,
}

/// The acknowledgement that completes an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExpectedAck {
    /// The message was received.
    Sent,
    /// The copy with this tag has copied this many bytes to the partner.
    CopiedIn {
        /// Bytes.
        bytes: i32,
        /// An address without meaning for the peer, which the peer returns.
        tag: u32,
    },
    /// The copy with this tag has returned this many bytes of the partner.
    CopiedOut {
        /// Bytes.
        bytes: i32,
        /// An address without meaning for the peer, which the peer returns.
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

/// Wait before a retry while the partner migrates to another node. A DVK answers EDVSMIGRATE then
/// and expects a retry.
#[derive(Debug)]
pub(super) struct RetryBackoff(Duration);

impl Default for RetryBackoff {
    fn default() -> Self {
        Self(Duration::from_millis(20))
    }
}

impl RetryBackoff {
    /// The time of the next retry, if it is before `deadline`. The wait doubles up to 500 ms.
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
    /// The last exchange timed out.
    stuck: bool,
    /// The endpoint was released.
    closed: bool,
    /// A partner whose acknowledgement is overdue, and until when the channel waits for it.
    late: Option<(Endpoint, Instant)>,
}

impl State {
    /// Records an exchange that is about to be sent, unless the endpoint was released.
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

/// The channel of one endpoint to one peer.
pub(super) struct PeerChannel {
    transport: Arc<dyn PeerTransport>,
    /// Acknowledgements carry the number of the command that they acknowledge.
    has_ack_seq: bool,
    send_lock: FairLock,
    state: Mutex<State>,
    changed: Condvar,
}

impl PeerChannel {
    /// A channel over `transport`. `has_ack_seq` says whether an acknowledgement carries the number
    /// (`c_ack_seq`) of its command.
    pub(super) fn new(transport: Arc<dyn PeerTransport>, has_ack_seq: bool) -> Self {
        Self {
            transport,
            has_ack_seq,
            send_lock: FairLock::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Waits until the peer is connected, `deadline` passes, or the endpoint is released.
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

    /// Sends a command to `header.dst` and waits up to `limit` for the `expected` acknowledgement.
    /// Returns the bytes that came with it.
    ///
    /// `permit` runs before each attempt to send. The channel holds its value until the command is
    /// sent. If it returns `None`, the exchange ends without sending.
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
        self.wait_for_late_ack(header.dst);
        // A command that waited long for the channel still gets half of its time.
        let deadline = deadline.max(Instant::now() + limit / 2);
        let mut backoff = RetryBackoff::default();
        loop {
            let Some(held) = permit()? else {
                return Ok(Vec::new());
            };
            self.state.lock().begin(&header, expected)?;
            // The acknowledgement may arrive before `post` returns, and the reader must not wait
            // for this thread.
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
                // Without a connection nobody waits for it.
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

    /// Waits a moment if an acknowledgement of `partner` without a number is overdue and may still
    /// arrive. It would be taken for that of the next command.
    fn wait_for_late_ack(&self, partner: Endpoint) {
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

    /// Waits for the outcome of the command that was just sent.
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

    /// Logs once that the peer does not answer, and once that it answers again.
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
                rate_limited!(
                    peer = partner.log_key(),
                    warn,
                    "{command} to {partner} was not acknowledged in time: its node may lose \
                     messages until it is"
                );
            }
            Ok(_) if state.stuck => {
                state.stuck = false;
                rate_limited!(
                    peer = partner.log_key(),
                    info,
                    "{partner}'s node acknowledges again"
                );
            }
            _ => {}
        }
    }

    /// Sends a command that needs no acknowledgement, when the channel is free.
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

    /// Sends an acknowledgement, or holds it back until the current exchange ends. Never waits.
    pub(super) fn acknowledge(&self, header: Header, payload: &[u8]) {
        let mut state = self.state.lock();
        if state.in_flight.is_none() {
            // Without a connection nobody waits for it.
            let _ = self.transport.post(header, payload);
        } else if state.held_acks.len() < MAX_HELD_ACKS {
            state.held_acks.push_back((header, payload.to_vec()));
        } else {
            rate_limited!(
                peer = header.dst.log_key(),
                warn,
                "{MAX_HELD_ACKS} acknowledgements wait for {}'s node to finish one exchange: \
                 {} is dropped",
                header.dst,
                header.command
            );
        }
    }

    /// Handles an acknowledgement. Returns whether the current exchange expected it.
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

    /// Fails the exchange with `partner`, which is gone.
    pub(super) fn partner_gone(&self, partner: Endpoint, code: Code) {
        self.fail(ExchangeError::Refused(code), |in_flight| {
            in_flight.partner == partner
        });
    }

    /// Fails the current exchange and drops held acknowledgements, since the connection is lost.
    pub(super) fn lost(&self) {
        let mut state = self.state.lock();
        state.held_acks.clear();
        state.late = None;
        drop(state);
        self.fail(ExchangeError::NotConnected, |_| true);
    }

    /// Fails the current exchange and all that wait for the channel, because the endpoint is
    /// released.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
        self.fail(ExchangeError::Unbound, |_| true);
    }

    /// Describes the current exchange. Returns `None` if there is none and the last one succeeded.
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

/// The outcome that an acknowledgement has for an exchange. Returns `None` if it belongs to another
/// one.
///
/// Real nodes send the copy block of some earlier copy with a failure, so only a success is matched
/// by its tag. The tag keeps a late answer to an earlier copy apart.
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

/// The partner copied less than requested: its memory ended.
fn short() -> ExchangeError {
    ExchangeError::Refused(Code::EFAULT)
}

#[cfg(test)]
mod tests;
