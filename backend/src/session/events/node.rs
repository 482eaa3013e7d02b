//! Node ids that exist for guests alone: the directory with the file of changes, the file, and
//! names that are gone.
//!
//! They are the highest numbers. Those of inodes begin at 2^28 and are given one after another.

use gangplank_fuse::{Attr, EntryOut, NodeId};

/// The lowest of them.
const LOWEST: u64 = GONE;

/// The first of the names that are gone. Odd ones are directories.
const GONE: u64 = u64::MAX - (1 << 32) - 1;

/// `.gangplank` in the share's root.
pub(in crate::session) const DIRECTORY: NodeId = NodeId::new(u64::MAX - 1);

/// `.gangplank/events`.
pub(in crate::session) const FILE: NodeId = NodeId::new(u64::MAX - 2);

/// The name in the root of the directory with the file of changes.
pub const DIRECTORY_NAME: &[u8] = b".gangplank";

/// The name of [`FILE`] in its directory.
pub(super) const FILE_NAME: &[u8] = b"events";

/// How long a guest may believe in the directory and the file, in seconds.
const VALID_SECS: u64 = 1;

/// Whether a node exists for guests alone.
pub const fn is_own(node: NodeId) -> bool {
    node.get() >= LOWEST
}

/// The node of a name that is gone.
pub(super) const fn gone(number: u32, is_directory: bool) -> NodeId {
    // Below those of the directory and the file.
    let number = (number as u64 & 0x3fff_ffff) << 1;
    NodeId::new(GONE + number + is_directory as u64)
}

/// The attributes of one of these nodes, which belong to the guest's root.
pub(super) fn attributes(node: NodeId) -> Attr {
    let (mode, nlink) = match node {
        DIRECTORY => (libc::S_IFDIR | 0o555, 2),
        FILE => (libc::S_IFREG | 0o600, 1),
        _ if node.get() & 1 != 0 => (libc::S_IFDIR | 0o700, 2),
        _ => (libc::S_IFREG | 0o600, 1),
    };
    // The host's time, by which a reader knows when it has heard of everything.
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let seconds = now.tv_sec.cast_unsigned();
    let nanoseconds = u32::try_from(now.tv_nsec).unwrap_or_default();
    Attr {
        ino: node.get(),
        atime: seconds,
        mtime: seconds,
        ctime: seconds,
        atimensec: nanoseconds,
        mtimensec: nanoseconds,
        ctimensec: nanoseconds,
        mode,
        nlink,
        blksize: 4096,
        ..Attr::default()
    }
}

/// The reply to a lookup that finds one of these nodes.
pub(super) fn entry(node: NodeId) -> EntryOut {
    let is_lasting = matches!(node, DIRECTORY | FILE);
    EntryOut {
        nodeid: node.get(),
        entry_valid: if is_lasting { VALID_SECS } else { 0 },
        // The file's time is asked for each time.
        attr_valid: if node == DIRECTORY { VALID_SECS } else { 0 },
        attr: attributes(node),
        ..EntryOut::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_distinct_and_of_their_type() {
        let nodes = [
            DIRECTORY,
            FILE,
            gone(0, false),
            gone(0, true),
            gone(u32::MAX, true),
        ];
        for (at, node) in nodes.iter().enumerate() {
            assert!(is_own(*node), "{node}");
            assert!(!nodes[..at].contains(node), "{node}");
        }
        assert_eq!(attributes(gone(7, true)).mode & libc::S_IFMT, libc::S_IFDIR);
        assert_eq!(
            attributes(gone(7, false)).mode & libc::S_IFMT,
            libc::S_IFREG
        );
        assert!(!is_own(NodeId::ROOT));
    }
}
