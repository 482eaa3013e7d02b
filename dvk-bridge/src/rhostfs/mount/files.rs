//! Open files by the kernel's handle, with the server's.

use std::collections::HashMap;
use std::mem;

/// An open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenFile {
    /// Its node.
    pub(crate) node: u64,
    /// The server's handle.
    pub(crate) handle: i32,
    /// Access mode and O_APPEND of the open, to repeat it.
    pub(crate) flags: i32,
    /// The count of losses when the handle was opened. A loss makes handles invalid.
    pub(crate) losses: u64,
    /// Whether data was written since the last successful sync.
    pub(crate) unsynced: bool,
    /// Whether data was written since the server last reported write errors.
    pub(crate) unflushed: bool,
    /// Whether the server was lost with unsynced data.
    pub(crate) doubtful: bool,
}

/// All open files.
#[derive(Debug, Default)]
pub(crate) struct Files {
    files: HashMap<u64, OpenFile>,
    by_node: HashMap<u64, Vec<u64>>,
    /// The size of each open node, as the server last reported it or writes extended it.
    sizes: HashMap<u64, u64>,
    next: u64,
}

impl Files {
    /// Adds a file and returns the kernel's handle.
    pub(crate) fn add(&mut self, file: OpenFile) -> u64 {
        self.next += 1;
        self.by_node.entry(file.node).or_default().push(self.next);
        self.files.insert(self.next, file);
        self.next
    }

    /// The open file of the kernel's handle `fh`.
    pub(crate) fn get(&self, fh: u64) -> Option<OpenFile> {
        self.files.get(&fh).copied()
    }

    /// Records the file's new handle after a loss of the server.
    pub(crate) fn reopened(&mut self, fh: u64, handle: i32, losses: u64) {
        if let Some(file) = self.files.get_mut(&fh) {
            (file.handle, file.losses) = (handle, losses);
            file.doubtful |= file.unsynced;
            (file.unsynced, file.unflushed) = (false, false);
        }
    }

    /// Records a write up to `end` through `fh`.
    pub(crate) fn wrote(&mut self, fh: u64, end: u64) {
        if let Some(file) = self.files.get_mut(&fh) {
            (file.unsynced, file.unflushed) = (true, true);
            let size = self.sizes.entry(file.node).or_default();
            *size = end.max(*size);
        }
    }

    /// Records that the server has reported its write errors.
    pub(crate) fn flushed(&mut self, fh: u64) {
        if let Some(file) = self.files.get_mut(&fh) {
            file.unflushed = false;
        }
    }

    /// Records a sync. Returns whether earlier data may be missing, which it reports once.
    pub(crate) fn synced(&mut self, fh: u64) -> bool {
        let Some(file) = self.files.get_mut(&fh) else {
            return false;
        };
        (file.unsynced, file.unflushed) = (false, false);
        mem::take(&mut file.doubtful)
    }

    /// Records the size of a node if it is open.
    pub(crate) fn note_size(&mut self, node: u64, size: u64) {
        if self.by_node.contains_key(&node) {
            self.sizes.insert(node, size);
        }
    }

    /// The size of an open node.
    pub(crate) fn size(&self, node: u64) -> u64 {
        self.sizes.get(&node).copied().unwrap_or_default()
    }

    /// Removes a file.
    pub(crate) fn remove(&mut self, fh: u64) -> Option<OpenFile> {
        let file = self.files.remove(&fh)?;
        if let Some(same) = self.by_node.get_mut(&file.node) {
            same.retain(|other| *other != fh);
            if same.is_empty() {
                self.by_node.remove(&file.node);
                self.sizes.remove(&file.node);
            }
        }
        Some(file)
    }

    /// An open file of the node, preferably a writable one.
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
            unsynced: false,
            unflushed: false,
            doubtful: false,
        }
    }

    /// Keeps the promise that a short read means the end of a file only where the file ends.
    #[test]
    fn the_size_of_an_open_node_follows_reports_and_writes() {
        let mut files = Files::default();
        files.note_size(5, 9);
        assert_eq!(files.size(5), 0, "it is not open");
        let fh = files.add(file(5, 2));
        files.note_size(5, 9);
        files.wrote(fh, 7);
        assert_eq!(files.size(5), 9);
        files.wrote(fh, 12);
        assert_eq!(files.size(5), 12);
        files.note_size(5, 3);
        assert_eq!(files.size(5), 3);
        files.remove(fh);
        assert_eq!(files.size(5), 0);
    }

    /// Keeps the promise that data which a lost server may have lost is reported once.
    #[test]
    fn a_loss_with_unsynced_data_is_reported_once() {
        let mut files = Files::default();
        let fh = files.add(file(5, 2));
        files.reopened(fh, 4, 1);
        assert!(!files.synced(fh), "nothing was written");
        files.wrote(fh, 1);
        assert!(!files.synced(fh), "the server was not lost");
        files.wrote(fh, 1);
        files.reopened(fh, 5, 2);
        assert!(files.synced(fh));
        assert!(!files.synced(fh));
    }

    #[test]
    fn of_node_prefers_a_writable_file() {
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
