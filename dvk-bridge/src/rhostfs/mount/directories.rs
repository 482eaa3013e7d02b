//! Open directories. They keep the entries that the server sent, so that a position in the list
//! keeps its meaning.
//!
//! The server returns one entry a call, and the original cuts positions to 32 bits. The kernel's
//! positions are therefore indices into the list. Entries are fetched on demand, and kept until the
//! list is rewound or the directory is closed.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use crate::abi::rhostfs::UsrDirent;

/// Limit of entries in a directory, about 100 MiB of names. A server that sends more is faulty.
pub(crate) const MAX_ENTRIES: usize = 1 << 20;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The server's inode number.
    pub(crate) ino: u32,
    /// `DT_*`, or 0 if the server does not tell.
    pub(crate) kind: u8,
    /// The name.
    pub(crate) name: OsString,
}

impl Entry {
    /// Converts the server's entry. `None` if its name is invalid.
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

    /// Whether the entry is `.` or `..`.
    pub(crate) fn is_dot(&self) -> bool {
        self.name == "." || self.name == ".."
    }
}

/// An open directory.
#[derive(Debug)]
pub(crate) struct Directory {
    /// Its node.
    pub(crate) node: u64,
    /// The server's handle.
    pub(crate) handle: u32,
    /// The count of losses when the directory was opened.
    pub(crate) losses: u64,
    /// The entries so far.
    pub(crate) entries: Vec<Entry>,
    /// Whether the entries are all.
    pub(crate) complete: bool,
    /// The server's position after the last entry. Zero at the start.
    pub(crate) cookie: i32,
}

/// All open directories by the kernel's handle.
#[derive(Debug, Default)]
pub(crate) struct Directories {
    directories: HashMap<u64, Directory>,
    next: u64,
}

impl Directories {
    /// Adds a directory and returns the kernel's handle.
    pub(crate) fn add(&mut self, directory: Directory) -> u64 {
        self.next += 1;
        self.directories.insert(self.next, directory);
        self.next
    }

    /// The directory of the kernel's handle `fh`.
    pub(crate) fn get_mut(&mut self, fh: u64) -> Option<&mut Directory> {
        self.directories.get_mut(&fh)
    }

    /// Removes a directory.
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
    fn an_invalid_name_is_not_an_entry() {
        assert_eq!(Entry::from_wire(&wire(b"")), None);
        assert_eq!(Entry::from_wire(&wire(b"../etc")), None);
        assert_eq!(Entry::from_wire(&wire(&[b'x'; 256])), None);
    }
}
