//! Which records are shown.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use gangplank_fuse::{Opcode, Operation};
use gangplank_trace::{Kind, Record, Told};
use globset::GlobMatcher;

use crate::args::TraceArgs;
use crate::arguments::names;

/// All conditions hold for a record that is shown.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    guests: Vec<u32>,
    opcodes: Vec<Opcode>,
    nodes: Vec<u64>,
    name: Option<GlobMatcher>,
    has_failed: bool,
    slower_than: Option<Duration>,
    /// Nanoseconds since the epoch.
    since: Option<u64>,
}

impl Filter {
    pub(crate) fn new(args: &TraceArgs) -> Self {
        Self {
            guests: args.guest.clone(),
            opcodes: args.op.clone(),
            nodes: args.node.clone(),
            name: args.name.clone(),
            has_failed: args.errors,
            slower_than: args.slower_than,
            since: args
                .since
                .map(|time| u64::try_from(time.as_nanosecond()).unwrap_or(0)),
        }
    }

    /// A worker's beginning and end are shown unless requests are picked.
    pub(crate) fn admits(&self, record: &Record) -> bool {
        let picks = |wanted: &[u32]| wanted.is_empty() || wanted.contains(&record.guest);
        if !picks(&self.guests) || self.since.is_some_and(|since| record.time < since) {
            return false;
        }
        if record.kind != Kind::Request {
            return self.opcodes.is_empty()
                && self.nodes.is_empty()
                && self.name.is_none()
                && self.slower_than.is_none()
                && !self.has_failed;
        }
        let opcode = record.header.opcode();
        let is_wanted = opcode.is_ok_and(|opcode| self.opcodes.contains(&opcode));
        (self.opcodes.is_empty() || is_wanted)
            && (!self.has_failed || record.errno != 0)
            && self
                .slower_than
                .is_none_or(|limit| Duration::from_nanos(record.duration) > limit)
            && (self.nodes.is_empty() || self.is_about_a_node(record))
            && self
                .name
                .as_ref()
                .is_none_or(|pattern| matches(pattern, record))
    }

    fn is_about_a_node(&self, record: &Record) -> bool {
        let has = |node: u64| self.nodes.contains(&node);
        let named = match record.told() {
            Told::Node(node) | Told::Created(node, _) => has(node),
            _ => false,
        };
        let operation = record.request().map(|request| request.operation);
        let other = match operation {
            Ok(Operation::Rename { args, .. }) => has(args.newdir),
            Ok(Operation::Rename2 { args, .. }) => has(args.newdir),
            Ok(Operation::Link { args, .. }) => has(args.oldnodeid),
            Ok(Operation::BatchForget(nodes)) => nodes.iter().any(|one| has(one.nodeid)),
            Ok(Operation::CopyFileRange(args) | Operation::CopyFileRange64(args)) => {
                has(args.nodeid_out)
            }
            _ => false,
        };
        named || other || has(record.header.nodeid)
    }
}

fn matches(pattern: &GlobMatcher, record: &Record) -> bool {
    let request = record.request();
    let names = request.map(|request| names(&request.operation));
    names.is_ok_and(|names| {
        let mut names = names.into_iter().flatten();
        names.any(|name| pattern.is_match(OsStr::from_bytes(name.to_bytes())))
    })
}
