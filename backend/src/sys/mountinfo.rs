//! The host's list of mounts (`/proc/self/mountinfo`, proc(5)).

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The id, which statx(2) tells too.
    pub id: u64,
    /// Major and minor number of the device, as statx(2) tells them.
    pub device: (u32, u32),
    /// The mount point.
    pub point: PathBuf,
    /// The file system's type, with FUSE's subtype behind a dot.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// The options of the file system.
    pub options: String,
}

/// The host's mounts, as the calling process sees them; none if they cannot be read.
#[must_use]
pub fn read() -> Vec<Entry> {
    parse(&std::fs::read("/proc/self/mountinfo").unwrap_or_default())
}

/// The mounts in the text of `mountinfo`. Lines of another form are left out.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<Entry> {
    text.split(|byte| *byte == b'\n')
        .filter_map(entry)
        .collect()
}

/// The entries whose mount points are below `directory`, without what later mounts on the same
/// points cover.
#[must_use]
pub fn below<'a>(entries: &'a [Entry], directory: &Path) -> Vec<&'a Entry> {
    let is_inside = |point: &Path| point != directory && point.starts_with(directory);
    let mut found: Vec<&Entry> = Vec::new();
    for entry in entries.iter().filter(|entry| is_inside(&entry.point)) {
        found.retain(|earlier| earlier.point != entry.point);
        found.push(entry);
    }
    found
}

/// `36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/sda1 rw,errors=continue`.
fn entry(line: &[u8]) -> Option<Entry> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let separator = fields.iter().position(|field| *field == b"-")?;
    let text = |index: usize| Some(String::from_utf8_lossy(&unescaped(fields.get(index)?)).into());
    let device = std::str::from_utf8(fields.get(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    Some(Entry {
        id: std::str::from_utf8(fields.first()?).ok()?.parse().ok()?,
        device: (major.parse().ok()?, minor.parse().ok()?),
        point: PathBuf::from(OsString::from_vec(unescaped(fields.get(4)?))),
        kind: text(separator + 1)?,
        source: text(separator + 2)?,
        options: text(separator + 3)?,
    })
}

/// Replaces `\040` and the like.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, others)) = rest.split_first() {
        let digits = others.get(..3).filter(|_| *first == b'\\');
        let value = digits.and_then(|digits| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        });
        match value {
            Some(value) => {
                bytes.push(value);
                rest = others.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = others;
            }
        }
    }
    bytes
}

/// A mount point inside of `directory`, as text.
#[must_use]
pub fn inside(point: &Path, directory: &Path) -> String {
    let inside = point.strip_prefix(directory).unwrap_or(point);
    String::from_utf8_lossy(inside.as_os_str().as_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        36 22 0:40 / /srv/a\\040b rw - fuse.glusterfs host:vol rw,user_id=0\n\
        37 22 0:41 / /srv/x rw master:7 propagate_from:2 - tmpfs tmpfs rw\n\
        38 37 0:42 / /srv/x rw - nfs4 server:/e rw,vers=4.2\n\
        39 22 0:43 / /srvx rw - proc proc rw\n\
        nonsense\n";

    #[test]
    fn a_list_is_read() {
        let entries = parse(TEXT);
        assert_eq!(entries.len(), 5);
        assert_eq!(entries[1].point, Path::new("/srv/a b"));
        assert_eq!(entries[1].kind, "fuse.glusterfs");
        assert_eq!(entries[1].options, "rw,user_id=0");
        assert_eq!((entries[2].id, entries[2].kind.as_str()), (37, "tmpfs"));
        assert_eq!(entries[2].device, (0, 41));
    }

    #[test]
    fn the_mounts_below_a_directory_are_those_that_are_seen() {
        let entries = parse(TEXT);
        let directory = Path::new("/srv");
        let found = below(&entries, directory);
        let points: Vec<_> = found
            .iter()
            .map(|entry| (inside(&entry.point, directory), entry.kind.as_str()))
            .collect();
        let expected = [("a b", "fuse.glusterfs"), ("x", "nfs4")];
        assert_eq!(points, expected.map(|(path, kind)| (path.to_owned(), kind)));
    }

    #[test]
    fn half_an_escape_is_taken_as_it_is() {
        for field in [&b"\\04"[..], b"\\", b"a\\999"] {
            assert_eq!(unescaped(field), field);
        }
    }
}
