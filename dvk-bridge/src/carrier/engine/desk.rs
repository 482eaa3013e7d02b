//! One bound endpoint: its mailbox, its question, its lanes to the peers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use gangplank_service::rate_limit::RateLimit;

use super::lane::Lane;
use super::line::{Line, PeerId};
use super::mailbox::{Caller, Mailbox, Waiting};
use super::question::{Event, Question, Taken};
use super::station::Kind;
use super::sync::lock;
use crate::abi::{Code, Command, DcId, DcLimits, Endpoint, Header, Message};
use crate::endpoint::Gone;

/// Everything about one bound endpoint.
pub(super) struct Desk {
    pub(super) dc: DcId,
    pub(super) endpoint: Endpoint,
    pub(super) name: String,
    pub(super) limits: DcLimits,
    pub(super) mailbox: Mailbox,
    pub(super) question: Question,
    kind: Kind,
    lanes: Mutex<HashMap<(PeerId, i32), Arc<Lane>>>,
    losses: Mutex<Losses>,
    /// When it was last said that somebody uses another's endpoint.
    strangers: RateLimit,
}

/// How often others were lost.
#[derive(Default)]
struct Losses {
    peers: HashMap<PeerId, u64>,
    /// By slot.
    partners: HashMap<i32, u64>,
}

impl Desk {
    pub(super) fn new(
        dc: DcId,
        endpoint: Endpoint,
        name: &str,
        limits: DcLimits,
        kind: Kind,
    ) -> Self {
        Self {
            dc,
            endpoint,
            name: name.to_owned(),
            limits,
            mailbox: Mailbox::default(),
            question: Question::new(kind.says_marks()),
            kind,
            lanes: Mutex::default(),
            losses: Mutex::default(),
            strangers: RateLimit::once(),
        }
    }

    /// How often `partner`, whom `peer` has if any does, was lost by itself or with that.
    pub(super) fn losses(&self, partner: Endpoint, peer: Option<PeerId>) -> u64 {
        let losses = lock(&self.losses);
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

    /// The lane to `partner`, whom `peer` has, on `line`. There is one for each peer, or for each slot of the container.
    pub(super) fn lane(&self, peer: PeerId, partner: Endpoint, line: &Arc<dyn Line>) -> Arc<Lane> {
        let key = (peer, self.kind.lane(partner));
        let mut lanes = lock(&self.lanes);
        let lane = lanes.entry(key);
        lane.or_insert_with(|| Arc::new(Lane::new(line.clone(), self.kind.says_marks())))
            .clone()
    }

    /// Takes a command of `peer` for this endpoint: at once what acknowledges it, or says that it failed.
    pub(super) fn deliver(
        &self,
        peer: PeerId,
        line: &Arc<dyn Line>,
        header: &Header,
        payload: &[u8],
    ) {
        let lane = self.lane(peer, header.src, line);
        let mut message = header.message;
        // The header is what the node vouches for.
        message.source = header.src;
        let from = Caller {
            endpoint: header.src,
            peer,
            pid: (header.pid > 0).then_some(header.pid),
            mark: header.ack_seq,
        };
        let result = match header.command {
            Command::SNDREC_MSG => self.mailbox.request(from, message).err(),
            Command::REPLY_MSG => match self.answered(&lane, peer, header, message) {
                Taken::Yes | Taken::Late => None,
                Taken::No => Some(Code::EDVSPROCSTS),
            },
            // A message from one that was asked is the answer, else it is for the mailbox.
            Command::SEND_MSG => match self.answered(&lane, peer, header, message) {
                Taken::Yes | Taken::Late => None,
                Taken::No => self.mailbox.message(from, message).err(),
            },
            Command::NTFY_MSG => self.mailbox.notification(from).err(),
            Command::COPYIN_DATA => {
                self.copy(peer, header, Event::CopyIn(*header, payload.to_vec()))
            }
            Command::COPYOUT_RQST => self.copy(peer, header, Event::CopyOut(*header)),
            Command::COPYLCL_RQST | Command::COPYRMT_RQST | Command::COPYIN_RQST => {
                Some(Code::ENOSYS)
            }
            _ => {
                self.acknowledged(&lane, peer, header, payload);
                None
            }
        };
        if result == Some(Code::EDVSNONODE) {
            self.note_stranger(peer, header.src);
        }
        if let (Some(code), Some(command)) = (result, header.command.failure()) {
            lane.acknowledge(header.answer(command, code.result()), &[]);
        }
    }

    /// Says that `peer` has used the endpoint of another peer's process, which is refused.
    fn note_stranger(&self, peer: PeerId, endpoint: Endpoint) {
        if self.strangers.admit().is_some() {
            let owner = self.mailbox.owner_of(endpoint);
            log::warn!(
                "{endpoint} of node {} is refused by {}: that is a process of node {}, which is connected; each process of a \
                 container needs an endpoint of its own",
                peer.0,
                self.endpoint,
                owner.map_or("another".to_owned(), |owner| owner.0.to_string())
            );
        }
    }

    /// Acknowledges an answer and leaves it for who asks, if anybody does.
    fn answered(&self, lane: &Lane, peer: PeerId, header: &Header, message: Message) -> Taken {
        let event = Event::Answer(message);
        self.question
            .offer_after(header.src, peer, header.ack_seq, event, || {
                lane.acknowledge(header.answer(Command::SEND_ACK, 0), &[]);
            })
    }

    /// Leaves a copy for who asks; the refusal if nobody has asked its requester.
    fn copy(&self, peer: PeerId, header: &Header, event: Event) -> Option<Code> {
        let taken = self.question.offer(header.src, peer, header.ack_seq, event);
        (taken != Taken::Yes).then_some(Code::EPERM)
    }

    fn acknowledged(&self, lane: &Lane, peer: PeerId, header: &Header, payload: &[u8]) {
        let code = Code::from_result(header.rcode);
        let gone = code.is_some_and(|code| GONE.contains(&code));
        if gone && self.mailbox.peer_of(header.src) == Some(peer) {
            self.mailbox.gone(header.src, Gone::Unbound);
        }
        if lane.acknowledged(header, payload) {
            return;
        }
        // That a question could not be asked is told as of any other message by a kernel, and by us as of a question.
        let question = matches!(header.command, Command::SEND_ACK | Command::SNDREC_ACK);
        if let Some(code) = code.filter(|_| question)
            && self
                .question
                .offer(header.src, peer, header.ack_seq, Event::Failed(code))
                != Taken::No
        {
            return;
        }
        log::debug!(
            "{} from {} to {} with result {} was not waited for",
            header.command,
            header.src,
            header.dst,
            header.rcode
        );
    }

    /// Another endpoint has gone.
    pub(super) fn partner_gone(&self, partner: Endpoint, reason: Gone) {
        let slot = partner.slot();
        *lock(&self.losses).partners.entry(slot).or_default() += 1;
        self.mailbox.gone(partner, reason);
        self.question.partner_gone(partner, Code::EDVSSRCDIED);
        for lane in self.all_lanes(|_| true) {
            lane.partner_gone(partner, Code::EDVSDSTDIED);
        }
    }

    /// What goes on with `peer` fails. Those it has may still be there.
    pub(super) fn interrupted(&self, peer: PeerId) {
        *lock(&self.losses).peers.entry(peer).or_default() += 1;
        self.question.peer_lost(peer);
        for lane in self.all_lanes(|it| it == peer) {
            lane.lost();
        }
    }

    /// The endpoint is given up: all that goes on fails. Those who wait for it.
    pub(super) fn close(&self) -> Vec<Waiting> {
        self.question.close();
        for lane in self.all_lanes(|_| true) {
            lane.close();
        }
        self.mailbox.close()
    }

    /// Describes the endpoint: its clients, whom it asks, what goes on with whom.
    pub(super) fn report(&self, kind: Kind, to: &mut String) {
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
                Kind::Nodes => format!(" of node {}", peer.0),
                Kind::Switch => String::new(),
            };
            let state = if asks {
                "waits for an answer"
            } else {
                "waits for nothing"
            };
            to.push_str(&format!("  client {client}{by} {state}\n"));
        }
        if let Some(asked) = self.question.asked() {
            to.push_str(&format!("  waits for an answer of {asked}\n"));
        }
        for lane in self.all_lanes(|_| true) {
            if let Some(text) = lane.describe() {
                to.push_str(&format!("  {text}\n"));
            }
        }
    }

    fn all_lanes(&self, concerned: impl Fn(PeerId) -> bool) -> Vec<Arc<Lane>> {
        let lanes = lock(&self.lanes);
        let lanes = lanes.iter().filter(|((peer, _), _)| concerned(*peer));
        lanes.map(|(_, lane)| lane.clone()).collect()
    }
}

/// What an acknowledgement says of a process that is not there any more.
const GONE: [Code; 3] = [Code::EDVSSRCDIED, Code::EDVSDSTDIED, Code::EDVSDEADSRCDST];
