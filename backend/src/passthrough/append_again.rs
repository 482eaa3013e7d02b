//! A WRITE at the end of a file that a worker was carrying out when it died.

use std::io;
use std::os::fd::AsFd;

use gangplank_fuse::{Handle, NodeId, WriteFlags, WriteIn};

use super::credentials::without_set_id;
use super::fs::PassthroughFs;
use super::read_write::{to_len, transfer};
use crate::sys::buffers::Reader;
use crate::sys::{file, file_content};

impl PassthroughFs {
    /// Writes what is not there yet, and returns the number of bytes that are there then.
    ///
    /// If nobody else writes to the file, its end was where the guest says. If another guest or a
    /// program of the host does, the data may lie elsewhere; it counts as written if it is the last
    /// of the file.
    pub(super) fn continue_append(
        &self,
        id: NodeId,
        args: &WriteIn,
        data: &mut Reader<'_>,
    ) -> io::Result<usize> {
        let node = self.node(id)?;
        let file = self.state.files.get(Handle::new(args.fh), id)?;
        self.drop_file_capabilities(node.file_type, &node)?;
        let mut bytes = vec![0; to_len(args.size).min(data.remaining())];
        data.read(&mut bytes);
        let content = self.reopen_file(&node, libc::O_RDONLY)?;
        let is_at = |offset: u64, expected: &[u8]| {
            let mut found = vec![0; expected.len()];
            let read = file_content::read_exact_at(content.as_fd(), &mut found, offset);
            read.is_ok() && found == expected
        };

        let size = file::stat(node.as_fd())?.stx_size;
        // A death cuts a write short at most.
        let beyond = usize::try_from(size.saturating_sub(args.offset)).unwrap_or(usize::MAX);
        let mut done = beyond.min(bytes.len());
        if !is_at(args.offset, bytes.get(..done).unwrap_or(&[])) {
            let last = size.checked_sub(bytes.len() as u64);
            let is_last = last.is_some_and(|offset| is_at(offset, &bytes));
            done = if is_last { bytes.len() } else { 0 };
        }
        let mut complete = || {
            while let Some(rest @ [_, ..]) = bytes.get(done..) {
                match transfer(&file, || file_content::append(file.as_fd(), rest))? {
                    0 => return Err(io::Error::from_raw_os_error(libc::EIO)),
                    written => done += written,
                }
            }
            Ok(())
        };
        let flags = WriteFlags::from_bits_retain(args.write_flags);
        match flags.contains(WriteFlags::KILL_SUIDGID) {
            true => without_set_id(complete)?,
            false => complete()?,
        }
        self.state
            .inodes
            .with_known_size(id, |known| known.forget());
        Ok(done)
    }
}
