//! GETATTR of one file that the daemon knows.

use anyhow::Result;
use gangplank_fuse::{AttrOut, GetattrIn, NodeId, Operation};

use crate::device::{Device, RequestKind};
use crate::tree::LARGE;
use crate::workload::{Forgets, Next, Reply, Workload, succeeded};

#[derive(Default)]
pub(super) struct Getattr {
    node: NodeId,
}

const REQUEST: Operation<'static> = Operation::Getattr(GetattrIn {
    getattr_flags: 0,
    dummy: 0,
    fh: 0,
});

impl Workload for Getattr {
    fn request_kinds(&self) -> Vec<RequestKind<'_>> {
        vec![RequestKind {
            sample: REQUEST,
            sent: 0,
            answer: size_of::<AttrOut>(),
            received: 0,
        }]
    }

    fn prepare(&mut self, device: &mut Device, _: usize) -> Result<()> {
        self.node = device.lookup(NodeId::ROOT, LARGE)?;
        Ok(())
    }

    fn begin(&mut self, _: usize) {}

    fn request(&self, _: usize, _: usize) -> (NodeId, Operation<'_>) {
        (self.node, REQUEST)
    }

    fn answered(&mut self, _: usize, reply: &Reply<'_>, _: &mut Forgets) -> Result<Next> {
        succeeded(reply)?;
        Ok(Next::Done)
    }

    fn clean_up(&mut self, device: &mut Device) -> Result<()> {
        device.forget(self.node, 1)
    }
}
