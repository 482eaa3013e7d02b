//! Files that change around a migration, with all options of source and destination.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::daemon::{Daemon, Options};
use gangplank_tests::driver::NodeAndFile;
use rustix::fs::OFlags;

use super::fixture::{ROOT, connect, share};

/// What happens on the host.
#[derive(Clone, Copy, Debug)]
enum Change {
    Nothing,
    Renamed,
    Replaced,
    Removed,
    /// The name that the guest used is gone, and another is left.
    OtherLink,
}

/// When it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// Before the source says where the files are.
    BeforeSave,
    /// After that.
    AfterSave,
}

/// What the guest finds at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Same,
    /// The file that has the name now.
    Other,
    Lost,
}

use Change::{Nothing, OtherLink, Removed, Renamed, Replaced};
use Found::{Lost, Other, Same};
use Moment::{AfterSave, BeforeSave};

/// Change, moment, and what is found without and with `--migration-verify-handles`.
const TABLE: [(Change, Moment, Found, Found); 9] = [
    (Nothing, BeforeSave, Same, Same),
    (Renamed, BeforeSave, Same, Same),
    (Replaced, BeforeSave, Same, Same),
    (Removed, BeforeSave, Lost, Lost),
    (OtherLink, BeforeSave, Same, Same),
    (Renamed, AfterSave, Lost, Lost),
    (Replaced, AfterSave, Other, Lost),
    (Removed, AfterSave, Lost, Lost),
    (OtherLink, AfterSave, Lost, Lost),
];

fn change(share: &Path, change: Change) -> Result<()> {
    let name = share.join("plain");
    match change {
        Nothing => {}
        Renamed => fs::rename(&name, share.join("dir/renamed"))?,
        Replaced => {
            fs::rename(&name, share.join("dir/renamed"))?;
            fs::write(&name, "other text")?;
        }
        Removed => fs::remove_file(&name)?,
        OtherLink => {
            fs::create_dir_all(share.join("deep/d/links"))?;
            fs::hard_link(&name, share.join("deep/d/links/other"))?;
            fs::remove_file(&name)?;
        }
    }
    Ok(())
}

/// Each row with each combination of options. A path is checked again at the switch-over in any
/// case, so `--migration-confirm-paths` changes nothing.
pub(crate) fn changed_files_are_found_or_refused() -> Result<()> {
    for (what, moment, plain, verified) in TABLE {
        for (verify, found) in [(false, plain), (true, verified)] {
            for confirm in [false, true] {
                for guest_error in [false, true] {
                    let case = format!(
                        "{what:?} {moment:?}, verify {verify}, confirm {confirm}, guest-error \
                         {guest_error}"
                    );
                    one((what, moment), (verify, confirm, guest_error), found).context(case)?;
                }
            }
        }
    }
    Ok(())
}

fn one(
    (what, moment): (Change, Moment),
    (verify, confirm, guest_error): (bool, bool, bool),
    found: Found,
) -> Result<()> {
    let share = share()?;
    let given = [
        (verify, "--migration-verify-handles"),
        (confirm, "--migration-confirm-paths"),
    ];
    let given: Vec<_> = given
        .iter()
        .filter(|(is, _)| *is)
        .map(|(_, name)| *name)
        .collect();
    let daemon = Daemon::start(&Options::new(share.path()).arguments(&given))?;
    let mut guest = connect(&daemon)?;
    guest.init()?;
    let node = NodeId::new(guest.lookup(ROOT, c"plain")?.nodeid);
    let file = guest.open(node, OFlags::RDONLY)?;
    let file = NodeAndFile { node, file };
    let other = NodeId::new(guest.lookup(ROOT, c"dir")?.nodeid);
    if moment == BeforeSave {
        change(share.path(), what)?;
    }
    let stream = guest.save_state().with_context(|| daemon.log())?;
    if moment == AfterSave {
        change(share.path(), what)?;
    }
    let given: &[&str] = match guest_error {
        true => &["--migration-on-error=guest-error"],
        false => &[],
    };
    let destination = Daemon::start(&Options::new(share.path()).arguments(given))?;
    let mut moved = connect(&destination)?;
    let loaded = moved.load_state(&stream, guest.dialect());
    if found == Lost && !guest_error {
        ensure!(loaded.is_err(), "it was taken over");
        let log = destination.log();
        ensure!(log.contains(&format!("inode {}", node.get())), "{log}");
        return Ok(());
    }
    loaded.with_context(|| destination.log())?;
    moved
        .getattr(other, None)
        .context("another file is not affected")?;
    let read = moved.read(file, 0, 64);
    match found {
        Same => ensure!(read? == b"plain text"),
        Other => ensure!(read? == b"other text"),
        Lost => {
            ensure!(read.is_err() && moved.getattr(node, None).is_err());
            moved.release(file).err().context("a lost handle")?;
            moved.forget(node, 1)?;
            // An inode that is lost to the guest is so for the next destination.
            let stream = moved.save_state()?;
            let third = Daemon::start(&Options::new(share.path()))?;
            let mut again = connect(&third)?;
            again
                .load_state(&stream, moved.dialect())
                .with_context(|| third.log())?;
        }
    }
    Ok(())
}
