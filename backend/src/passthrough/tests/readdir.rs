//! Tests of listing directories in several requests.

use std::collections::{BTreeMap, BTreeSet};

use gangplank_fuse::dir::{DirentWriter, Direntplusses, Dirents};

use super::*;

const ROOT: NodeId = NodeId::ROOT;

/// The names of one READDIR reply, each with the cookie after it.
fn list(
    guest: &Guest,
    node: NodeId,
    handle: Handle,
    offset: u64,
    size: usize,
) -> io::Result<Vec<(String, u64)>> {
    let mut buffer = vec![0xaa; size];
    let mut entries = DirentWriter::new(&mut buffer);
    let args = ReadIn {
        fh: handle.get(),
        offset,
        ..ReadIn::default()
    };
    guest.fs.readdir(node, &args, &mut entries)?;
    let written = entries.written();
    Ok(Dirents::new(&buffer[..written])
        .map(|entry| entry.expect("decoded"))
        .map(|entry| {
            (
                String::from_utf8(entry.name.to_vec()).expect("UTF-8"),
                entry.dirent.off,
            )
        })
        .collect())
}

pub(super) fn list_all(guest: &Guest, node: NodeId, handle: Handle, size: usize) -> Vec<String> {
    let mut names = Vec::new();
    let mut offset = 0;
    loop {
        let piece = list(guest, node, handle, offset, size).expect("listed");
        let Some((_, last)) = piece.last() else {
            return names;
        };
        offset = *last;
        names.extend(piece.into_iter().map(|(name, _)| name));
    }
}

fn open_directory(guest: &Guest, node: NodeId) -> Handle {
    let open = guest.fs.opendir(node, &OpenIn::default()).expect("opened");
    Handle::new(open.fh)
}

/// A guest whose directory has `count` files.
fn filled(count: usize) -> (Guest, BTreeSet<String>) {
    let guest = Guest::new();
    let names: BTreeSet<String> = (0..count)
        .map(|n| format!("a file with number {n}"))
        .collect();
    // Hard links are cheaper to create than files, and only the names matter.
    let file = tempfile::NamedTempFile::new().expect("a file");
    for name in &names {
        std::fs::hard_link(file.path(), guest.path(name)).expect("linked");
    }
    (guest, names)
}

#[test]
fn ten_thousand_names_come_once_each_whatever_the_size_of_the_replies() {
    let (guest, mut expected) = filled(10_000);
    expected.extend([".".into(), "..".into()]);
    for size in [320, 4096, 131_072] {
        let handle = open_directory(&guest, ROOT);
        let names = list_all(&guest, ROOT, handle, size);
        assert_eq!(names.len(), expected.len(), "replies of {size} bytes");
        assert_eq!(names.into_iter().collect::<BTreeSet<_>>(), expected);
        guest.release(ROOT, handle);
    }
}

#[test]
fn any_cookie_goes_on_where_it_came_from() {
    let (guest, _) = filled(500);
    let handle = open_directory(&guest, ROOT);
    let mut after = BTreeMap::new();
    let mut offset = 0;
    loop {
        let piece = list(&guest, ROOT, handle, offset, 4096).expect("listed");
        let Some((_, last)) = piece.last() else { break };
        let mut cookie = offset;
        for (name, next) in &piece {
            after.insert(cookie, name.clone());
            cookie = *next;
        }
        offset = *last;
    }
    assert_eq!(after.len(), 502);
    let (cookies, names): (Vec<_>, Vec<_>) = after.into_iter().unzip();
    for n in (0..500).map(|n| n * 7919 % 500) {
        let piece = list(&guest, ROOT, handle, cookies[n], 320).expect("listed");
        assert_eq!(piece[0].0, names[n]);
    }
    // A listing from the start includes files created in the meantime.
    std::fs::write(guest.path("new"), b"").expect("written");
    assert!(list_all(&guest, ROOT, handle, 4096).contains(&"new".into()));
}

#[test]
fn names_that_stay_are_listed_while_others_come_and_go() {
    let (guest, stay) = filled(2000);
    let handle = open_directory(&guest, ROOT);
    let mut names = Vec::new();
    let mut offset = 0;
    for round in 0.. {
        let other = guest.path(&format!("passing {}", round % 10));
        if round % 20 < 10 {
            std::fs::write(other, b"").expect("written");
        } else {
            let _ = std::fs::remove_file(other);
        }
        let piece = list(&guest, ROOT, handle, offset, 1024).expect("listed");
        let Some((_, last)) = piece.last() else { break };
        offset = *last;
        names.extend(piece.into_iter().map(|(name, _)| name));
    }
    let listed: BTreeSet<_> = names
        .iter()
        .filter(|name| stay.contains(*name))
        .cloned()
        .collect();
    assert_eq!(listed, stay);
}

#[test]
fn no_room_for_one_entry_is_an_error_and_not_the_end() {
    let (guest, _) = filled(3);
    let handle = open_directory(&guest, ROOT);
    assert_eq!(errno(list(&guest, ROOT, handle, 0, 24)), Some(libc::EINVAL));
    assert_eq!(
        errno(list(&guest, ROOT, handle, u64::MAX, 4096)),
        Some(libc::EINVAL)
    );
    assert_eq!(list_all(&guest, ROOT, handle, 4096).len(), 5);
    std::fs::write(guest.path("file"), b"").expect("written");
    let file = guest.find(ROOT, c"file");
    let handle = guest.open(file, libc::O_RDONLY).expect("opened");
    assert_eq!(
        errno(list(&guest, file, handle, 0, 4096)),
        Some(libc::EBADF)
    );
}

#[test]
fn plus_entries_are_looked_up_and_count() {
    let (guest, names) = filled(300);
    let handle = open_directory(&guest, ROOT);
    let mut offset = 0;
    let mut nodes = Vec::new();
    loop {
        let mut buffer = vec![0xaa; 4096];
        let mut entries = DirentWriter::new(&mut buffer);
        let args = ReadIn {
            fh: handle.get(),
            offset,
            ..ReadIn::default()
        };
        guest
            .fs
            .readdirplus(ROOT, &args, &mut entries)
            .expect("listed");
        let written = entries.written();
        let mut any = false;
        for entry in Direntplusses::new(&buffer[..written]) {
            let entry = entry.expect("decoded");
            any = true;
            offset = entry.dirent.off;
            let dots = entry.name == b"." || entry.name == b"..";
            assert_eq!(entry.entry_out.nodeid == 0, dots);
            if !dots {
                assert_eq!(entry.dirent.ino, entry.entry_out.attr.ino);
                nodes.push(NodeId::new(entry.entry_out.nodeid));
            }
        }
        if !any {
            break;
        }
    }
    assert_eq!((nodes.len(), guest.fs.held_inodes()), (names.len(), 1));
    for node in nodes {
        guest.fs.forget(node, 1);
    }
    assert_eq!(guest.fs.held_inodes(), 0);
}

#[test]
fn more_open_listings_than_leftovers_all_come_to_their_end() {
    let (guest, names) = filled(200);
    let handles: Vec<_> = (0..100).map(|_| open_directory(&guest, ROOT)).collect();
    let mut offsets = vec![0; handles.len()];
    let mut counts = vec![0; handles.len()];
    for _ in 0..40 {
        for (n, handle) in handles.iter().enumerate() {
            let piece = list(&guest, ROOT, *handle, offsets[n], 512).expect("listed");
            counts[n] += piece.len();
            if let Some((_, last)) = piece.last() {
                offsets[n] = *last;
            }
        }
    }
    assert!(
        counts.iter().all(|count| *count == names.len() + 2),
        "{counts:?}"
    );
}
