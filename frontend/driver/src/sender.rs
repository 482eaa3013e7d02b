//! Sends the requests of one session.

use std::sync::Arc;
use std::time::Duration;

use gangplank_fuse::{
    Dialect, ForgetOne, InitOut, NodeId, Operation, Request, RequestHeader, Unique,
};
use parking_lot::Mutex;

use super::core::Core;
use super::error::Result;
use super::reply::examine;
use super::slots::{RequestBuffers, room_for};

/// The queue that FORGET and INTERRUPT go through.
pub(super) const HIPRIO: usize = 0;

/// The user on whose behalf the daemon carries out a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caller {
    /// User id in the share.
    pub uid: u32,
    /// Group id in the share.
    pub gid: u32,
    /// Thread id, for locks; zero for none.
    pub pid: u32,
}

/// What all handles of a session share.
#[derive(Debug)]
pub(super) struct Negotiated {
    pub(super) init: InitOut,
    pub(super) dialect: Dialect,
    /// References for the next BATCH_FORGET.
    pub(super) forgets: Mutex<Vec<ForgetOne>>,
}

/// Sends requests on one queue, on behalf of one caller. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    pub(super) core: Arc<Core>,
    pub(super) negotiated: Arc<Negotiated>,
    /// The request queue. 1 is the first.
    pub(super) queue: usize,
    pub(super) caller: Caller,
    /// How long a call may take.
    pub(super) limit: Duration,
}

impl Sender {
    /// Sends a request on the high-priority queue. Waits for the reply if `wait`; otherwise the
    /// daemon need not answer.
    pub(super) fn send_hiprio(
        &self,
        node: NodeId,
        unique: Unique,
        operation: Operation<'_>,
        wait: bool,
    ) -> Result<()> {
        let opcode = operation.opcode();
        let buffers = RequestBuffers {
            request: self.encode(node, unique, operation.into())?,
            send: None,
            reply_room: if wait { room_for(0) } else { 0 },
            receive: None,
        };
        let slot = self.core.submit(HIPRIO, opcode, buffers, self.limit)?;
        if !wait {
            self.core.abandon(HIPRIO, slot);
            return Ok(());
        }
        let finished = self
            .core
            .answer(HIPRIO, slot, opcode, self.limit)
            .inspect_err(|_| self.core.abandon(HIPRIO, slot))?;
        examine(opcode, unique, 0, finished).map(|_| ())
    }

    pub(super) fn encode(
        &self,
        node: NodeId,
        unique: Unique,
        request: Request<'_>,
    ) -> Result<Vec<u8>> {
        let header = RequestHeader {
            unique,
            node,
            uid: self.caller.uid,
            gid: self.caller.gid,
            pid: self.caller.pid,
        };
        let mut bytes = Vec::with_capacity(256);
        request.encode(&header, self.negotiated.dialect, &mut bytes)?;
        Ok(bytes)
    }
}
