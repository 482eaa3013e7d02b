//! Transfers of files and directories within the rules.

use fuser::{INodeNo, ReplyDirectory};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::rules::{Call, Short};
use super::serve::Served;

impl Served {
    /// The bytes that a read returns.
    pub(super) fn read_bytes(
        &self,
        node: INodeNo,
        offset: u64,
        size: u32,
        short: Short,
    ) -> Result<Vec<u8>, Errno> {
        self.check(Call::Read, node)?;
        let tree = self.control.tree();
        let node = tree.node(node.0)?;
        let content = node.content()?;
        let left = (content.len() as u64).saturating_sub(offset);
        let length = left.min(size.into());
        let rules = self.control.rules();
        let length = rules.limit(Call::Read, &node.name, offset, length, short)?;
        let (start, end) = (index(offset), index(offset + length));
        Ok(content.get(start..end).unwrap_or_default().to_vec())
    }

    /// The number of bytes of `data` that a write accepts.
    pub(super) fn write_bytes(
        &self,
        node: INodeNo,
        offset: u64,
        data: &[u8],
        short: Short,
    ) -> Result<u32, Errno> {
        self.check(Call::Write, node)?;
        let mut tree = self.control.tree();
        let node = tree.node_mut(node.0)?;
        let length = data.len() as u64;
        let rules = self.control.rules();
        let length = rules.limit(Call::Write, &node.name, offset, length, short)?;
        node.write(offset, data.get(..index(length)).unwrap_or_default())?;
        Ok(u32::try_from(length).unwrap_or(u32::MAX))
    }

    /// The number of bytes copied from one file to another.
    pub(super) fn copy_bytes(
        &self,
        (source, from): (INodeNo, u64),
        (target, to): (INodeNo, u64),
        length: u64,
    ) -> Result<u32, Errno> {
        self.check(Call::CopyFileRange, source)?;
        let mut tree = self.control.tree();
        let rules = self.control.rules();
        let node = tree.node(source.0)?;
        let content = node.content()?;
        let left = (content.len() as u64).saturating_sub(from);
        let length = left.min(length).min(u32::MAX.into());
        let length = rules.limit(Call::Read, &node.name, from, length, Short::Allowed)?;
        let target_name = tree.name(target.0);
        let length = rules.limit(Call::Write, &target_name, to, length, Short::Allowed)?;
        let (start, end) = (index(from), index(from + length));
        let bytes = content.get(start..end).unwrap_or_default().to_vec();
        tree.node_mut(target.0)?.write(to, &bytes)?;
        Ok(u32::try_from(length).unwrap_or(u32::MAX))
    }

    /// Lists a directory from the entry behind `offset` on.
    pub(super) fn fill(
        &self,
        directory: INodeNo,
        offset: u64,
        reply: &mut ReplyDirectory,
    ) -> Result<(), Errno> {
        self.check(Call::Readdir, directory)?;
        let tree = self.control.tree();
        let last = self.control.rules().last_entry(&tree.name(directory.0));
        let end = match last {
            Some((entries, errno)) if entries <= offset => return Err(errno),
            Some((entries, _)) => entries,
            None => u64::MAX,
        };
        for (position, entry) in (1..).zip(tree.list(directory.0)?) {
            if position <= offset || position > end {
                continue;
            }
            if reply.add(INodeNo(entry.number), position, entry.kind, &entry.name) {
                break;
            }
        }
        Ok(())
    }

    /// Extends a file or makes a range of it zeros.
    pub(super) fn allocate(
        &self,
        node: INodeNo,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Result<(), Errno> {
        self.check(Call::Fallocate, node)?;
        let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let mut tree = self.control.tree();
        let node = tree.node_mut(node.0)?;
        let size = node.content()?.len() as u64;
        let end = offset + length;
        if mode.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE) {
            let zeros = end.min(size).saturating_sub(offset);
            node.write(offset.min(size), &vec![0; index(zeros)])?;
        }
        if !mode.contains(FallocateFlags::KEEP_SIZE) && end > size {
            node.resize(end)?;
        }
        Ok(())
    }
}

/// A small offset as an index.
pub(super) fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
