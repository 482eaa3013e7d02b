//! OPEN and RELEASE of one file.

use anyhow::Result;
use gangplank_fuse::reply::decode_open;
use gangplank_fuse::{NodeId, OpenIn, OpenOut, Operation, ReleaseIn};

use crate::device::{Device, RequestKind};
use crate::tree::LARGE;
use crate::workload::{Forgets, Next, Reply, Workload, succeeded};

const OPEN: usize = 0;
const RELEASE: usize = 1;

#[derive(Default)]
pub(super) struct Open {
    node: NodeId,
    /// The handle of each flow.
    flows: Vec<u64>,
}

impl Workload for Open {
    fn request_kinds(&self) -> Vec<RequestKind<'_>> {
        vec![open_kind(), release_kind()]
    }

    fn prepare(&mut self, device: &mut Device, flows: usize) -> Result<()> {
        self.node = device.lookup(NodeId::ROOT, LARGE)?;
        self.flows = vec![0; flows];
        Ok(())
    }

    fn begin(&mut self, _: usize) {}

    fn request(&self, flow: usize, kind: usize) -> (NodeId, Operation<'_>) {
        let operation = match kind {
            OPEN => Operation::Open(OpenIn::default()),
            _ => release(self.flows.get(flow).copied().unwrap_or_default()),
        };
        (self.node, operation)
    }

    fn answered(&mut self, flow: usize, reply: &Reply<'_>, _: &mut Forgets) -> Result<Next> {
        succeeded(reply)?;
        if reply.kind == RELEASE {
            return Ok(Next::Done);
        }
        if let Some(handle) = self.flows.get_mut(flow) {
            *handle = decode_open(reply.answer.payload)?.fh;
        }
        Ok(Next::Ask(RELEASE))
    }

    fn clean_up(&mut self, device: &mut Device) -> Result<()> {
        device.forget(self.node, 1)
    }
}

/// The kind of OPEN requests.
pub(super) fn open_kind() -> RequestKind<'static> {
    RequestKind {
        sample: Operation::Open(OpenIn::default()),
        sent: 0,
        answer: size_of::<OpenOut>(),
        received: 0,
    }
}

/// The kind of RELEASE requests.
pub(super) fn release_kind() -> RequestKind<'static> {
    RequestKind {
        sample: release(0),
        sent: 0,
        answer: 0,
        received: 0,
    }
}

/// RELEASE of a handle.
pub(super) fn release(fh: u64) -> Operation<'static> {
    Operation::Release(ReleaseIn {
        fh,
        ..ReleaseIn::default()
    })
}
