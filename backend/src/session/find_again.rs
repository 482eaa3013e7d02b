//! Operations about inodes that a server calls stale.

use std::io;

use gangplank_fuse::{NodeId, Operation, Request};

use super::Session;
use super::dispatch::{Call, dispatch};
use super::file_system::FileSystem;

impl<F: FileSystem> Session<F> {
    /// Carries out an operation. If an inode that it is about is stale, looks for it by name, and
    /// carries out the operation once more: a server has forgotten what it told the host of the
    /// file, and the file is still there.
    pub(super) fn dispatch_or_find_again(
        &self,
        request: &Request<'_>,
        call: &mut Call<'_, '_, '_>,
    ) -> io::Result<usize> {
        let result = dispatch(&self.file_system, request, call);
        let is_stale = |error: &io::Error| error.raw_os_error() == Some(libc::ESTALE);
        if !result.as_ref().is_err_and(is_stale) {
            return result;
        }
        let node = call.header.node();
        let others = match &request.operation {
            // The open file is stale, not the node.
            Operation::Read(_)
            | Operation::Write(_)
            | Operation::Flush(_)
            | Operation::Fsync(_)
            | Operation::Release(_)
            | Operation::Readdir(_)
            | Operation::Readdirplus(_)
            | Operation::Fsyncdir(_)
            | Operation::Releasedir(_)
            | Operation::Fallocate(_)
            | Operation::Lseek(_)
            | Operation::CopyFileRange(_)
            | Operation::CopyFileRange64(_)
            | Operation::Ioctl(_)
            | Operation::Getlk(_)
            | Operation::Setlk(_)
            // ESTALE means that the name exists.
            | Operation::Create { .. } => return result,
            Operation::Rename { args, .. } => Some(args.newdir),
            Operation::Rename2 { args, .. } => Some(args.newdir),
            Operation::Link { args, .. } => Some(args.oldnodeid),
            _ => None,
        };
        let others = others.map(NodeId::new).filter(|other| *other != node);
        // Each, without stopping at the first that is found.
        let found = std::iter::once(node).chain(others);
        let found = found
            .filter(|node| self.file_system.find_again(*node))
            .count();
        match found {
            0 => result,
            _ => dispatch(&self.file_system, request, call),
        }
    }
}
