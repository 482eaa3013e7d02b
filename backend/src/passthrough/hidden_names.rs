//! Names that a network file system's client gives to removed files that are still open.
//!
//! An NFS client renames such a file to `.nfs` and a number (`nfs_sillyrename`, `fs/nfs/unlink.c`),
//! libfuse to `.fuse_hidden` and a number, and removes it when it is closed. The daemon has a
//! descriptor of each inode that a guest knows, until the guest's kernel sends FORGET, soon after
//! UNLINK. So a guest that removes a directory with its files may be faster than that, and find the
//! directory not empty. RMDIR therefore waits a moment, if nothing but such names is there.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use super::dir_stream::names;
use super::fs::{Node, PassthroughFs};
use crate::sys::file;

/// How long RMDIR waits before each attempt after the first: together half a second. A file that a
/// process has open stays for longer, and the guest gets ENOTEMPTY as on an NFS client.
const PAUSES: [Duration; 6] = [
    Duration::from_millis(2),
    Duration::from_millis(8),
    Duration::from_millis(30),
    Duration::from_millis(60),
    Duration::from_millis(150),
    Duration::from_millis(250),
];

impl PassthroughFs {
    /// Calls `remove` for the directory `name` in `parent`, and again while it fails because of
    /// hidden names alone.
    ///
    /// # Errors
    /// Those of `remove`.
    pub(super) fn wait_for_hidden_names(
        &self,
        parent: &Node,
        name: &CStr,
        remove: impl Fn() -> io::Result<()>,
    ) -> io::Result<()> {
        let mut result = remove();
        let is_local =
            (self.share.mount(parent.identity.mount)).is_ok_and(|mount| mount.is_local());
        for pause in PAUSES {
            let is_not_empty = |error: &io::Error| error.raw_os_error() == Some(libc::ENOTEMPTY);
            let is_not_empty = result.as_ref().is_err_and(is_not_empty);
            if is_local || !is_not_empty || !has_hidden_names_alone(parent, name) {
                break;
            }
            std::thread::sleep(pause);
            result = remove();
        }
        result
    }
}

/// Whether a directory has names, and all of them are hidden.
fn has_hidden_names_alone(parent: &Node, name: &CStr) -> bool {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    let opened = file::open_at(parent.as_fd(), name, flags, 0);
    let listed = opened.and_then(|opened| names(opened.as_fd()));
    listed.is_ok_and(|names| names.iter().all(|name| is_hidden(name)))
}

/// A prefix that clients use, and a hexadecimal number.
fn is_hidden(name: &CStr) -> bool {
    let name = name.to_bytes();
    let number = name
        .strip_prefix(b".nfs")
        .or_else(|| name.strip_prefix(b".fuse_hidden"));
    number.is_some_and(|number| number.len() >= 8 && number.iter().all(u8::is_ascii_hexdigit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_removed_files_are_told_from_others() {
        for (name, expected) in [
            (c".nfs000000000001ab2f00000001", true),
            (c".fuse_hidden0000001a00000002", true),
            (c".nfs", false),
            (c".nfsnotes-of-me", false),
            (c"nfs0000000000000000", false),
        ] {
            assert_eq!(is_hidden(name), expected, "{name:?}");
        }
    }
}
