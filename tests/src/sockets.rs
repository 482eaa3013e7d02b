//! Unix-domain sockets as the kernel lists them.

use std::fs;
use std::path::Path;

/// Whether a process listens at `path`, found without a connection, which would count as a guest.
/// `pid` is a process in the network namespace of the one that listens.
///
/// A socket's file is there as soon as it is bound. A connection between that and listen(2) is
/// refused (`ECONNREFUSED`), so that the file alone does not tell that a program is ready.
#[must_use]
pub fn listens(pid: u32, path: &Path) -> bool {
    /// The flag of a listening socket in /proc/net/unix (`__SO_ACCEPTCON`).
    const LISTENS: &str = " 00010000 ";
    let path = format!(" {}", path.display());
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap_or_default();
    let mut lines = sockets.lines();
    lines.any(|line| line.ends_with(&path) && line.contains(LISTENS))
}
