//! Open files: what the kernel calls them, and what the server does.

use std::collections::HashMap;

/// One open of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenFile {
    /// Its node.
    pub(crate) node: u64,
    /// The server's handle.
    pub(crate) handle: i32,
    /// Access mode and O_APPEND as it was opened with, to do it again.
    pub(crate) flags: i32,
    /// How often the server had been lost by then. Handles do not outlive that.
    pub(crate) losses: u64,
}

/// All open files.
#[derive(Debug, Default)]
pub(crate) struct Files {
    files: HashMap<u64, OpenFile>,
    by_node: HashMap<u64, Vec<u64>>,
    next: u64,
}

impl Files {
    /// Adds one; returns what the kernel is to call it.
    pub(crate) fn add(&mut self, file: OpenFile) -> u64 {
        self.next += 1;
        self.by_node.entry(file.node).or_default().push(self.next);
        self.files.insert(self.next, file);
        self.next
    }

    /// The open file that the kernel calls `fh`.
    pub(crate) fn get(&self, fh: u64) -> Option<OpenFile> {
        self.files.get(&fh).copied()
    }

    /// Notes the handle that the file has now, after the server was lost.
    pub(crate) fn reopened(&mut self, fh: u64, handle: i32, losses: u64) {
        if let Some(file) = self.files.get_mut(&fh) {
            (file.handle, file.losses) = (handle, losses);
        }
    }

    /// Takes one away.
    pub(crate) fn remove(&mut self, fh: u64) -> Option<OpenFile> {
        let file = self.files.remove(&fh)?;
        if let Some(same) = self.by_node.get_mut(&file.node) {
            same.retain(|other| *other != fh);
            if same.is_empty() {
                self.by_node.remove(&file.node);
            }
        }
        Some(file)
    }

    /// An open file of the node, one that can be written if there is such.
    pub(crate) fn of_node(&self, node: u64) -> Option<u64> {
        let all = self.by_node.get(&node)?;
        let writable = all
            .iter()
            .find(|fh| self.files.get(fh).is_some_and(|file| file.flags & 0o3 != 0));
        writable.or(all.first()).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(node: u64, flags: i32) -> OpenFile {
        OpenFile {
            node,
            handle: 3,
            flags,
            losses: 0,
        }
    }

    #[test]
    fn of_node_prefers_a_file_that_can_be_written() {
        let mut files = Files::default();
        let read = files.add(file(5, 0));
        assert_eq!(files.of_node(5), Some(read));
        let written = files.add(file(5, 2));
        assert_eq!(files.of_node(5), Some(written));
        files.remove(written);
        assert_eq!(files.of_node(5), Some(read));
        files.remove(read);
        assert_eq!((files.of_node(5), files.get(read)), (None, None));
    }

    #[test]
    fn a_reopened_file_has_its_new_handle() {
        let mut files = Files::default();
        let fh = files.add(file(5, 0));
        files.reopened(fh, 9, 1);
        assert_eq!(
            files.get(fh).map(|file| (file.handle, file.losses)),
            Some((9, 1))
        );
    }
}
