//! What a session's requests are sent with: the device, and what INIT agreed on.

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

/// On whose behalf the daemon is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caller {
    /// User id in the share.
    pub uid: u32,
    /// Group id in the share.
    pub gid: u32,
    /// Thread id, for locks; zero is nobody's.
    pub pid: u32,
}

/// What a session's handles share.
#[derive(Debug)]
pub(super) struct Negotiated {
    pub(super) init: InitOut,
    pub(super) dialect: Dialect,
    /// References to be given back with the next batch.
    pub(super) forgets: Mutex<Vec<ForgetOne>>,
}

/// Sends requests of one session over one queue, on one caller's behalf. Cheap to clone.
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
    /// Sends what need not be answered through the high-priority queue, and waits until the daemon has taken it if `wait`.
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
