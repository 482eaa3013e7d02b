//! The operations of a bound endpoint, sent as commands to the peers.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::endpoint_state::EndpointState;
use super::endpoint_table::EndpointTable;
use super::mailbox::{Received, RequestEnded};
use super::peer_channel::{ExchangeError, ExpectedAck, PeerChannel};
use super::peer_transport::PeerId;
use crate::abi::{
    Code, Command, CopyBlock, DcId, DcLimits, Endpoint, Header, M9, MAX_PAYLOAD, Message,
};
use crate::endpoint::{
    BoundEndpoint, Delivery, EndpointError, Operation, RequestId, SharedBuffers,
};

/// A bound endpoint. Dropping it unbinds it.
pub(crate) struct EngineEndpoint {
    table: Arc<EndpointTable>,
    pub(super) state: Arc<EndpointState>,
    copies: AtomicU32,
}

impl From<Code> for ExchangeError {
    fn from(code: Code) -> Self {
        Self::Refused(code)
    }
}

impl From<RequestEnded> for ExchangeError {
    fn from(reason: RequestEnded) -> Self {
        match reason {
            RequestEnded::NotWaiting => Self::Refused(Code::EDVSPROCSTS),
            RequestEnded::Unbound => Self::Unbound,
        }
    }
}

impl EngineEndpoint {
    /// Binds `endpoint` in `table`.
    pub(crate) fn new(
        table: Arc<EndpointTable>,
        dc: DcId,
        endpoint: Endpoint,
        name: &str,
    ) -> Result<Self, EndpointError> {
        let operation = Operation::Bind { dc, endpoint };
        let refused = |code| EndpointError::Refused { operation, code };
        let state = table.open(dc, endpoint, name).map_err(refused)?;
        Ok(Self {
            table,
            state,
            copies: AtomicU32::new(0),
        })
    }

    /// Adds the operation and its time limit to an error.
    fn explain<T>(
        &self,
        result: Result<T, ExchangeError>,
        operation: Operation,
        limit: Duration,
    ) -> Result<T, EndpointError> {
        result.map_err(|failure| match failure {
            ExchangeError::Refused(code) => EndpointError::Refused { operation, code },
            ExchangeError::TimedOut => EndpointError::TimedOut { operation, limit },
            ExchangeError::NotConnected => EndpointError::NotConnected { operation },
            ExchangeError::Unbound => EndpointError::Unbound { operation },
        })
    }

    /// Checks that the endpoint is a system process, as DVK requires for most operations.
    fn must_be_system(&self) -> Result<(), ExchangeError> {
        if self.state.limits.is_system(self.state.endpoint) {
            Ok(())
        } else {
            Err(Code::EDVSBADCALL.into())
        }
    }

    /// Checks that `to` can receive messages, and returns the peer that has it.
    pub(super) fn must_be_partner(&self, to: Endpoint) -> Result<PeerId, ExchangeError> {
        if self.state.mailbox.is_closed() {
            return Err(ExchangeError::Unbound);
        }
        if !self.state.limits.contains(to) || to == Endpoint::HARDWARE {
            return Err(Code::EDVSBADDEST.into());
        }
        if to == self.state.endpoint {
            return Err(Code::EDVSENDPOINT.into());
        }
        let peer = self.table.route(&self.state, to);
        peer.ok_or_else(|| Code::EDVSNOPROXY.into())
    }

    pub(super) fn channel(
        &self,
        peer: PeerId,
        partner: Endpoint,
    ) -> Result<Arc<PeerChannel>, ExchangeError> {
        let transport = self
            .table
            .transport(peer)
            .ok_or(ExchangeError::NotConnected)?;
        Ok(self.state.channel(peer, partner, &transport))
    }

    /// A command that carries `message` to `to`.
    pub(super) fn carrying(&self, command: Command, to: Endpoint, message: &Message) -> Header {
        let mut header = self.state.header(command, to);
        header.message = *message;
        // The peer passes the message on unchanged.
        header.message.source = self.state.endpoint;
        header
    }

    fn try_receive(&self, limit: Duration) -> Result<Delivery, ExchangeError> {
        self.must_be_system()?;
        match self.state.mailbox.receive(Instant::now() + limit) {
            Received::Event(delivery, None) => Ok(delivery),
            Received::Event(delivery, Some(route)) => {
                if let Delivery::Message { client, .. } = delivery {
                    let mut received = self.state.header(Command::SEND_ACK, client);
                    received.ack_seq = route.ack_seq;
                    self.channel(route.peer, client)?.acknowledge(received, &[]);
                }
                Ok(delivery)
            }
            Received::Nothing => Err(ExchangeError::TimedOut),
            Received::Closed => Err(ExchangeError::Unbound),
        }
    }

    fn try_reply(&self, request: RequestId, message: &Message) -> Result<(), ExchangeError> {
        self.must_be_system()?;
        let header = self.carrying(Command::REPLY_MSG, request.client(), message);
        self.answer(request, header, self.table.exchange_limit())
    }

    /// Ends `request` with a command. The command is not sent if the client no longer waits when
    /// the channel is free.
    fn answer(
        &self,
        request: RequestId,
        header: Header,
        limit: Duration,
    ) -> Result<(), ExchangeError> {
        let done = self.try_answer(request, header, limit);
        if done.is_err() {
            // Lets the client send its next request, whatever failed here. An error means that the
            // request has ended already.
            let _ = self.state.mailbox.answer(request);
        }
        done
    }

    fn try_answer(
        &self,
        request: RequestId,
        header: Header,
        limit: Duration,
    ) -> Result<(), ExchangeError> {
        let route = self.state.mailbox.route(request)?;
        let channel = self.channel(route.peer, request.client())?;
        let header = Header {
            ack_seq: route.ack_seq,
            ..header
        };
        // A request can arrive before our own connection is up, and only this process can answer
        // it.
        channel.wait_for_transport(Instant::now() + limit);
        let sent = Cell::new(false);
        let permit = || {
            let mailbox = &self.state.mailbox;
            let held = if sent.replace(true) {
                mailbox.answered(request)
            } else {
                mailbox.answer(request)
            };
            Ok(held?)
        };
        channel.exchange(header, &[], ExpectedAck::Sent, limit, permit)?;
        Ok(())
    }

    fn try_send(
        &self,
        to: Endpoint,
        message: &Message,
        limit: Duration,
    ) -> Result<(), ExchangeError> {
        self.must_be_system()?;
        let peer = self.must_be_partner(to)?;
        let mut header = self.carrying(Command::SEND_MSG, to, message);
        if let Some(request) = self.state.mailbox.served(to) {
            return self.answer(request, header, limit);
        }
        header.ack_seq = self.state.pending_call.ack_seq();
        let channel = self.channel(peer, to)?;
        channel.exchange(header, &[], ExpectedAck::Sent, limit, || Ok(Some(())))?;
        Ok(())
    }

    fn try_notify(&self, to: Endpoint) -> Result<(), ExchangeError> {
        self.must_be_system()?;
        let peer = self.must_be_partner(to)?;
        if !self.state.limits.is_system(to) {
            return Err(Code::EDVSTRAPDENIED.into());
        }
        let message = Message::notification(self.state.endpoint, &M9::default());
        let mut header = self.carrying(Command::NTFY_MSG, to, &message);
        header.rcode = NO_UPDATE_BIT;
        let deadline = Instant::now() + self.table.exchange_limit();
        self.channel(peer, to)?.send(header, &[], deadline)?;
        Ok(())
    }

    fn try_copy_from(
        &self,
        request: RequestId,
        address: u32,
        into: &mut [u8],
    ) -> Result<(), ExchangeError> {
        self.must_be_system()?;
        let client = request.client();
        let mut address = address;
        for piece in into.chunks_mut(MAX_PAYLOAD) {
            let bytes = i32::try_from(piece.len()).map_err(|_| Code::EDVSBADRANGE)?;
            let tag = self.copies.fetch_add(1, Ordering::Relaxed);
            let mut header = self.state.header(Command::COPYOUT_RQST, client);
            header.copy = CopyBlock {
                src: client.raw(),
                dst: self.state.endpoint.raw(),
                requester: self.state.endpoint.raw(),
                src_address: address,
                dst_address: tag,
                bytes,
            };
            let expected = ExpectedAck::CopiedOut { bytes, tag };
            let data = self.copy(request, header, &[], expected)?;
            // The exchange returns exactly as many bytes as were requested, or fails.
            piece.copy_from_slice(data.get(..piece.len()).ok_or(Code::EFAULT)?);
            address = address.wrapping_add_signed(bytes);
        }
        Ok(())
    }

    fn try_copy_to(
        &self,
        request: RequestId,
        address: u32,
        from: &[u8],
    ) -> Result<(), ExchangeError> {
        self.must_be_system()?;
        let client = request.client();
        let mut address = address;
        for piece in from.chunks(MAX_PAYLOAD) {
            let bytes = i32::try_from(piece.len()).map_err(|_| Code::EDVSBADRANGE)?;
            let tag = self.copies.fetch_add(1, Ordering::Relaxed);
            let mut header = self.state.header(Command::COPYIN_DATA, client);
            header.copy = CopyBlock {
                src: self.state.endpoint.raw(),
                dst: client.raw(),
                requester: self.state.endpoint.raw(),
                src_address: tag,
                dst_address: address,
                bytes,
            };
            let expected = ExpectedAck::CopiedIn { bytes, tag };
            self.copy(request, header, piece, expected)?;
            address = address.wrapping_add_signed(bytes);
        }
        Ok(())
    }

    /// Does one copy, if the client of `request` still waits when the channel is free.
    fn copy(
        &self,
        request: RequestId,
        header: Header,
        payload: &[u8],
        expected: ExpectedAck,
    ) -> Result<Vec<u8>, ExchangeError> {
        let route = self.state.mailbox.route(request)?;
        let channel = self.channel(route.peer, request.client())?;
        let header = Header {
            ack_seq: route.ack_seq,
            ..header
        };
        let limit = self.table.exchange_limit();
        let permit = || Ok(Some(self.state.mailbox.serving(request)?));
        channel.exchange(header, payload, expected, limit, permit)
    }
}

/// The `rcode` of a notification that sets no update bit.
const NO_UPDATE_BIT: i32 = -1;

impl BoundEndpoint for EngineEndpoint {
    fn dc(&self) -> DcId {
        self.state.dc
    }

    fn endpoint(&self) -> Endpoint {
        self.state.endpoint
    }

    fn limits(&self) -> DcLimits {
        self.state.limits
    }

    fn receive(&self, limit: Duration) -> Result<Delivery, EndpointError> {
        self.explain(self.try_receive(limit), Operation::Receive, limit)
    }

    fn reply(&self, request: RequestId, message: &Message) -> Result<(), EndpointError> {
        let limit = self.table.exchange_limit();
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
        buffers: &mut SharedBuffers<'_>,
        limit: Duration,
    ) -> Result<Message, EndpointError> {
        let operation = Operation::SendRec { to };
        self.explain(
            self.try_sendrec(to, message, buffers, limit),
            operation,
            limit,
        )
    }

    fn losses(&self, of: Endpoint) -> u64 {
        self.state.losses(of, self.table.route(&self.state, of))
    }

    fn notify(&self, to: Endpoint) -> Result<(), EndpointError> {
        let limit = self.table.exchange_limit();
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
        let limit = self.table.exchange_limit();
        self.explain(self.try_copy_from(request, address, into), operation, limit)
    }

    fn copy_to(&self, request: RequestId, address: u32, from: &[u8]) -> Result<(), EndpointError> {
        let operation = Operation::CopyTo {
            client: request.client(),
            address,
            bytes: from.len(),
        };
        let limit = self.table.exchange_limit();
        self.explain(self.try_copy_to(request, address, from), operation, limit)
    }

    fn unbind(&self) {
        self.table.close(&self.state);
    }
}

impl Drop for EngineEndpoint {
    fn drop(&mut self) {
        self.unbind();
    }
}
