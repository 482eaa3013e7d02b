//! One TCP connection of the stack.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use log::debug;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use smoltcp::time::Instant;

use super::outbox::Outbox;
use super::{StackConfig, peer, since};
use crate::network::admission::{RECORD_TIME, REPLY_TIME, Standing};
use crate::network::{MAX_CALLS, MAX_RECORD};
use crate::rpc::record::{self, Assembler};
use crate::rpc::reply::Reply;
use crate::rpc::reply_budget::{ReplyAccount, Reservation};
use crate::rpc::server::Server;

/// How long a client may take to complete the handshake. Machines at the switch take microseconds,
/// and repeat a segment that was lost within a second.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// A connection.
pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) handle: SocketHandle,
    /// Whether it has a place. It gets one after the handshake.
    pub(super) is_admitted: bool,
    /// It was closed when it was looked at last. By now the peer knows.
    pub(super) was_closed: bool,
    begun: Instant,
    assembler: Assembler,
    /// When the record began of which a part has come.
    record: Option<Instant>,
    /// Calls without a reply.
    calls: usize,
    /// Replies with their headers, and how much of the first is sent.
    replies: VecDeque<(Vec<u8>, Reservation)>,
    sent: usize,
    account: ReplyAccount,
    /// When the client took a part of a reply last, or had taken all before.
    taken: Instant,
    /// When bytes came or went last.
    last: Instant,
}

/// Why the stack ends a connection.
#[derive(Debug, thiserror::Error)]
enum Ending {
    #[error(transparent)]
    Record(#[from] record::RecordError),
    #[error("a record was not whole within {RECORD_TIME:?}")]
    LateRecord,
    #[error("no part of a reply was taken within {REPLY_TIME:?}")]
    LateReply,
}

impl Connection {
    /// A connection whose handshake has begun.
    pub(super) fn new(id: u64, handle: SocketHandle, account: ReplyAccount, now: Instant) -> Self {
        Self {
            id,
            handle,
            is_admitted: false,
            was_closed: false,
            begun: now,
            assembler: Assembler::new(MAX_RECORD),
            record: None,
            calls: 0,
            replies: VecDeque::new(),
            sent: 0,
            account,
            taken: now,
            last: now,
        }
    }

    pub(super) fn standing(&self, client: IpAddr, now: Instant) -> Standing {
        Standing {
            client,
            is_busy: self.calls > 0 || !self.replies.is_empty() || self.record.is_some(),
            quiet: since(self.last, now),
        }
    }

    /// When it is late, unless the client does something before.
    pub(super) fn deadline(&self, socket: &tcp::Socket<'_>) -> Option<Instant> {
        if socket.state() == tcp::State::SynReceived {
            return Some(self.begun + HANDSHAKE_TIME.into());
        }
        let record = self.record.map(|begun| begun + RECORD_TIME.into());
        let reply = (!self.replies.is_empty()).then(|| self.taken + REPLY_TIME.into());
        record.into_iter().chain(reply).min()
    }

    /// Whether the client has left the handshake incomplete for too long.
    pub(super) fn is_abandoned(&self, now: Instant) -> bool {
        since(self.begun, now) >= HANDSHAKE_TIME
    }

    /// Takes the reply to a call.
    pub(super) fn reply(&mut self, reply: Option<(Arc<Reply>, Reservation)>, now: Instant) {
        self.calls -= 1;
        self.last = now;
        if let Some((reply, reserved)) = reply {
            if self.replies.is_empty() {
                self.taken = now;
            }
            self.replies.push_back((reply.to_record(), reserved));
        }
    }

    /// Takes calls and sends replies. Ends the connection if the client breaks the rules, or has
    /// said all and got all.
    pub(super) fn serve(
        &mut self,
        socket: &mut tcp::Socket<'_>,
        server: &Arc<Server>,
        outbox: &Arc<Outbox>,
        config: StackConfig,
        now: Instant,
    ) {
        let served = self
            .receive(socket, server, outbox, config, now)
            .and_then(|()| self.send(socket, now));
        if let Err(ending) = served {
            debug!("{:?}: {ending}", socket.remote_endpoint());
            socket.abort();
            return;
        }
        let is_done = self.calls == 0 && self.replies.is_empty();
        if socket.state() == tcp::State::CloseWait && !socket.can_recv() && is_done {
            socket.close();
        }
    }

    /// Takes calls, as long as more are allowed.
    fn receive(
        &mut self,
        socket: &mut tcp::Socket<'_>,
        server: &Arc<Server>,
        outbox: &Arc<Outbox>,
        config: StackConfig,
        now: Instant,
    ) -> Result<(), Ending> {
        let Some(client) = socket.remote_endpoint() else {
            return Ok(());
        };
        let endpoints = config.endpoints(peer(client));
        // Replies that the client does not take count as well.
        while socket.can_recv()
            && self.calls + self.replies.len() < MAX_CALLS
            && self.account.has_room()
            && server.has_room()
        {
            let taken = socket.recv(|bytes| {
                let mut rest = &*bytes;
                let taken = self.assembler.take(&mut rest);
                (bytes.len() - rest.len(), taken)
            });
            let Ok(taken) = taken else { return Ok(()) };
            self.last = now;
            if let Some(record) = taken? {
                self.record = None;
                self.calls += 1;
                let (id, outbox) = (self.id, Arc::clone(outbox));
                let mut reserved = self.account.reserve(server.largest_reply(&record));
                let respond = move |reply: Option<Arc<Reply>>| {
                    let reply = reply.map(|reply| {
                        reserved.set(reply.len());
                        (reply, reserved)
                    });
                    outbox.put(id, reply);
                };
                server.submit(endpoints, record, Box::new(respond));
            }
        }
        self.record = match self.assembler.has_part() {
            // The client is not to blame for what waits here.
            true if socket.can_recv() => Some(now),
            true => self.record.or(Some(now)),
            false => None,
        };
        match self.record {
            Some(begun) if since(begun, now) >= RECORD_TIME => Err(Ending::LateRecord),
            _ => Ok(()),
        }
    }

    fn send(&mut self, socket: &mut tcp::Socket<'_>, now: Instant) -> Result<(), Ending> {
        while let Some((reply, _)) = self.replies.front() {
            let rest = reply.get(self.sent..).unwrap_or_default();
            match socket.send_slice(rest) {
                Ok(0) | Err(_) if since(self.taken, now) >= REPLY_TIME => {
                    return Err(Ending::LateReply);
                }
                Ok(0) | Err(_) => return Ok(()),
                Ok(len) => self.sent += len,
            }
            (self.taken, self.last) = (now, now);
            if self.sent >= reply.len() {
                self.replies.pop_front();
                self.sent = 0;
            }
        }
        Ok(())
    }
}
