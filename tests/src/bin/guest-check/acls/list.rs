//! Access control lists as text and as the kernel has them (`include/uapi/linux/posix_acl.h` and
//! `posix_acl_xattr.h`).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lremovexattr, lsetxattr};
use rustix::io::Errno;

/// The attribute of a file's own list.
pub(super) const ACCESS: &str = "system.posix_acl_access";

/// The attribute of the list that a directory gives to what is made in it.
pub(super) const DEFAULT: &str = "system.posix_acl_default";

/// The version of the format, before the entries.
const VERSION: u32 = 2;

/// The id of entries that have none.
const NO_ID: u32 = u32::MAX;

/// Kinds of entries: their letters here, and their numbers.
const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHER: u16 = 32;

/// Room for the largest list of these cases.
const ROOM: usize = 65_536;

/// A list as bytes. An entry is as in `u:5:6`: the letter of a kind (`u`, `g`, `m`, `o`), an id,
/// permissions.
pub(super) fn encoded(text: &str) -> Result<Vec<u8>> {
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for entry in text.split(',').filter(|entry| !entry.is_empty()) {
        let mut parts = entry.split(':');
        let mut part = || parts.next().with_context(|| format!("the entry {entry}"));
        let (kind, id, permissions) = (part()?, part()?, part()?);
        let kind = match (kind, id.is_empty()) {
            ("u", true) => USER_OBJ,
            ("u", false) => USER,
            ("g", true) => GROUP_OBJ,
            ("g", false) => GROUP,
            ("m", _) => MASK,
            ("o", _) => OTHER,
            // Numbers are for lists that nobody may set.
            (number, _) => number.parse()?,
        };
        let id = match id {
            "" => NO_ID,
            id => id.parse()?,
        };
        bytes.extend(kind.to_le_bytes());
        bytes.extend(permissions.parse::<u16>()?.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    Ok(bytes)
}

/// A list as text, which [`encoded`] reads.
fn decoded(bytes: &[u8]) -> String {
    let (entries, _) = bytes.get(4..).unwrap_or_default().as_chunks::<8>();
    let entries = entries.iter().map(|[a, b, c, d, id @ ..]| {
        let (kind, permissions) = (u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]));
        let kind = match kind {
            USER_OBJ | USER => "u".to_owned(),
            GROUP_OBJ | GROUP => "g".to_owned(),
            MASK => "m".to_owned(),
            OTHER => "o".to_owned(),
            other => other.to_string(),
        };
        match u32::from_le_bytes(*id) {
            NO_ID => format!("{kind}::{permissions}"),
            id => format!("{kind}:{id}:{permissions}"),
        }
    });
    entries.collect::<Vec<_>>().join(",")
}

/// Gives a file a list.
pub(super) fn set(path: &Path, name: &str, text: &str) -> Result<String> {
    let bytes = encoded(text)?;
    Ok(outcome(lsetxattr(path, name, &bytes, XattrFlags::empty())))
}

/// Takes a list from a file.
pub(super) fn remove(path: &Path, name: &str) -> String {
    outcome(lremovexattr(path, name))
}

/// How a system call has ended.
pub(super) fn outcome<T>(result: Result<T, Errno>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(errno) => format!("errno {}", errno.raw_os_error()),
    }
}

/// Mode, owner, links and lists of a file.
pub(super) fn shown(path: &Path) -> Result<String> {
    let found = fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    let mut text = format!(
        "{:o} {}:{} {}",
        found.mode(),
        found.uid(),
        found.gid(),
        if found.is_dir() { 0 } else { found.nlink() }
    );
    for name in [ACCESS, DEFAULT] {
        let mut bytes = vec![0; ROOM];
        let list = match lgetxattr(path, name, bytes.as_mut_slice()) {
            Ok(len) => decoded(bytes.get(..len).unwrap_or_default()),
            Err(Errno::NODATA) => "-".to_owned(),
            Err(errno) => format!("errno {}", errno.raw_os_error()),
        };
        text.push(' ');
        text.push_str(&list);
    }
    Ok(text)
}

/// The names of lists that a file has.
pub(super) fn names(path: &Path) -> Result<String> {
    let mut bytes = vec![0; ROOM];
    let len = llistxattr(path, bytes.as_mut_slice())?;
    let names = bytes
        .get(..len)
        .unwrap_or_default()
        .split(|byte| *byte == 0);
    let mut names: Vec<String> = names
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .filter(|name| name.starts_with("system."))
        .collect();
    names.sort();
    Ok(names.join(" "))
}
