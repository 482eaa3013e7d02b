//! Unix-domain sockets as the kernel lists them.

use std::fs;
use std::path::Path;

/// Whether a process listens at `path`, found without a connection, which would count as a guest.
/// Looks in this process's network namespace and in that of process `pid`: a program may be started
/// in another one, and may leave its own after it has bound its socket.
///
/// A socket's file is there as soon as it is bound. A connection between that and listen(2) is
/// refused (`ECONNREFUSED`), so that the file alone does not tell that a program is ready.
#[must_use]
pub fn listens(pid: u32, path: &Path) -> bool {
    /// The flag of a listening socket in /proc/net/unix (`__SO_ACCEPTCON`).
    const LISTENS: &str = " 00010000 ";
    // A socket whose file another program has removed is listed as well, until it is closed.
    if !path.exists() {
        return false;
    }
    let path = format!(" {}", path.display());
    ["self".to_owned(), pid.to_string()].iter().any(|process| {
        let sockets = fs::read_to_string(format!("/proc/{process}/net/unix"));
        let sockets = sockets.unwrap_or_default();
        let mut lines = sockets.lines();
        lines.any(|line| line.ends_with(&path) && line.contains(LISTENS))
    })
}
