//! `du`: the space that files take.

use std::collections::HashSet;
use std::io::Write;

use gangplank_fuse::Attr;
use rustix::fs::FileType;

use super::actions::DuArgs;
use super::error::{Error, Failures, Result};
use super::format;
use super::listing::MAX_DEPTH;
use super::path::{LastLink, Node, Share, join, text};

/// Bytes of a block in attributes.
const BLOCK: u64 = 512;

/// A walk that adds up.
struct Usage<'a, W> {
    args: &'a DuArgs,
    /// Inode numbers of files with several names that are counted already.
    counted: HashSet<u64>,
    failures: Failures,
    out: &'a mut W,
}

impl Share {
    /// Shows the space that each path takes, and each directory below it.
    pub(super) fn usage(
        &self,
        args: &DuArgs,
        paths: &[Vec<u8>],
        out: &mut impl Write,
    ) -> Result<()> {
        let mut usage = Usage {
            args,
            counted: HashSet::new(),
            failures: Failures::default(),
            out,
        };
        for path in paths {
            let added = self
                .find(path, LastLink::Follow)
                .and_then(|node| usage.add(self, path, &node, 0));
            usage.failures.note(added.map(drop))?;
        }
        usage.failures.into_result()
    }
}

impl<W: Write> Usage<'_, W> {
    /// Adds up a file and everything below it, in bytes.
    fn add(&mut self, share: &Share, path: &[u8], node: &Node, depth: usize) -> Result<u64> {
        if depth >= MAX_DEPTH {
            return Err(Error::Path {
                path: text(path),
                why: "directories are too deep within one another",
            });
        }
        let is_directory = node.kind() == FileType::Directory;
        if !is_directory && node.attr.nlink > 1 && !self.counted.insert(node.attr.ino) {
            return Ok(0);
        }
        let mut sum = self.own(&node.attr);
        if is_directory {
            match share.entries(node, &text(path)) {
                Ok(entries) => {
                    for (name, child) in entries {
                        match self.add(share, &join(path, &name), &child, depth + 1) {
                            Ok(below) => sum = sum.saturating_add(below),
                            Err(error) => self.failures.note(Err(error))?,
                        }
                    }
                }
                Err(error) => self.failures.note(Err(error))?,
            }
        }
        let is_shown = depth == 0 || (!self.args.summarize && (is_directory || self.args.all));
        if is_shown {
            let shown = match (self.args.human_readable, self.args.bytes) {
                (true, _) => format::bytes(sum),
                (false, true) => sum.to_string(),
                (false, false) => sum.div_ceil(1024).to_string(),
            };
            writeln!(self.out, "{shown}\t{}", text(path))?;
        }
        Ok(sum)
    }

    const fn own(&self, attr: &Attr) -> u64 {
        match self.args.bytes {
            true => attr.size,
            false => attr.blocks.saturating_mul(BLOCK),
        }
    }
}
