//! Listing a directory of 10,000 files with their attributes.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::dir::Direntplusses;
use gangplank_fuse::reply::decode_open;
use gangplank_fuse::{NodeId, OpenIn, OpenOut, Operation, ReadIn, ReleaseIn};
use rustix::fs::OFlags;

use crate::device::{Device, RequestKind};
use crate::tree::{MANY, MANY_FILES};
use crate::workload::{Forgets, Next, Reply, Workload, succeeded};

const OPENDIR: usize = 0;
const READ: usize = 1;
const RELEASE: usize = 2;

/// Room for each reply, in bytes.
const ROOM: u32 = 32 << 10;

pub(super) struct Listing {
    /// Whether each pass finds files that the daemon does not know.
    new: bool,
    node: NodeId,
    /// References to each node that FORGET has not returned yet.
    kept: HashMap<u64, u64>,
    flows: Vec<Pass>,
}

#[derive(Clone, Copy, Default)]
struct Pass {
    handle: u64,
    offset: u64,
    entries: usize,
}

impl Listing {
    pub(super) fn new(new: bool) -> Self {
        Self {
            new,
            node: NodeId::ROOT,
            kept: HashMap::with_capacity(if new { 0 } else { MANY_FILES }),
            flows: Vec::new(),
        }
    }
}

fn read(fh: u64, offset: u64) -> Operation<'static> {
    Operation::Readdirplus(ReadIn {
        fh,
        offset,
        size: ROOM,
        ..ReadIn::default()
    })
}

fn opendir() -> Operation<'static> {
    Operation::Opendir(OpenIn {
        flags: OFlags::DIRECTORY.bits(),
        ..OpenIn::default()
    })
}

fn releasedir(fh: u64) -> Operation<'static> {
    Operation::Releasedir(ReleaseIn {
        fh,
        ..ReleaseIn::default()
    })
}

impl Workload for Listing {
    fn request_kinds(&self) -> Vec<RequestKind<'_>> {
        let kind = |sample, answer, received| RequestKind {
            sample,
            sent: 0,
            answer,
            received,
        };
        vec![
            kind(opendir(), size_of::<OpenOut>(), 0),
            kind(read(0, 0), 0, ROOM as usize),
            kind(releasedir(0), 0, 0),
        ]
    }

    fn prepare(&mut self, device: &mut Device, flows: usize) -> Result<()> {
        self.node = device.lookup(NodeId::ROOT, MANY)?;
        self.flows = vec![Pass::default(); flows];
        Ok(())
    }

    fn begin(&mut self, flow: usize) {
        if let Some(pass) = self.flows.get_mut(flow) {
            *pass = Pass::default();
        }
    }

    fn request(&self, flow: usize, kind: usize) -> (NodeId, Operation<'_>) {
        let pass = self.flows.get(flow).copied().unwrap_or_default();
        let operation = match kind {
            OPENDIR => opendir(),
            READ => read(pass.handle, pass.offset),
            _ => releasedir(pass.handle),
        };
        (self.node, operation)
    }

    fn reads_data(&self) -> bool {
        true
    }

    fn answered(&mut self, flow: usize, reply: &Reply<'_>, forgets: &mut Forgets) -> Result<Next> {
        succeeded(reply)?;
        let pass = self.flows.get_mut(flow).context("no such flow")?;
        match reply.kind {
            OPENDIR => pass.handle = decode_open(reply.answer.payload)?.fh,
            READ if reply.data.is_empty() => {
                ensure!(
                    pass.entries >= MANY_FILES,
                    "a directory of {MANY_FILES} files was listed with {} names",
                    pass.entries
                );
                return Ok(Next::Ask(RELEASE));
            }
            READ => {
                for entry in Direntplusses::new(reply.data) {
                    let entry = entry?;
                    pass.offset = entry.dirent.off;
                    pass.entries += 1;
                    let node = entry.entry_out.nodeid;
                    if node == 0 {
                        continue;
                    }
                    if self.new {
                        forgets.push((NodeId::new(node), 1));
                    } else {
                        *self.kept.entry(node).or_default() += 1;
                    }
                }
            }
            _ => return Ok(Next::Done),
        }
        Ok(Next::Ask(READ))
    }

    fn units(&self) -> u64 {
        MANY_FILES as u64
    }

    fn clean_up(&mut self, device: &mut Device) -> Result<()> {
        for (node, count) in self.kept.drain() {
            device.forget(NodeId::new(node), count)?;
        }
        device.forget(self.node, 1)
    }
}
