//! Who listens at a socket's file, found out without connecting: a connection that brings nothing
//! makes other daemons leave.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A process that listens.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// `None` where the process is another user's, whose descriptors are hidden.
    pid: Option<u32>,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(pid) = self.pid else {
            return f.write_str("a process of another user");
        };
        write!(f, "process {pid}")?;
        match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
            Ok(name) => write!(f, " ({})", name.trim_end()),
            Err(_) => Ok(()),
        }
    }
}

/// A line of /proc/net/unix about a listening socket with a file.
#[derive(Debug, PartialEq, Eq)]
struct Listening {
    /// The socket's own inode number, not its file's.
    inode: u64,
    /// The path it was bound to, as it was given.
    path: PathBuf,
}

/// Who listens on the socket whose file has this device and inode number, `None` for nobody.
pub(super) fn of_listening_socket(identity: (u64, u64)) -> io::Result<Option<Owner>> {
    let table = std::fs::read("/proc/net/unix")?;
    for listening in parse(&table) {
        // Without a leading slash, the path means something only to the process that bound it.
        let pid = process_with_socket(listening.inode);
        let path = if listening.path.is_absolute() {
            listening.path
        } else if let Some(pid) = pid {
            Path::new(&format!("/proc/{pid}/cwd")).join(listening.path)
        } else {
            continue;
        };
        let same = std::fs::symlink_metadata(path)
            .is_ok_and(|found| (found.dev(), found.ino()) == identity);
        if same {
            return Ok(Some(Owner { pid }));
        }
    }
    Ok(None)
}

/// The listening sockets in the text of /proc/net/unix (proc_net(5), Linux 6.1
/// `unix_seq_show()`): `Num RefCount Protocol Flags Type St Inode Path`.
fn parse(table: &[u8]) -> Vec<Listening> {
    /// `__SO_ACCEPTCON`, set on listening sockets.
    const ACCEPTS: u64 = 1 << 16;
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
            let flags = u64::from_str_radix(field_at(&mut field, 3)?, 16).ok()?;
            let inode = field_at(&mut field, 2)?.parse().ok()?;
            // One space, then the path with whatever spaces it has.
            let path = rest.strip_prefix(b" ")?;
            (flags & ACCEPTS != 0).then(|| Listening {
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
    std::fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| {
            std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|descriptors| {
                descriptors
                    .flatten()
                    .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == link))
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_keeps_listening_sockets_with_a_path() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01  1234 /run/a.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03  1235 /run/b.sock\n\
            0000000000000000: 00000002 00000000 00010000 0001 01  1236\n\
            ffff000000000000: 00000002 00000000 00010000 0005 01 12370 relative  two\n\
            rubbish\n";
        let expected =
            [(1234, "/run/a.sock"), (12370, "relative  two")].map(|(inode, path)| Listening {
                inode,
                path: path.into(),
            });
        assert_eq!(parse(table), expected);
    }

    #[test]
    fn owner_of_a_listening_socket_is_found_and_of_a_closed_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let found = path.metadata().unwrap();
        let identity = (found.dev(), found.ino());
        let pid = Some(std::process::id());
        assert_eq!(of_listening_socket(identity).unwrap(), Some(Owner { pid }));
        drop(listener);
        assert_eq!(of_listening_socket(identity).unwrap(), None);
    }
}
