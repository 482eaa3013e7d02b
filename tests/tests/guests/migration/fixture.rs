//! A share, virtiofsd on it, and a guest that knows files there.

use std::ffi::CStr;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use gangplank_backend::state::migration::{Inode, Location, MigratedGuest};
use gangplank_fuse::NodeId;
use gangplank_tests::daemon::{Daemon, Options};
use gangplank_tests::driver::{Driver, NodeAndFile, Setup};
use gangplank_tests::tools;
use rustix::fs::OFlags;
use tempfile::TempDir;

/// The root's node.
pub(crate) const ROOT: NodeId = NodeId::ROOT;

/// The nesting of the deep directories.
pub(crate) const DEPTH: usize = 12;

/// What the guest knows.
pub(crate) struct Known {
    /// `plain`, open for reading and writing.
    pub(crate) plain: NodeAndFile,
    /// `dir`.
    pub(crate) dir: NodeId,
    /// `dir`, open.
    pub(crate) dir_handle: u64,
    /// `dir/late`, which has a lower id than its directory and was called `early`.
    pub(crate) renamed: NodeAndFile,
    /// The deepest of the directories below `deep`.
    pub(crate) deepest: NodeId,
    /// A file without a name, open.
    pub(crate) unlinked: NodeAndFile,
    /// A name that is not UTF-8.
    pub(crate) not_utf8: NodeId,
}

/// A share with files.
pub(crate) fn share() -> Result<TempDir> {
    let share = tempfile::Builder::new()
        .prefix("gangplank-share-")
        .tempdir()?;
    let mut deep = share.path().join("deep");
    for _ in 1..DEPTH {
        deep.push("d");
    }
    fs::create_dir_all(deep)?;
    fs::create_dir(share.path().join("dir"))?;
    fs::write(share.path().join("plain"), "plain text")?;
    fs::write(share.path().join("early"), "renamed text")?;
    fs::write(share.path().join("gone"), "unlinked text")?;
    Ok(share)
}

/// Another share, as the first one is once the guest has used its files.
pub(crate) fn copy_of_share() -> Result<TempDir> {
    let copy = share()?;
    let path = |name: &str| copy.path().join(name);
    fs::rename(path("early"), path("dir/late"))?;
    fs::remove_file(path("gone"))?;
    Ok(copy)
}

/// virtiofsd on the share.
pub(crate) fn virtiofsd(share: &Path, arguments: &[&str]) -> Result<Daemon> {
    let options = Options::new(share).program(&tools::virtiofsd()?);
    Daemon::start(&options.arguments(arguments))
}

/// A guest without a session.
pub(crate) fn connect(daemon: &Daemon) -> Result<Driver> {
    Driver::connect(daemon.socket(), &Setup::default()).with_context(|| daemon.log())
}

/// Mounts the share and uses its files.
pub(crate) fn use_files(guest: &mut Driver) -> Result<Known> {
    guest.init()?;
    let plain = open(guest, ROOT, c"plain")?;
    guest.lookup(ROOT, c"plain")?;
    let early = open(guest, ROOT, c"early")?;
    let dir = lookup(guest, ROOT, c"dir")?;
    let dir_handle = guest.opendir(dir)?.get();
    guest.rename((ROOT, c"early"), (dir, c"late"), 0)?;
    let mut deepest = lookup(guest, ROOT, c"deep")?;
    for _ in 1..DEPTH {
        deepest = lookup(guest, deepest, c"d")?;
    }
    let unlinked = open(guest, ROOT, c"gone")?;
    guest.unlink(ROOT, c"gone")?;
    let created = guest.create(dir, c"\xff\xfe", 0o644)?;
    guest.release(created)?;
    Ok(Known {
        plain,
        dir,
        dir_handle,
        renamed: early,
        deepest,
        unlinked,
        not_utf8: created.node,
    })
}

fn lookup(guest: &mut Driver, parent: NodeId, name: &CStr) -> Result<NodeId> {
    let entry = guest.lookup(parent, name)?;
    ensure!(entry.nodeid != 0, "{name:?} does not exist");
    Ok(NodeId::new(entry.nodeid))
}

fn open(guest: &mut Driver, parent: NodeId, name: &CStr) -> Result<NodeAndFile> {
    let node = lookup(guest, parent, name)?;
    let file = guest.open(node, OFlags::RDWR)?;
    Ok(NodeAndFile { node, file })
}

/// The inode that the guest knows as `node`.
pub(crate) fn inode(guest: &MigratedGuest, node: NodeId) -> Result<&Inode> {
    let found = guest.inodes.iter().find(|inode| inode.id == node.get());
    found.with_context(|| format!("inode {} is not in the stream", node.get()))
}

/// A location by name.
pub(crate) fn named(parent: NodeId, name: &str) -> Location {
    Location::Child {
        parent: parent.get(),
        name: name.to_owned(),
    }
}
