//! The entries of a directory.

use gangplank_fuse::{InitFlags, OpenIn, ReadIn, ReleaseIn};
use rustix::fs::OFlags;

use super::error::{Error, Result};
use super::path::{Node, Share};
use crate as driver;

/// Bytes of entries in one READDIR request.
const READDIR_SIZE: u32 = 128 * 1024;

/// Most nested directories to walk. Each takes stack, and a hostile daemon may report them without
/// end.
pub(super) const MAX_DEPTH: usize = 512;

/// The entries of a directory: names and nodes.
pub(super) type Entries = Vec<(Vec<u8>, Node)>;

impl Share {
    /// A directory's entries in order of their names' bytes, each with its node. `path` is for
    /// messages.
    pub(super) fn entries(&self, directory: &Node, path: &str) -> Result<Entries> {
        let refused = |source| Error::Refused {
            what: "list",
            path: path.to_owned(),
            source,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::LARGEFILE;
        let args = OpenIn {
            flags: flags.bits(),
            open_flags: 0,
        };
        let opened = self.session.opendir(directory.id, args).map_err(refused)?;
        let found = self.read_names(directory, opened.fh).map_err(refused);
        let release = ReleaseIn {
            fh: opened.fh,
            flags: flags.bits(),
            ..ReleaseIn::default()
        };
        // The listing is complete: an error of closing changes nothing in it.
        let _ = self.session.releasedir(directory.id, release);
        let mut entries = Vec::new();
        for (name, node) in found? {
            // Another program may remove a name between the listing and this lookup.
            let node = match node {
                Some(node) => Some(node),
                None => self.child(directory, &name, path)?,
            };
            entries.extend(node.map(|node| (name, node)));
        }
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(entries)
    }

    fn read_names(
        &self,
        directory: &Node,
        fh: u64,
    ) -> driver::Result<Vec<(Vec<u8>, Option<Node>)>> {
        let features = self.session.init().features();
        let plus = features.contains(InitFlags::DO_READDIRPLUS);
        let mut found = Vec::new();
        let mut offset = 0;
        loop {
            let args = ReadIn {
                fh,
                offset,
                size: READDIR_SIZE,
                ..ReadIn::default()
            };
            let entries = if plus {
                self.session.readdirplus(directory.id, args)?
            } else {
                self.session.readdir(directory.id, args)?
            };
            let Some(last) = entries.last() else {
                return Ok(found);
            };
            offset = last.offset;
            for entry in entries {
                let node = entry.node.map(|entry| Node::of(&self.session, &entry));
                if entry.name != b"." && entry.name != b".." {
                    found.push((entry.name, node));
                }
            }
        }
    }
}
