//! The stream of virtiofsd 1.14, both ways.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use gangplank_backend::state::migration::{
    Extension, FileHandle, Init, Location, MAX_FILE_HANDLE_LEN, MigratedGuest, ROOT_ID,
};
use gangplank_fuse::{Handle, NodeId};
use gangplank_tests::driver::{Driver, NodeAndFile};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::fixture::{
    DEPTH, Known, ROOT, connect, copy_of_share, inode, named, share, use_files, virtiofsd,
};

/// Runs a guest on virtiofsd, and returns it with what it knows and its stream.
macro_rules! saved {
    ($share:expr, $arguments:expr => $daemon:ident, $guest:ident, $known:ident, $stream:ident) => {
        let $daemon = virtiofsd($share.path(), $arguments)?;
        let mut $guest = connect(&$daemon)?;
        let $known = use_files(&mut $guest).with_context(|| $daemon.log())?;
        let $stream = $guest.save_state().with_context(|| $daemon.log())?;
    };
}

/// Compares what both streams have in common: ids, counts, handles, order.
fn check_guest(guest: &MigratedGuest, known: &Known) -> Result<()> {
    ensure!(
        guest.extension.is_none(),
        "virtiofsd writes no part of ours"
    );
    ensure!(guest.inodes.first().is_some_and(|root| root.id == ROOT_ID));
    // The root, plain, early, dir, the deep directories, gone, and the name that is not UTF-8.
    ensure!(guest.inodes.len() == 6 + DEPTH, "{:?}", guest.inodes);
    let highest = guest.inodes.iter().map(|inode| inode.id).max();
    ensure!(highest.is_some_and(|highest| highest < guest.next_inode));
    let mut opened = HashSet::new();
    for inode in &guest.inodes {
        if let Location::Child { parent, .. } = inode.location {
            ensure!(
                opened.contains(&parent),
                "{inode:?} comes before its parent"
            );
        }
        opened.insert(inode.id);
    }

    let lookups = |node: NodeId| -> Result<u64> {
        let children = guest.child_counts().get(&node.get()).copied();
        Ok(inode(guest, node)?.references - children.unwrap_or(0))
    };
    ensure!(lookups(known.plain.node)? == 2, "it was looked up twice");
    for node in [
        known.dir,
        known.renamed.node,
        known.deepest,
        known.unlinked.node,
    ] {
        ensure!(lookups(node)? == 1, "{}", node.get());
    }

    let writable = |file: NodeAndFile| (file.file.get(), file.node.get(), libc::O_RDWR);
    let directory = libc::O_RDONLY;
    let expected = [
        writable(known.plain),
        writable(known.renamed),
        (known.dir_handle, known.dir.get(), directory),
        writable(known.unlinked),
    ];
    ensure!(guest.handles.len() == expected.len(), "{:?}", guest.handles);
    for (handle, (id, inode, access)) in guest.handles.iter().zip(expected) {
        ensure!((handle.id, handle.inode) == (id, inode), "{handle:?}");
        ensure!(handle.flags & libc::O_ACCMODE == access, "{handle:?}");
        let first_open = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC;
        ensure!(handle.flags & first_open == 0, "{handle:?}");
    }
    // The created file had the fifth handle.
    ensure!(guest.next_handle == 5, "{}", guest.next_handle);
    ensure!(guest.options.announce_submounts && !guest.options.writeback);
    ensure!(!guest.options.posix_acl);
    Ok(())
}

pub(crate) fn stream_by_paths_is_read_whole() -> Result<()> {
    let share = share()?;
    saved!(share, &["--migration-verify-handles"] => daemon, guest, known, stream);
    let state = MigratedGuest::decode(&stream)?;
    check_guest(&state, &known).with_context(|| daemon.log())?;

    let location = |node| inode(&state, node).map(|inode| inode.location.clone());
    assert_eq!(location(ROOT)?, Location::Root);
    assert_eq!(location(known.plain.node)?, named(ROOT, "plain"));
    assert_eq!(location(known.renamed.node)?, named(known.dir, "late"));
    assert!(known.renamed.node.get() < known.dir.get());
    assert_eq!(location(known.unlinked.node)?, Location::Invalid);
    assert_eq!(location(known.not_utf8)?, Location::Invalid);
    let mut above = known.deepest;
    let mut names = Vec::new();
    while let Location::Child { parent, name } = location(above)? {
        names.push(name);
        above = NodeId::new(parent);
    }
    assert_eq!(names.len(), DEPTH);
    assert_eq!(names.last().map(String::as_str), Some("deep"));

    for found in &state.inodes {
        let is_lost = found.location == Location::Invalid;
        assert_eq!(found.file_handle.is_none(), is_lost, "{found:?}");
        if let Some(handle) = &found.file_handle {
            check_handle(handle);
        }
    }
    assert!(state.mount_paths.is_empty());
    assert_eq!(state.encode()?, stream);

    // An abandoned migration changes nothing.
    for index in 0..guest.rings.len() {
        guest.start_ring(index)?;
    }
    assert_eq!(guest.read(known.plain, 0, 64)?, b"plain text");
    Ok(())
}

pub(crate) fn stream_by_file_handles_is_read_whole() -> Result<()> {
    let share = share()?;
    saved!(share, HANDLES => daemon, guest, known, stream);
    let state = MigratedGuest::decode(&stream)?;
    check_guest(&state, &known).with_context(|| daemon.log())?;
    for found in &state.inodes {
        assert_eq!(found.file_handle, None);
        match &found.location {
            Location::Root => assert_eq!(found.id, ROOT_ID),
            Location::FileHandle(handle) => {
                check_handle(handle);
                let path = state.mount_paths.get(&handle.mount_id);
                assert_eq!(path.map(String::as_str), Some("."));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(state.mount_paths.len(), 1);
    assert_eq!(state.encode()?, stream);
    drop(guest);
    Ok(())
}

pub(crate) fn guest_that_has_not_mounted_is_empty() -> Result<()> {
    let share = share()?;
    let daemon = virtiofsd(share.path(), &[])?;
    let guest = connect(&daemon)?;
    let stream = guest.save_state().with_context(|| daemon.log())?;
    let state = MigratedGuest::decode(&stream)?;
    assert!(state.handles.is_empty());
    assert_eq!(state.encode()?, stream);
    Ok(())
}

/// The destination has another directory tree with the same content, and cannot open what is lost.
pub(crate) fn guest_goes_on_by_paths() -> Result<()> {
    let share = share()?;
    saved!(share, &[] => daemon, guest, known, stream);
    let copy = copy_of_share()?;
    let other = virtiofsd(copy.path(), &["--migration-on-error=guest-error"])?;
    let mut moved = connect(&other)?;
    load(&mut moved, &guest, &stream).with_context(|| other.log())?;

    goes_on(&mut moved, &known).with_context(|| other.log())?;
    for lost in [known.unlinked.node, known.not_utf8] {
        let attributes = moved.getattr(lost, None);
        assert!(attributes.is_err(), "node {} has no path", lost.get());
    }
    let written = |share: &Path| std::fs::read(share.join("dir/late"));
    assert_eq!(written(copy.path())?, b"RENAMED text");
    assert_eq!(written(share.path())?, b"renamed text");
    drop(daemon);
    Ok(())
}

/// The destination aborts by default.
pub(crate) fn lost_file_refuses_the_guest() -> Result<()> {
    let share = share()?;
    saved!(share, &[] => daemon, guest, known, stream);
    let other = virtiofsd(share.path(), &[])?;
    let mut moved = connect(&other)?;
    assert!(load(&mut moved, &guest, &stream).is_err());
    let log = other.log();
    let is_named = |node: NodeId| log.contains(&format!("has lost inode {}", node.get()));
    assert!(
        is_named(known.unlinked.node) || is_named(known.not_utf8),
        "{log}"
    );
    drop(daemon);
    Ok(())
}

/// By file handle, the unlinked file and the name that is not UTF-8 go on too.
pub(crate) fn guest_goes_on_by_file_handles() -> Result<()> {
    let share = share()?;
    saved!(share, HANDLES => daemon, guest, known, stream);
    let other = virtiofsd(share.path(), HANDLES)?;
    let mut moved = connect(&other)?;
    load(&mut moved, &guest, &stream).with_context(|| other.log())?;

    goes_on(&mut moved, &known).with_context(|| other.log())?;
    assert_eq!(moved.read(known.unlinked, 0, 64)?, b"unlinked text");
    moved.getattr(known.not_utf8, None)?;
    drop(daemon);
    Ok(())
}

/// virtiofsd compares the handles that our encoder wrote.
pub(crate) fn replaced_file_is_found_out_by_its_handle() -> Result<()> {
    let share = share()?;
    saved!(share, &["--migration-verify-handles"] => daemon, guest, known, stream);
    let path = share.path().join("plain");
    std::fs::rename(&path, share.path().join("moved"))?;
    std::fs::write(&path, "another file")?;
    let other = virtiofsd(share.path(), &["--migration-on-error=guest-error"])?;
    let mut moved = connect(&other)?;
    load(&mut moved, &guest, &stream).with_context(|| other.log())?;
    assert!(moved.read(known.plain, 0, 64).is_err());
    assert_eq!(moved.read(known.renamed, 0, 64)?, b"renamed text");
    drop(daemon);
    Ok(())
}

const HANDLES: &[&str] = &[
    "--migration-mode=file-handles",
    "--modcaps=+dac_read_search",
];

fn check_handle(handle: &FileHandle) {
    assert!(
        (1..=MAX_FILE_HANDLE_LEN).contains(&handle.bytes.len()),
        "{handle:?}"
    );
}

/// Decodes the stream, adds our part, and loads what the encoder makes of it.
fn load(moved: &mut Driver, source: &Driver, stream: &[u8]) -> Result<()> {
    let mut state = MigratedGuest::decode(stream)?.into_state();
    state.extension = Some(Extension {
        init: Some(Init {
            minor: 38,
            flags: 1,
        }),
        session_name: Some("guest".to_owned()),
        waker: Some(77),
        ..Extension::default()
    });
    let encoded = MigratedGuest::new(state)?.encode()?;
    ensure!(encoded.starts_with(stream), "our part follows virtiofsd's");
    moved.load_state(&encoded, source.dialect())?;
    Ok(())
}

/// The guest uses what it knew by the same numbers, and gets new ones beside them.
fn goes_on(moved: &mut Driver, known: &Known) -> Result<()> {
    assert_eq!(moved.read(known.plain, 0, 64)?, b"plain text");
    assert_eq!(moved.write(known.renamed, 0, b"RENAMED")?, 7);
    assert_eq!(moved.read(known.renamed, 0, 64)?, b"RENAMED text");
    assert_eq!(
        moved.lookup(known.dir, c"late")?.nodeid,
        known.renamed.node.get()
    );
    let (names, _) = moved.readdir(known.dir, Handle::new(known.dir_handle), 0, 4096)?;
    assert!(names.iter().any(|name| name == b"late"), "{names:?}");
    moved.getattr(known.deepest, None)?;
    let gone = moved.open(NodeId::new(u64::MAX), OFlags::RDONLY);
    assert_eq!(
        gone.err().and_then(|error| error.errno()),
        Some(Errno::BADF)
    );
    let again = moved.open(known.plain.node, OFlags::RDONLY)?;
    assert!(again.get() >= 5, "{}", again.get());
    moved.release(known.plain)?;
    moved.forget(known.plain.node, 2)?;
    Ok(())
}
