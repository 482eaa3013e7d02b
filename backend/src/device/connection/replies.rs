//! Replies to the frontend: those of vhost-user-backend, and the forwarder's own.

use std::os::fd::AsFd;

use gangplank_vhost_user::message::payload::from_u64;
use gangplank_vhost_user::message::{FrontendReq, Message, MessageError, REPLY, VERSION};
use gangplank_vhost_user::{Deadline, descriptors};

use super::sockets::{hung_up, receive};
use super::{Error, Forwarder};
use crate::crash_hook::{self, Point};
use crate::device::quirks::restrict_offer;
use crate::device::recorder::Author;

impl Forwarder<'_> {
    /// Forwards a reply of vhost-user-backend. Returns false if either side has hung up.
    pub(super) fn forward_reply(&mut self) -> Result<bool, Error> {
        let Some(mut reply) = receive(self.backend.as_fd())? else {
            return Ok(false);
        };
        self.memory.limit_slots(reply.request, &mut reply.payload);
        let is_owned = self.recorder.state().is_owned;
        self.is_qemu |=
            !is_owned && reply.frontend_request() == Some(FrontendReq::GET_PROTOCOL_FEATURES);
        restrict_offer(&mut reply, is_owned, self.has_slots_for_qemu);
        self.reply(&reply, Author::Device)
    }

    /// Records a reply and sends it. Returns false if the frontend has hung up.
    pub(super) fn reply(&mut self, reply: &Message, by: Author) -> Result<bool, Error> {
        let (bytes, beside) = (reply.to_bytes(), reply.borrowed_descriptors());
        let (replies, frontend) = (self.guest.replies, self.frontend.as_fd());
        if beside.is_empty() {
            replies.put(&bytes).map_err(MessageError::from)?;
        }
        self.recorder.end(reply, by);
        crash_hook::pass(Point::Replying, || reply.request);
        let sent = match beside.is_empty() {
            true => replies.send(frontend).map_err(MessageError::from),
            // At once: see the recorder's window.
            false => descriptors::send_all(frontend, &bytes, &beside, Deadline::NONE),
        };
        let is_sent = hung_up(sent);
        self.recorder.close_unused();
        is_sent
    }

    /// Sends the reply that the worker before has left, or drops it if the message is to be carried
    /// out again. Returns false if the frontend has hung up.
    pub(super) fn settle_reply(&self) -> Result<bool, Error> {
        let replies = self.guest.replies;
        let settled = match self.recorder.is_pending() {
            true => replies.clear(),
            false => replies.send(self.frontend.as_fd()),
        };
        hung_up(settled.map_err(MessageError::from))
    }
}

/// The reply to a message that only the device's log of dirty pages needs: vhost-user-backend would
/// mark pages at each access to guest memory. There is nothing to tell the descriptor of
/// SET_LOG_FD.
pub(super) fn own_reply(message: &Message) -> Option<Message> {
    let payload = match message.frontend_request()? {
        FrontendReq::SET_LOG_BASE => message.payload.clone(),
        FrontendReq::SET_LOG_FD => from_u64(0),
        _ => return None,
    };
    Some(Message {
        request: message.request,
        flags: VERSION | REPLY,
        payload,
        descriptors: Vec::new(),
    })
}
