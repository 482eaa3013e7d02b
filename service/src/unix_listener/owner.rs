//! The process that uses a socket's path, for error messages.
//!
//! The kernel's table of sockets has their paths as other users wrote them. They are compared as
//! text: opening them would follow links that those users made.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A socket with a path, one line of /proc/net/unix.
#[derive(Debug, PartialEq, Eq)]
struct BoundSocket {
    /// The socket's own inode number, not its file's.
    inode: u64,
    /// The path, as the process gave it to `bind(2)`.
    path: PathBuf,
}

/// Describes the process whose socket has one of `paths`, which are absolute.
pub(super) fn describe(paths: &[PathBuf]) -> String {
    let table = fs::read("/proc/net/unix").unwrap_or_default();
    for socket in parse(&table) {
        if socket.path.is_absolute() && !paths.contains(&socket.path) {
            continue;
        }
        // Only the process that bound a relative path knows what it is relative to.
        let pid = process_with_socket(socket.inode);
        if socket.path.is_relative() && !pid.is_some_and(|pid| is_below(pid, &socket.path, paths)) {
            continue;
        }
        return match pid {
            Some(pid) => name_of(pid),
            // The descriptors of another user's processes are hidden.
            None => "a process of another user".to_owned(),
        };
    }
    // Of another network namespace, or it spelled the path in another way.
    "another process".to_owned()
}

fn is_below(pid: u32, relative: &Path, paths: &[PathBuf]) -> bool {
    let directory = fs::read_link(format!("/proc/{pid}/cwd"));
    directory.is_ok_and(|directory| paths.contains(&directory.join(relative)))
}

fn name_of(pid: u32) -> String {
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim_end()),
        Err(_) => format!("process {pid}"),
    }
}

/// The sockets with a path that are no end of a connection, from the text of /proc/net/unix
/// (proc_net(5), Linux 6.1 `unix_seq_show()`): `Num RefCount Protocol Flags Type St Inode Path`.
fn parse(table: &[u8]) -> Vec<BoundSocket> {
    /// `SS_UNCONNECTED`. A socket that listens has this state, an accepted connection has not.
    const UNCONNECTED: &str = "01";
    table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| {
            let mut rest = line;
            let mut field = || {
                let start = rest.iter().position(|&byte| byte != b' ')?;
                let (_, from_start) = rest.split_at(start);
                let end = from_start.iter().position(|&byte| byte == b' ')?;
                let (field, after) = from_start.split_at(end);
                rest = after;
                std::str::from_utf8(field).ok()
            };
            let state = field_at(&mut field, 5)?;
            let inode = field_at(&mut field, 0)?.parse().ok()?;
            // One space, then the path with whatever spaces it has.
            let path = rest.strip_prefix(b" ")?;
            (state == UNCONNECTED).then(|| BoundSocket {
                inode,
                path: OsStr::from_bytes(path).into(),
            })
        })
        .collect()
}

/// The field after `skip` others.
fn field_at<'a>(field: &mut impl FnMut() -> Option<&'a str>, skip: usize) -> Option<&'a str> {
    for _ in 0..skip {
        field()?;
    }
    field()
}

/// A process that has the socket open, as far as this process may look.
fn process_with_socket(inode: u64) -> Option<u32> {
    let link = PathBuf::from(format!("socket:[{inode}]"));
    fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| {
            fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|descriptors| {
                descriptors
                    .flatten()
                    .any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == link))
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_keeps_unconnected_sockets_with_a_path() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01  1234 /run/a.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03  1235 /run/b.sock\n\
            0000000000000000: 00000002 00000000 00010000 0001 01  1236\n\
            ffff000000000000: 00000002 00000000 00010000 0005 01 12370 relative  two\n\
            rubbish\n";
        let expected =
            [(1234, "/run/a.sock"), (12370, "relative  two")].map(|(inode, path)| BoundSocket {
                inode,
                path: path.into(),
            });
        assert_eq!(parse(table), expected);
    }

    #[test]
    fn owner_of_a_socket_is_named_while_it_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let paths = [path];
        let own = format!("process {} (", std::process::id());
        assert!(describe(&paths).starts_with(&own));
        drop(listener);
        assert_eq!(describe(&paths), "another process");
    }
}
