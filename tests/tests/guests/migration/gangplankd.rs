//! A guest's session moves from gangplankd, and to it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use gangplank_backend::state::migration::{Location, MigratedGuest};
use gangplank_fuse::{Handle, NodeId};
use gangplank_tests::daemon::{Daemon, Options};
use gangplank_tests::driver::{Driver, NodeAndFile};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::fixture::{
    Known, ROOT, connect, copy_of_share, inode, named, share, use_files, virtiofsd,
};

/// Which daemon serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gangplankd,
    Virtiofsd,
}

use Kind::{Gangplankd, Virtiofsd};

fn start(kind: Kind, share: &Path, arguments: &[&str]) -> Result<Daemon> {
    match kind {
        Gangplankd => Daemon::start(&Options::new(share).arguments(arguments)),
        Virtiofsd => virtiofsd(share, arguments),
    }
}

const GUEST_ERROR: &[&str] = &["--migration-on-error=guest-error"];

fn handles(kind: Kind) -> &'static [&'static str] {
    match kind {
        Gangplankd => &["--migration-mode=file-handles"],
        Virtiofsd => &[
            "--migration-mode=file-handles",
            "--modcaps=+dac_read_search",
        ],
    }
}

/// Whatever the daemons, the guest uses what it knew by the same numbers.
pub(crate) fn goes_on(guest: &mut Driver, known: &Known) -> Result<()> {
    assert_eq!(guest.read(known.plain, 0, 64)?, b"plain text");
    assert_eq!(guest.write(known.renamed, 0, b"RENAMED")?, 7);
    assert_eq!(guest.read(known.renamed, 0, 64)?, b"RENAMED text");
    let found = guest.lookup(known.dir, c"late")?.nodeid;
    assert_eq!(found, known.renamed.node.get());
    guest.forget(known.renamed.node, 1)?;
    let dir = Handle::new(known.dir_handle);
    let (names, _) = guest.readdir(known.dir, dir, 0, 4096)?;
    assert!(names.iter().any(|name| name == b"late"), "{names:?}");
    guest.getattr(known.deepest, None)?;
    let again = guest.open(known.plain.node, OFlags::RDONLY)?;
    for file in [known.plain, known.renamed, known.unlinked] {
        assert_ne!(again, file.file, "a handle is used twice");
    }
    let node = known.plain.node;
    let again = NodeAndFile { node, file: again };
    assert_eq!(guest.read(again, 0, 64)?, b"plain text");
    guest.release(again)?;
    let new = guest.create(known.dir, c"new", 0o644)?;
    assert_eq!(guest.write(new, 0, b"new")?, 3);
    guest.release(new)?;
    guest.forget(new.node, 1)?;
    guest.unlink(known.dir, c"new")?;
    Ok(())
}

fn is_lost(guest: &mut Driver, file: NodeAndFile) -> bool {
    guest.getattr(file.node, None).is_err() && guest.read(file, 0, 64).is_err()
}

/// Moves a guest along a chain of daemons, on one share or each on another tree.
fn along(chain: &[Kind], by_handles: bool) -> Result<()> {
    let arguments = |kind| {
        if by_handles {
            handles(kind)
        } else {
            GUEST_ERROR
        }
    };
    let first = share()?;
    let trees = [copy_of_share()?, copy_of_share()?, copy_of_share()?];
    let mut daemon = start(chain[0], first.path(), arguments(chain[0]))?;
    let mut guest = connect(&daemon)?;
    let known = use_files(&mut guest).with_context(|| daemon.log())?;
    for (step, kind) in chain.iter().enumerate().skip(1) {
        let stream = guest.save_state().with_context(|| daemon.log())?;
        MigratedGuest::decode(&stream)?;
        let tree = if by_handles {
            first.path()
        } else {
            trees[step - 1].path()
        };
        let next = start(*kind, tree, arguments(*kind))?;
        let mut moved = connect(&next)?;
        let loaded = moved.load_state(&stream, guest.dialect());
        loaded.with_context(|| format!("step {step}: {}{}", daemon.log(), next.log()))?;
        (guest, daemon) = (moved, next);
        goes_on(&mut guest, &known).with_context(|| format!("step {step}: {}", daemon.log()))?;
        if by_handles {
            assert_eq!(guest.read(known.unlinked, 0, 64)?, b"unlinked text");
            guest.getattr(known.not_utf8, None)?;
        } else {
            assert!(is_lost(&mut guest, known.unlinked), "step {step}");
            assert!(guest.getattr(known.not_utf8, None).is_err());
        }
    }
    // What was known is forgotten like anything else.
    for file in [known.plain, known.renamed] {
        guest.release(file)?;
    }
    guest.forget(known.plain.node, 2)?;
    ensure!(guest.getattr(known.plain.node, None).is_err());
    Ok(())
}

pub(crate) fn guest_goes_on_at_another_tree() -> Result<()> {
    along(&[Gangplankd, Gangplankd, Gangplankd], false)
}

pub(crate) fn guest_goes_on_by_file_handles() -> Result<()> {
    along(&[Gangplankd, Gangplankd, Gangplankd], true)
}

pub(crate) fn guest_comes_from_virtiofsd_and_goes_back() -> Result<()> {
    along(&[Virtiofsd, Gangplankd, Virtiofsd], false)?;
    along(&[Virtiofsd, Gangplankd, Virtiofsd], true)
}

pub(crate) fn guest_goes_to_virtiofsd_and_comes_back() -> Result<()> {
    along(&[Gangplankd, Virtiofsd, Gangplankd, Gangplankd], false)?;
    along(&[Gangplankd, Virtiofsd, Gangplankd, Gangplankd], true)
}

/// SAVE changes nothing, however often: also if the frontend never asks for its result.
pub(crate) fn guest_stays_when_its_migration_is_given_up() -> Result<()> {
    let share = share()?;
    let daemon = start(Gangplankd, share.path(), &[])?;
    let mut guest = connect(&daemon)?;
    let known = use_files(&mut guest)?;
    for _ in 0..3 {
        let state = MigratedGuest::decode(&guest.save_state()?)?;
        let location = |node| inode(&state, node).map(|inode| inode.location.clone());
        assert_eq!(location(ROOT)?, Location::Root);
        assert_eq!(location(known.plain.node)?, named(ROOT, "plain"));
        assert_eq!(location(known.renamed.node)?, named(known.dir, "late"));
        assert_eq!(location(known.unlinked.node)?, Location::Invalid);
        assert_eq!(location(known.not_utf8)?, Location::Invalid);
        for index in 0..guest.rings.len() {
            guest.start_ring(index)?;
        }
        goes_on(&mut guest, &known).with_context(|| daemon.log())?;
        assert_eq!(guest.read(known.unlinked, 0, 64)?, b"unlinked text");
    }
    Ok(())
}

/// A guest that the destination refuses is not there; what is refused is named.
pub(crate) fn lost_file_refuses_the_guest() -> Result<()> {
    let share = share()?;
    let daemon = start(Gangplankd, share.path(), &[])?;
    let mut guest = connect(&daemon)?;
    let known = use_files(&mut guest)?;
    let stream = guest.save_state()?;
    let other = start(Gangplankd, share.path(), &[])?;
    let mut moved = connect(&other)?;
    assert!(moved.load_state(&stream, guest.dialect()).is_err());
    let log = other.log();
    let is_named = |node: NodeId| log.contains(&format!("has lost inode {}", node.get()));
    assert!(
        is_named(known.unlinked.node) || is_named(known.not_utf8),
        "{log}"
    );
    for index in 0..moved.rings.len() {
        moved.start_ring(index)?;
    }
    let refused = moved.getattr(known.plain.node, None);
    assert_eq!(
        refused.err().and_then(|error| error.errno()),
        Some(Errno::IO)
    );
    // The same connection may still begin anew.
    moved.init()?;
    assert_eq!(moved.lookup(ROOT, c"plain")?.attr.size, 10);
    Ok(())
}

/// A guest may arrive before it has mounted the share.
pub(crate) fn guest_without_a_session_begins_one() -> Result<()> {
    for (from, to) in [
        (Gangplankd, Virtiofsd),
        (Virtiofsd, Gangplankd),
        (Gangplankd, Gangplankd),
    ] {
        let share = share()?;
        let daemon = start(from, share.path(), &[])?;
        let guest = connect(&daemon)?;
        let stream = guest.save_state().with_context(|| daemon.log())?;
        let other = start(to, share.path(), &[])?;
        let mut moved = connect(&other)?;
        let loaded = moved.load_state(&stream, guest.dialect());
        loaded.with_context(|| format!("{from:?} to {to:?}: {}", other.log()))?;
        use_files(&mut moved).with_context(|| other.log())?;
    }
    Ok(())
}

/// A stream with file handles opens nothing unless the operator has asked for them.
pub(crate) fn file_handles_are_opened_only_if_asked_for() -> Result<()> {
    let share = share()?;
    let daemon = start(Gangplankd, share.path(), handles(Gangplankd))?;
    let mut guest = connect(&daemon)?;
    use_files(&mut guest)?;
    let stream = guest.save_state()?;
    let other = start(Gangplankd, share.path(), &[])?;
    let mut moved = connect(&other)?;
    assert!(moved.load_state(&stream, guest.dialect()).is_err());
    let log = other.log();
    assert!(
        log.contains("only with --migration-mode=file-handles"),
        "{log}"
    );
    Ok(())
}
