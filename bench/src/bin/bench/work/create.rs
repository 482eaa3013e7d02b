//! CREATE of a file, WRITE of 4 KiB, RELEASE, UNLINK and FORGET.

use std::ffi::CString;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::reply::{decode_create, decode_write};
use gangplank_fuse::{CreateIn, EntryOut, NodeId, OpenOut, Operation, WriteIn, WriteOut};
use rustix::fs::OFlags;

use super::open::{release, release_kind};
use crate::device::{Device, RequestKind};
use crate::tree::{MADE, numbered};
use crate::workload::{Forgets, Next, Reply, Workload, succeeded};

const CREATE: usize = 0;
const WRITE: usize = 1;
const RELEASE: usize = 2;
const UNLINK: usize = 3;

/// Bytes written into each file.
const LEN: u32 = 4096;

pub(super) struct Create {
    parent: NodeId,
    names: Vec<CString>,
    flows: Vec<(NodeId, u64)>,
}

impl Default for Create {
    fn default() -> Self {
        Self {
            parent: NodeId::ROOT,
            names: numbered("made", 64),
            flows: Vec::new(),
        }
    }
}

fn write(fh: u64) -> Operation<'static> {
    Operation::Write(WriteIn {
        fh,
        size: LEN,
        ..WriteIn::default()
    })
}

impl Create {
    fn name(&self, flow: usize) -> &std::ffi::CStr {
        self.names.get(flow).map_or(c"", CString::as_c_str)
    }

    fn create(&self, flow: usize) -> Operation<'_> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        Operation::Create {
            args: CreateIn {
                flags: flags.bits(),
                mode: 0o100_644,
                umask: 0o022,
                open_flags: 0,
            },
            name: self.name(flow),
        }
    }
}

impl Workload for Create {
    fn request_kinds(&self) -> Vec<RequestKind<'_>> {
        vec![
            RequestKind {
                sample: self.create(0),
                sent: 0,
                answer: size_of::<EntryOut>() + size_of::<OpenOut>(),
                received: 0,
            },
            RequestKind {
                sample: write(0),
                sent: LEN as usize,
                answer: size_of::<WriteOut>(),
                received: 0,
            },
            release_kind(),
            RequestKind {
                sample: Operation::Unlink { name: self.name(0) },
                sent: 0,
                answer: 0,
                received: 0,
            },
        ]
    }

    fn prepare(&mut self, device: &mut Device, flows: usize) -> Result<()> {
        ensure!(flows <= self.names.len(), "a name is wanted for each flow");
        self.parent = device.lookup(NodeId::ROOT, MADE)?;
        self.flows = vec![(NodeId::default(), 0); flows];
        Ok(())
    }

    fn begin(&mut self, _: usize) {}

    fn request(&self, flow: usize, kind: usize) -> (NodeId, Operation<'_>) {
        let (node, handle) = self.flows.get(flow).copied().unwrap_or_default();
        match kind {
            CREATE => (self.parent, self.create(flow)),
            WRITE => (node, write(handle)),
            RELEASE => (node, release(handle)),
            _ => {
                let name = self.name(flow);
                (self.parent, Operation::Unlink { name })
            }
        }
    }

    fn answered(&mut self, flow: usize, reply: &Reply<'_>, forgets: &mut Forgets) -> Result<Next> {
        succeeded(reply)?;
        let flow = self.flows.get_mut(flow).context("no such flow")?;
        match reply.kind {
            CREATE => {
                let (entry, open) = decode_create(reply.answer.payload)?;
                *flow = (NodeId::new(entry.nodeid), open.fh);
            }
            WRITE => {
                let written = decode_write(reply.answer.payload)?.size;
                ensure!(written == LEN, "a short write");
            }
            UNLINK => {
                forgets.push((flow.0, 1));
                return Ok(Next::Done);
            }
            _ => {}
        }
        Ok(Next::Ask(reply.kind + 1))
    }

    fn clean_up(&mut self, device: &mut Device) -> Result<()> {
        device.forget(self.parent, 1)
    }
}
