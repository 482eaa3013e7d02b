//! Open directories: entries as they came from the server, so that a place in the list means the same again.
//!
//! The server gives one entry a call, and positions that the original cuts to 32 bits. The kernel's positions are therefore
//! our own: how many entries came before. Entries are fetched when they are first wanted, and kept until the list is
//! started anew or the directory closed.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use crate::abi::rhostfs::UsrDirent;

/// More entries than this are no directory but a fault: some 100 MiB of names.
pub(crate) const MAX_ENTRIES: usize = 1 << 20;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The server's inode number.
    pub(crate) ino: u32,
    /// `DT_*`; 0 if the server does not tell.
    pub(crate) kind: u8,
    /// Its name.
    pub(crate) name: OsString,
}

impl Entry {
    /// The server's entry; nothing if it has no name that could be one.
    pub(crate) fn from_wire(entry: &UsrDirent) -> Option<Self> {
        let length = entry.name.iter().position(|byte| *byte == 0)?;
        let name = entry.name.get(..length)?;
        if name.is_empty() || name.contains(&b'/') {
            return None;
        }
        Some(Self {
            ino: entry.ino,
            kind: entry.kind,
            name: OsString::from_vec(name.to_vec()),
        })
    }

    /// Whether it is the directory itself or the one above.
    pub(crate) fn is_dot(&self) -> bool {
        self.name == "." || self.name == ".."
    }
}

/// One open directory.
#[derive(Debug)]
pub(crate) struct Directory {
    /// Its node.
    pub(crate) node: u64,
    /// The server's handle.
    pub(crate) handle: u32,
    /// How often the server had been lost when it was opened.
    pub(crate) losses: u64,
    /// What has come so far.
    pub(crate) entries: Vec<Entry>,
    /// Whether that is all.
    pub(crate) complete: bool,
    /// The server's position behind the last entry that came; zero at the start.
    pub(crate) cookie: i32,
}

/// All open directories, by what the kernel calls them.
#[derive(Debug, Default)]
pub(crate) struct Directories {
    directories: HashMap<u64, Directory>,
    next: u64,
}

impl Directories {
    /// Adds one; returns what the kernel is to call it.
    pub(crate) fn add(&mut self, directory: Directory) -> u64 {
        self.next += 1;
        self.directories.insert(self.next, directory);
        self.next
    }

    /// The open directory that the kernel calls `fh`.
    pub(crate) fn get_mut(&mut self, fh: u64) -> Option<&mut Directory> {
        self.directories.get_mut(&fh)
    }

    /// Takes one away.
    pub(crate) fn remove(&mut self, fh: u64) -> Option<Directory> {
        self.directories.remove(&fh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(name: &[u8]) -> UsrDirent {
        let mut entry = UsrDirent {
            ino: 7,
            kind: 8,
            ..UsrDirent::default()
        };
        entry.name[..name.len()].copy_from_slice(name);
        entry
    }

    #[test]
    fn an_entrys_name_ends_at_its_nul() {
        let entry = Entry::from_wire(&wire(b"name\0rubbish")).unwrap();
        assert_eq!((entry.ino, entry.kind, entry.name), (7, 8, "name".into()));
    }

    #[test]
    fn what_cannot_be_a_name_is_no_entry() {
        assert_eq!(Entry::from_wire(&wire(b"")), None);
        assert_eq!(Entry::from_wire(&wire(b"../etc")), None);
        assert_eq!(Entry::from_wire(&wire(&[b'x'; 256])), None);
    }
}
