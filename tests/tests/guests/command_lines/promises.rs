//! What the options of a command line promise, tried in a guest that has mounted the share on
//! `/mnt` and the programs for it on `/tools`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use gangplank_tests::guest::Guest;

use crate::launch::{As, FIRST_SUB_ID};

/// A guest and its share on the host.
pub(crate) struct Tried<'a> {
    pub(crate) guest: &'a mut Guest,
    pub(crate) share: &'a Path,
    pub(crate) who: As,
}

impl Tried<'_> {
    /// Runs shell text that has to succeed, in the share. `t PROGRAM` runs a tool, whose paths
    /// must be absolute.
    pub(crate) fn sh(&mut self, command: &str) -> Result<String> {
        self.guest.sh(&format!(
            "t() {{ chroot /tools \"$@\"; }}; cd /mnt; set -e; {command}"
        ))
    }

    /// Owner and group of a file on the host.
    pub(crate) fn owner(&self, name: &str) -> Result<(u32, u32)> {
        let path = self.share.join(name);
        let file = fs::symlink_metadata(&path).with_context(|| path.display().to_string())?;
        Ok((file.uid(), file.gid()))
    }
}

/// Files and directories appear on both sides.
pub(crate) fn shares_files(tried: &mut Tried<'_>) -> Result<()> {
    tried.sh(
        "mkdir d; echo 1 >d/f; mv d/f d/g; ln -s g d/l; test \"$(cat d/l)\" = 1; rm d/l; sync; \
         test \"$(ls d)\" = g",
    )?;
    ensure!(fs::read_to_string(tried.share.join("d/g"))? == "1\n");
    ensure!(tried.owner("d/g")? == (tried.who.owner(), tried.who.owner()));
    fs::write(tried.share.join("from-host"), "2\n")?;
    ensure!(tried.sh("cat from-host")? == "2\n");
    Ok(())
}

/// Nothing can be changed.
pub(crate) fn is_read_only(tried: &mut Tried<'_>) -> Result<()> {
    fs::write(tried.share.join("from-host"), "2\n")?;
    ensure!(tried.sh("cat from-host")? == "2\n");
    tried.sh("touch new 2>&1 | grep 'Read-only file system'")?;
    Ok(())
}

/// A guest's users own what they make on the host.
pub(crate) fn users_own_files(tried: &mut Tried<'_>) -> Result<()> {
    tried
        .sh("chmod 777 .; su games -c 'echo x >/mnt/games'; touch given; chown 1000:1001 given")?;
    let base = tried.who.owner();
    ensure!(
        tried.owner("games")? == (base + 5, base + 60),
        "{:?}",
        tried.owner("games")
    );
    ensure!(
        tried.owner("given")? == (base + 1000, base + 1001),
        "{:?}",
        tried.owner("given")
    );
    ensure!(tried.sh("stat -c %u:%g games given")? == "5:60\n1000:1001\n");
    Ok(())
}

/// The guest's root is the user who runs the daemon, and all others are the user's further ids.
pub(crate) fn root_is_the_user(tried: &mut Tried<'_>) -> Result<()> {
    tried.sh(
        "ls -ldn . | grep -q ' 0  *0 '; touch own; chmod 777 .; su games -c 'echo x >/mnt/games'; \
         touch given; chown 1000:1001 given",
    )?;
    let own = tried.who.owner();
    ensure!(
        tried.owner("own")? == (own, own),
        "{:?}",
        tried.owner("own")
    );
    // Id 1 of the namespace is the first.
    let sub = |id: u32| FIRST_SUB_ID + id - 1;
    ensure!(
        tried.owner("games")? == (sub(5), sub(60)),
        "{:?}",
        tried.owner("games")
    );
    ensure!(
        tried.owner("given")? == (sub(1000), sub(1001)),
        "{:?}",
        tried.owner("given")
    );
    ensure!(tried.sh("stat -c %u:%g own games given")? == "0:0\n5:60\n1000:1001\n");
    Ok(())
}

/// Only the user who runs the daemon owns files, and chown says so.
pub(crate) fn nobody_else_owns_files(tried: &mut Tried<'_>) -> Result<()> {
    tried.sh(
        "touch own; { chown 1000 own 2>&1 || true; } | grep 'Operation not permitted'; \
         chmod 777 .; su games -c 'echo x >/mnt/games'",
    )?;
    let own = tried.who.owner();
    ensure!(tried.owner("own")? == (own, own) && tried.owner("games")? == (own, own));
    Ok(())
}

/// Extended attributes are the host's.
pub(crate) fn has_xattrs(tried: &mut Tried<'_>) -> Result<()> {
    tried.sh(
        "touch x; t setfattr -n user.a -v b /mnt/x; t getfattr -d /mnt/x | grep 'user.a=\"b\"'; \
         t setfattr -x user.a /mnt/x; test -z \"$(t getfattr -d /mnt/x)\"",
    )?;
    Ok(())
}

/// A lock that a program of the host holds is held in the guest as well.
pub(crate) fn has_locks_of_the_host(tried: &mut Tried<'_>) -> Result<()> {
    let path = tried.share.join("locked");
    let held = fs::File::create(&path)?;
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive)?;
    tried.sh("! t flock -n /mnt/locked true")?;
    drop(held);
    tried.sh("t flock -n /mnt/locked true")?;
    Ok(())
}
