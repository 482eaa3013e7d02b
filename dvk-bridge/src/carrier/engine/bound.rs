//! A bound endpoint's operations, as commands to the peers.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::desk::Desk;
use super::lane::{Awaited, Failure, Lane};
use super::line::PeerId;
use super::mailbox::{Idle, Received};
use super::station::Station;
use crate::abi::{
    Code, Command, CopyBlock, DcId, DcLimits, Endpoint, Header, M9, MAX_PAYLOAD, Message,
};
use crate::endpoint::{BoundEndpoint, Delivery, EndpointError, Lent, Operation, RequestId};

/// The endpoint, bound until this is dropped.
pub(crate) struct Bound {
    station: Arc<Station>,
    pub(super) desk: Arc<Desk>,
    copies: AtomicU32,
}

/// Why an operation failed, before it is said which.
pub(super) struct Trouble(pub(super) Failure);

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

impl From<Code> for Trouble {
    fn from(code: Code) -> Self {
        Self(Failure::Refused(code))
    }
}

impl From<Idle> for Failure {
    fn from(idle: Idle) -> Self {
        match idle {
            Idle::NotWaiting => Self::Refused(Code::EDVSPROCSTS),
            Idle::Unbound => Self::Unbound,
        }
    }
}

impl From<Idle> for Trouble {
    fn from(idle: Idle) -> Self {
        Self(idle.into())
    }
}

impl Bound {
    /// Binds `endpoint` at `station`.
    pub(crate) fn new(
        station: Arc<Station>,
        dc: DcId,
        endpoint: Endpoint,
        name: &str,
    ) -> Result<Self, EndpointError> {
        let operation = Operation::Bind { dc, endpoint };
        let refused = |code| EndpointError::Refused { operation, code };
        let desk = station.open(dc, endpoint, name).map_err(refused)?;
        Ok(Self {
            station,
            desk,
            copies: AtomicU32::new(0),
        })
    }

    /// Adds what was being done, and for how long, to what went wrong.
    fn explain<T>(
        &self,
        result: Result<T, Trouble>,
        operation: Operation,
        limit: Duration,
    ) -> Result<T, EndpointError> {
        result.map_err(|Trouble(failure)| match failure {
            Failure::Refused(code) => EndpointError::Refused { operation, code },
            Failure::TimedOut => EndpointError::TimedOut { operation, limit },
            Failure::NotConnected => EndpointError::NotConnected { operation },
            Failure::Unbound => EndpointError::Unbound { operation },
        })
    }

    /// What DVK lets only system processes do.
    fn must_be_system(&self) -> Result<(), Trouble> {
        if self.desk.limits.is_system(self.desk.endpoint) {
            Ok(())
        } else {
            Err(Code::EDVSBADCALL.into())
        }
    }

    /// Whether messages can be for `to` at all.
    pub(super) fn must_be_partner(&self, to: Endpoint) -> Result<PeerId, Trouble> {
        if self.desk.mailbox.is_closed() {
            return Err(Failure::Unbound.into());
        }
        if !self.desk.limits.contains(to) || to == Endpoint::HARDWARE {
            return Err(Code::EDVSBADDEST.into());
        }
        if to == self.desk.endpoint {
            return Err(Code::EDVSENDPOINT.into());
        }
        let peer = self.station.route(&self.desk, to);
        peer.ok_or_else(|| Code::EDVSNOPROXY.into())
    }

    pub(super) fn lane(&self, peer: PeerId, partner: Endpoint) -> Result<Arc<Lane>, Trouble> {
        let line = self.station.line(peer).ok_or(Failure::NotConnected)?;
        Ok(self.desk.lane(peer, partner, &line))
    }

    /// A command with a message for `to`.
    pub(super) fn carrying(&self, command: Command, to: Endpoint, message: &Message) -> Header {
        let mut header = self.desk.header(command, to);
        header.message = *message;
        // The peer hands the message on as it is.
        header.message.source = self.desk.endpoint;
        header
    }

    fn try_receive(&self, limit: Duration) -> Result<Delivery, Trouble> {
        self.must_be_system()?;
        match self.desk.mailbox.receive(Instant::now() + limit) {
            Received::Event(delivery, None) => Ok(delivery),
            Received::Event(delivery, Some(way)) => {
                if let Delivery::Message { client, .. } = delivery {
                    let mut received = self.desk.header(Command::SEND_ACK, client);
                    received.ack_seq = way.mark;
                    self.lane(way.peer, client)?.acknowledge(received, &[]);
                }
                Ok(delivery)
            }
            Received::Nothing => Err(Failure::TimedOut.into()),
            Received::Closed => Err(Failure::Unbound.into()),
        }
    }

    fn try_reply(&self, request: RequestId, message: &Message) -> Result<(), Trouble> {
        self.must_be_system()?;
        let header = self.carrying(Command::REPLY_MSG, request.client(), message);
        self.answer(request, header, self.station.exchange_limit())
    }

    /// Ends `request` with a command, which is not sent if nobody waits for it when its turn comes.
    fn answer(&self, request: RequestId, header: Header, limit: Duration) -> Result<(), Trouble> {
        let done = self.try_answer(request, header, limit);
        if done.is_err() {
            // Its client can ask again, whatever became of this. If it has ended already, that stays.
            let _ = self.desk.mailbox.answer(request);
        }
        done
    }

    fn try_answer(
        &self,
        request: RequestId,
        header: Header,
        limit: Duration,
    ) -> Result<(), Trouble> {
        let way = self.desk.mailbox.way(request)?;
        let lane = self.lane(way.peer, request.client())?;
        let header = Header {
            ack_seq: way.mark,
            ..header
        };
        // A request can come before our own connection is there. Who asked has nobody else to answer it.
        lane.wait_for_line(Instant::now() + limit);
        let sent = Cell::new(false);
        let permit = || {
            let mailbox = &self.desk.mailbox;
            let held = if sent.replace(true) {
                mailbox.answered(request)
            } else {
                mailbox.answer(request)
            };
            Ok(held?)
        };
        lane.exchange(header, &[], Awaited::Sent, limit, permit)?;
        Ok(())
    }

    fn try_send(&self, to: Endpoint, message: &Message, limit: Duration) -> Result<(), Trouble> {
        self.must_be_system()?;
        let peer = self.must_be_partner(to)?;
        let mut header = self.carrying(Command::SEND_MSG, to, message);
        if let Some(request) = self.desk.mailbox.served(to) {
            return self.answer(request, header, limit);
        }
        header.ack_seq = self.desk.question.mark();
        let lane = self.lane(peer, to)?;
        lane.exchange(header, &[], Awaited::Sent, limit, || Ok(Some(())))?;
        Ok(())
    }

    fn try_notify(&self, to: Endpoint) -> Result<(), Trouble> {
        self.must_be_system()?;
        let peer = self.must_be_partner(to)?;
        if !self.desk.limits.is_system(to) {
            return Err(Code::EDVSTRAPDENIED.into());
        }
        let message = Message::notification(self.desk.endpoint, &M9::default());
        let mut header = self.carrying(Command::NTFY_MSG, to, &message);
        header.rcode = NO_UPDATE_BIT;
        let deadline = Instant::now() + self.station.exchange_limit();
        self.lane(peer, to)?.tell(header, &[], deadline)?;
        Ok(())
    }

    fn try_copy_from(
        &self,
        request: RequestId,
        address: u32,
        into: &mut [u8],
    ) -> Result<(), Trouble> {
        self.must_be_system()?;
        let client = request.client();
        let mut address = address;
        for piece in into.chunks_mut(MAX_PAYLOAD) {
            let bytes = i32::try_from(piece.len()).map_err(|_| Code::EDVSBADRANGE)?;
            let tag = self.copies.fetch_add(1, Ordering::Relaxed);
            let mut header = self.desk.header(Command::COPYOUT_RQST, client);
            header.copy = CopyBlock {
                src: client.raw(),
                dst: self.desk.endpoint.raw(),
                requester: self.desk.endpoint.raw(),
                src_address: address,
                dst_address: tag,
                bytes,
            };
            let awaited = Awaited::CopiedOut { bytes, tag };
            let data = self.copy(request, header, &[], awaited)?;
            // As many as were asked for, or it would have been a failure.
            piece.copy_from_slice(data.get(..piece.len()).ok_or(Code::EFAULT)?);
            address = address.wrapping_add_signed(bytes);
        }
        Ok(())
    }

    fn try_copy_to(&self, request: RequestId, address: u32, from: &[u8]) -> Result<(), Trouble> {
        self.must_be_system()?;
        let client = request.client();
        let mut address = address;
        for piece in from.chunks(MAX_PAYLOAD) {
            let bytes = i32::try_from(piece.len()).map_err(|_| Code::EDVSBADRANGE)?;
            let tag = self.copies.fetch_add(1, Ordering::Relaxed);
            let mut header = self.desk.header(Command::COPYIN_DATA, client);
            header.copy = CopyBlock {
                src: self.desk.endpoint.raw(),
                dst: client.raw(),
                requester: self.desk.endpoint.raw(),
                src_address: tag,
                dst_address: address,
                bytes,
            };
            let awaited = Awaited::CopiedIn { bytes, tag };
            self.copy(request, header, piece, awaited)?;
            address = address.wrapping_add_signed(bytes);
        }
        Ok(())
    }

    /// One copy, if the client of `request` still waits for its answer when its turn comes.
    fn copy(
        &self,
        request: RequestId,
        header: Header,
        payload: &[u8],
        awaited: Awaited,
    ) -> Result<Vec<u8>, Trouble> {
        let way = self.desk.mailbox.way(request)?;
        let lane = self.lane(way.peer, request.client())?;
        let header = Header {
            ack_seq: way.mark,
            ..header
        };
        let limit = self.station.exchange_limit();
        let permit = || Ok(Some(self.desk.mailbox.serving(request)?));
        Ok(lane.exchange(header, payload, awaited, limit, permit)?)
    }
}

/// What a notification says that updates nothing in particular.
const NO_UPDATE_BIT: i32 = -1;

impl BoundEndpoint for Bound {
    fn dc(&self) -> DcId {
        self.desk.dc
    }

    fn endpoint(&self) -> Endpoint {
        self.desk.endpoint
    }

    fn limits(&self) -> DcLimits {
        self.desk.limits
    }

    fn receive(&self, limit: Duration) -> Result<Delivery, EndpointError> {
        self.explain(self.try_receive(limit), Operation::Receive, limit)
    }

    fn reply(&self, request: RequestId, message: &Message) -> Result<(), EndpointError> {
        let limit = self.station.exchange_limit();
        let client = request.client();
        let operation = Operation::Reply { client };
        self.explain(self.try_reply(request, message), operation, limit)
    }

    fn send(&self, to: Endpoint, message: &Message, limit: Duration) -> Result<(), EndpointError> {
        let operation = Operation::Send { to };
        self.explain(self.try_send(to, message, limit), operation, limit)
    }

    fn sendrec(
        &self,
        to: Endpoint,
        message: &Message,
        lent: &mut Lent<'_>,
        limit: Duration,
    ) -> Result<Message, EndpointError> {
        let operation = Operation::SendRec { to };
        self.explain(self.try_sendrec(to, message, lent, limit), operation, limit)
    }

    fn losses(&self, of: Endpoint) -> u64 {
        self.desk.losses(of, self.station.route(&self.desk, of))
    }

    fn notify(&self, to: Endpoint) -> Result<(), EndpointError> {
        let limit = self.station.exchange_limit();
        self.explain(self.try_notify(to), Operation::Notify { to }, limit)
    }

    fn copy_from(
        &self,
        request: RequestId,
        address: u32,
        into: &mut [u8],
    ) -> Result<(), EndpointError> {
        let operation = Operation::CopyFrom {
            client: request.client(),
            address,
            bytes: into.len(),
        };
        let limit = self.station.exchange_limit();
        self.explain(self.try_copy_from(request, address, into), operation, limit)
    }

    fn copy_to(&self, request: RequestId, address: u32, from: &[u8]) -> Result<(), EndpointError> {
        let operation = Operation::CopyTo {
            client: request.client(),
            address,
            bytes: from.len(),
        };
        let limit = self.station.exchange_limit();
        self.explain(self.try_copy_to(request, address, from), operation, limit)
    }

    fn unbind(&self) {
        self.station.close(&self.desk);
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.unbind();
    }
}
