//! Looking into many files: LOOKUP, OPEN, READ of 4 KiB, RELEASE, and FORGET as by a guest without
//! room for more.

use std::ffi::CString;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::reply::{decode_entry, decode_open};
use gangplank_fuse::{EntryOut, NodeId, OpenIn, Operation, ReadIn};

use super::open::{open_kind, release, release_kind};
use crate::device::{Device, RequestKind};
use crate::tree::{SMALL, SMALL_FILES, SMALL_LEN, names};
use crate::workload::{Forgets, Next, Reply, Workload, succeeded};

const LOOKUP: usize = 0;
const OPEN: usize = 1;
const READ: usize = 2;

/// Bytes read of each file, which are all.
const LEN: u32 = 4096;
const _: () = assert!(LEN as usize == SMALL_LEN);

pub(super) struct SmallFile {
    parent: NodeId,
    names: Vec<CString>,
    turn: usize,
    flows: Vec<Flow>,
}

#[derive(Clone, Copy, Default)]
struct Flow {
    name: usize,
    node: NodeId,
    handle: u64,
}

impl Default for SmallFile {
    fn default() -> Self {
        Self {
            parent: NodeId::ROOT,
            names: names(SMALL_FILES),
            turn: 0,
            flows: Vec::new(),
        }
    }
}

fn read(fh: u64) -> Operation<'static> {
    Operation::Read(ReadIn {
        fh,
        size: LEN,
        ..ReadIn::default()
    })
}

impl Workload for SmallFile {
    fn request_kinds(&self) -> Vec<RequestKind<'_>> {
        let name = self.names.first().map_or(c"", CString::as_c_str);
        vec![
            RequestKind {
                sample: Operation::Lookup { name },
                sent: 0,
                answer: size_of::<EntryOut>(),
                received: 0,
            },
            open_kind(),
            RequestKind {
                sample: read(0),
                sent: 0,
                answer: 0,
                received: SMALL_LEN,
            },
            release_kind(),
        ]
    }

    fn prepare(&mut self, device: &mut Device, flows: usize) -> Result<()> {
        self.parent = device.lookup(NodeId::ROOT, SMALL)?;
        self.flows = vec![Flow::default(); flows];
        Ok(())
    }

    fn begin(&mut self, flow: usize) {
        self.turn = (self.turn + 1) % self.names.len();
        if let Some(flow) = self.flows.get_mut(flow) {
            flow.name = self.turn;
        }
    }

    fn request(&self, flow: usize, kind: usize) -> (NodeId, Operation<'_>) {
        let flow = self.flows.get(flow).copied().unwrap_or_default();
        match kind {
            LOOKUP => {
                let name = self.names.get(flow.name).map_or(c"", CString::as_c_str);
                (self.parent, Operation::Lookup { name })
            }
            OPEN => (flow.node, Operation::Open(OpenIn::default())),
            READ => (flow.node, read(flow.handle)),
            _ => (flow.node, release(flow.handle)),
        }
    }

    fn answered(&mut self, flow: usize, reply: &Reply<'_>, forgets: &mut Forgets) -> Result<Next> {
        succeeded(reply)?;
        let flow = self.flows.get_mut(flow).context("no such flow")?;
        match reply.kind {
            LOOKUP => flow.node = NodeId::new(decode_entry(reply.answer.payload)?.nodeid),
            OPEN => flow.handle = decode_open(reply.answer.payload)?.fh,
            READ => ensure!(reply.answer.received == SMALL_LEN, "a short read"),
            _ => {
                forgets.push((flow.node, 1));
                return Ok(Next::Done);
            }
        }
        Ok(Next::Ask(reply.kind + 1))
    }

    fn clean_up(&mut self, device: &mut Device) -> Result<()> {
        device.forget(self.parent, 1)
    }
}
