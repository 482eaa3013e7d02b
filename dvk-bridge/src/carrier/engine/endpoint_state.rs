//! One bound endpoint: its mailbox, its pending call, and its channels to the peers.

use std::collections::HashMap;
use std::sync::Arc;

use gangplank_service::rate_limited;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::config::PeerKind;
use super::mailbox::{Mailbox, Sender, WaitingClient};
use super::peer_channel::PeerChannel;
use super::peer_transport::{PeerId, PeerTransport};
use super::pending_call::{CallEvent, Disposition, PendingCall};
use crate::abi::{Code, Command, DcId, DcLimits, Endpoint, Header, Message};
use crate::endpoint::Gone;

/// The state of one bound endpoint.
pub(super) struct EndpointState {
    pub(super) dc: DcId,
    pub(super) endpoint: Endpoint,
    pub(super) name: String,
    pub(super) limits: DcLimits,
    pub(super) mailbox: Mailbox,
    pub(super) pending_call: PendingCall,
    kind: PeerKind,
    channels: Mutex<HashMap<(PeerId, i32), Arc<PeerChannel>>>,
    losses: Mutex<Losses>,
}

/// How often peers and partners were lost.
#[derive(Default)]
struct Losses {
    peers: HashMap<PeerId, u64>,
    /// Keyed by slot.
    partners: HashMap<i32, u64>,
}

impl EndpointState {
    pub(super) fn new(
        dc: DcId,
        endpoint: Endpoint,
        name: &str,
        limits: DcLimits,
        kind: PeerKind,
    ) -> Self {
        Self {
            dc,
            endpoint,
            name: name.to_owned(),
            limits,
            mailbox: Mailbox::default(),
            pending_call: PendingCall::new(kind.has_ack_seq()),
            kind,
            channels: Mutex::default(),
            losses: Mutex::default(),
        }
    }

    /// How often `partner` was lost, alone or together with `peer`.
    pub(super) fn losses(&self, partner: Endpoint, peer: Option<PeerId>) -> u64 {
        let losses = self.losses.lock();
        let with_peer = peer.and_then(|peer| losses.peers.get(&peer));
        let itself = losses.partners.get(&partner.slot());
        with_peer.copied().unwrap_or(0) + itself.copied().unwrap_or(0)
    }

    /// A command from this endpoint to `to`.
    pub(super) fn header(&self, command: Command, to: Endpoint) -> Header {
        Header {
            dc: self.dc.raw(),
            src: self.endpoint,
            dst: to,
            ..Header::new(command)
        }
    }

    /// The channel to `partner` at `peer`, over `transport`. There is one for each peer at nodes,
    /// and one for each slot at a switch.
    pub(super) fn channel(
        &self,
        peer: PeerId,
        partner: Endpoint,
        transport: &Arc<dyn PeerTransport>,
    ) -> Arc<PeerChannel> {
        let key = (peer, self.kind.channel(partner));
        let mut channels = self.channels.lock();
        let channel = channels.entry(key);
        channel
            .or_insert_with(|| {
                Arc::new(PeerChannel::new(transport.clone(), self.kind.has_ack_seq()))
            })
            .clone()
    }

    /// Handles a command that `peer` sent to this endpoint. Acknowledges it at once or reports a
    /// failure.
    pub(super) fn deliver(
        &self,
        peer: PeerId,
        transport: &Arc<dyn PeerTransport>,
        header: &Header,
        payload: &[u8],
    ) {
        let channel = self.channel(peer, header.src, transport);
        let mut message = header.message;
        // The peer vouches for the header, not for the message.
        message.source = header.src;
        let from = Sender {
            endpoint: header.src,
            peer,
            pid: (header.pid > 0).then_some(header.pid),
            ack_seq: header.ack_seq,
        };
        let result = match header.command {
            Command::SNDREC_MSG => self.mailbox.request(from, message).err(),
            Command::REPLY_MSG => match self.answered(&channel, peer, header, message) {
                Disposition::Accepted | Disposition::Late => None,
                Disposition::Unexpected => Some(Code::EDVSPROCSTS),
            },
            // A message from the endpoint that was called is its reply. Any other goes to the
            // mailbox.
            Command::SEND_MSG => match self.answered(&channel, peer, header, message) {
                Disposition::Accepted | Disposition::Late => None,
                Disposition::Unexpected => self.mailbox.message(from, message).err(),
            },
            Command::NTFY_MSG => self.mailbox.notification(from).err(),
            Command::COPYIN_DATA => {
                self.copy(peer, header, CallEvent::CopyIn(*header, payload.to_vec()))
            }
            Command::COPYOUT_RQST => self.copy(peer, header, CallEvent::CopyOut(*header)),
            Command::COPYLCL_RQST | Command::COPYRMT_RQST | Command::COPYIN_RQST => {
                Some(Code::ENOSYS)
            }
            _ => {
                self.acknowledged(&channel, peer, header, payload);
                None
            }
        };
        if result == Some(Code::EDVSNONODE) {
            self.log_slot_conflict(peer, header.src);
        }
        if let (Some(code), Some(command)) = (result, header.command.failure()) {
            channel.acknowledge(header.answer(command, code.result()), &[]);
        }
    }

    /// Warns that `peer` has used the endpoint of another peer's process, which is refused.
    fn log_slot_conflict(&self, peer: PeerId, endpoint: Endpoint) {
        let owner = self.mailbox.owner_of(endpoint);
        rate_limited!(
            peer = u64::from(peer.0.cast_unsigned()),
            warn,
            "{} refuses {endpoint} of node {}: node {}, which is connected, has a process with \
             that endpoint; each process of a container needs its own",
            self.endpoint,
            peer.0,
            owner.map_or("another".to_owned(), |owner| owner.0.to_string())
        );
    }

    /// Acknowledges a reply and passes it to the caller, if there is one.
    fn answered(
        &self,
        channel: &PeerChannel,
        peer: PeerId,
        header: &Header,
        message: Message,
    ) -> Disposition {
        let event = CallEvent::Answer(message);
        self.pending_call
            .offer_after(header.src, peer, header.ack_seq, event, || {
                channel.acknowledge(header.answer(Command::SEND_ACK, 0), &[]);
            })
    }

    /// Passes a copy to the caller. Returns the refusal if no call to its requester is pending.
    fn copy(&self, peer: PeerId, header: &Header, event: CallEvent) -> Option<Code> {
        let taken = self
            .pending_call
            .offer(header.src, peer, header.ack_seq, event);
        (taken != Disposition::Accepted).then_some(Code::EPERM)
    }

    fn acknowledged(&self, channel: &PeerChannel, peer: PeerId, header: &Header, payload: &[u8]) {
        let code = Code::from_result(header.rcode);
        let gone = code.is_some_and(|code| GONE.contains(&code));
        if gone && self.mailbox.peer_of(header.src) == Some(peer) {
            self.mailbox.gone(header.src, Gone::Unbound);
        }
        if channel.acknowledged(header, payload) {
            return;
        }
        // A kernel reports a failed call like a failed message, this engine as a failed call.
        let pending_call = matches!(header.command, Command::SEND_ACK | Command::SNDREC_ACK);
        if let Some(code) = code.filter(|_| pending_call)
            && self
                .pending_call
                .offer(header.src, peer, header.ack_seq, CallEvent::Failed(code))
                != Disposition::Unexpected
        {
            return;
        }
        log::debug!(
            "unexpected {} from {} to {} with result {}",
            header.command,
            header.src,
            header.dst,
            header.rcode
        );
    }

    /// Another endpoint is gone.
    pub(super) fn partner_gone(&self, partner: Endpoint, reason: Gone) {
        let slot = partner.slot();
        *self.losses.lock().partners.entry(slot).or_default() += 1;
        self.mailbox.gone(partner, reason);
        self.pending_call.partner_gone(partner, Code::EDVSSRCDIED);
        for channel in self.all_channels(|_| true) {
            channel.partner_gone(partner, Code::EDVSDSTDIED);
        }
    }

    /// Fails the exchanges with `peer`. Its processes may still exist.
    pub(super) fn interrupted(&self, peer: PeerId) {
        *self.losses.lock().peers.entry(peer).or_default() += 1;
        self.pending_call.peer_lost(peer);
        for channel in self.all_channels(|it| it == peer) {
            channel.lost();
        }
    }

    /// Fails all exchanges, because the endpoint is released. Returns the clients that wait.
    pub(super) fn close(&self) -> Vec<WaitingClient> {
        self.pending_call.close();
        for channel in self.all_channels(|_| true) {
            channel.close();
        }
        self.mailbox.close()
    }

    /// Its state as an object.
    pub(super) fn json(&self) -> Value {
        let clients = self.mailbox.clients().into_iter().map(|(client, peer, asks)| {
            json!({ "endpoint": client.raw(), "peer": peer.0, "waits_for_answer": asks })
        });
        json!({
            "dc": self.dc.raw(),
            "endpoint": self.endpoint.raw(),
            "name": self.name,
            "clients": clients.collect::<Vec<_>>(),
            "waits_for": self.pending_call.asked().map(|asked| asked.raw()),
        })
    }

    /// Describes the endpoint: its clients, its pending call and its exchanges.
    pub(super) fn report(&self, kind: PeerKind, to: &mut String) {
        let clients = self.mailbox.clients();
        let waiting = clients.iter().filter(|(_, _, asks)| *asks).count();
        to.push_str(&format!(
            "endpoint {} of container {}, {:?}: {} clients, {waiting} of them wait for an answer\n",
            self.endpoint,
            self.dc,
            self.name,
            clients.len()
        ));
        for (client, peer, asks) in clients {
            let by = match kind {
                PeerKind::Nodes => format!(" of node {}", peer.0),
                PeerKind::Switch => String::new(),
            };
            let state = if asks {
                "waits for an answer"
            } else {
                "waits for nothing"
            };
            to.push_str(&format!("  client {client}{by} {state}\n"));
        }
        if let Some(asked) = self.pending_call.asked() {
            to.push_str(&format!("  waits for an answer of {asked}\n"));
        }
        for channel in self.all_channels(|_| true) {
            if let Some(text) = channel.describe() {
                to.push_str(&format!("  {text}\n"));
            }
        }
    }

    fn all_channels(&self, concerned: impl Fn(PeerId) -> bool) -> Vec<Arc<PeerChannel>> {
        let channels = self.channels.lock();
        let channels = channels.iter().filter(|((peer, _), _)| concerned(*peer));
        channels.map(|(_, channel)| channel.clone()).collect()
    }
}

/// Results of an acknowledgement which say that the process no longer exists.
const GONE: [Code; 3] = [Code::EDVSSRCDIED, Code::EDVSDSTDIED, Code::EDVSDEADSRCDST];
