//! LOOKUP of one name after another.

use std::ffi::CString;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::reply::decode_entry;
use gangplank_fuse::{EntryOut, NodeId, Operation};

use crate::device::{Device, RequestKind};
use crate::tree::{SMALL, SMALL_FILES, names, numbered};
use crate::workload::{Forgets, Next, Reply, Workload, succeeded};

/// ENOENT.
const NO_ENTRY: i32 = 2;

/// The kind of the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    /// Names of files that the daemon knows.
    Known,
    /// Names of files that the daemon does not know. Each is forgotten again.
    New,
    /// Names that do not exist.
    Missing,
}

pub(super) struct Lookup {
    sort: Sort,
    parent: NodeId,
    names: Vec<CString>,
    /// The nodes of the names, and how often each was looked up.
    known: Vec<(NodeId, u64)>,
    turn: usize,
    /// The name each flow looks up.
    flows: Vec<usize>,
}

impl Lookup {
    pub(super) fn new(sort: Sort) -> Self {
        Self {
            sort,
            parent: NodeId::ROOT,
            names: match sort {
                Sort::Missing => numbered("none", SMALL_FILES),
                Sort::Known | Sort::New => names(SMALL_FILES),
            },
            known: Vec::new(),
            turn: 0,
            flows: Vec::new(),
        }
    }
}

impl Workload for Lookup {
    fn request_kinds(&self) -> Vec<RequestKind<'_>> {
        let sample = self.names.first().map(|name| Operation::Lookup { name });
        let kind = |sample| RequestKind {
            sample,
            sent: 0,
            answer: size_of::<EntryOut>(),
            received: 0,
        };
        sample.map(kind).into_iter().collect()
    }

    fn prepare(&mut self, device: &mut Device, flows: usize) -> Result<()> {
        self.parent = device.lookup(NodeId::ROOT, SMALL)?;
        self.flows = vec![0; flows];
        if self.sort == Sort::Known {
            for name in &self.names {
                self.known.push((device.lookup(self.parent, name)?, 1));
            }
        }
        Ok(())
    }

    fn begin(&mut self, flow: usize) {
        self.turn = (self.turn + 1) % self.names.len();
        if let Some(name) = self.flows.get_mut(flow) {
            *name = self.turn;
        }
    }

    fn request(&self, flow: usize, _: usize) -> (NodeId, Operation<'_>) {
        let name = self.flows.get(flow).and_then(|name| self.names.get(*name));
        let name = name.map_or(c"", CString::as_c_str);
        (self.parent, Operation::Lookup { name })
    }

    fn answered(&mut self, flow: usize, reply: &Reply<'_>, forgets: &mut Forgets) -> Result<Next> {
        if self.sort == Sort::Missing {
            let errno = reply.answer.errno;
            ensure!(
                errno == NO_ENTRY,
                "LOOKUP of a missing name gives errno {errno}"
            );
            return Ok(Next::Done);
        }
        succeeded(reply)?;
        let node = NodeId::new(decode_entry(reply.answer.payload)?.nodeid);
        match self.sort {
            Sort::New => forgets.push((node, 1)),
            _ => {
                let name = self.flows.get(flow).copied().unwrap_or_default();
                let known = self.known.get_mut(name).context("a name that is not one")?;
                ensure!(known.0 == node, "one file has two node IDs");
                known.1 += 1;
            }
        }
        Ok(Next::Done)
    }

    fn clean_up(&mut self, device: &mut Device) -> Result<()> {
        for (node, count) in self.known.drain(..) {
            device.forget(node, count)?;
        }
        device.forget(self.parent, 1)
    }
}
