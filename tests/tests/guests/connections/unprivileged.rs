//! No root anywhere: the daemon and User Mode Linux both run as an ordinary user.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::process::User;
use gangplank_tests::tools;

/// The guest works as its root on the user's files. Its new files belong to the user on the host,
/// and it cannot give them to another user. `None` is the caller, who is not root.
pub(crate) fn works(user: Option<User>) -> Result<()> {
    let share = tempfile::tempdir()?;
    if let Some(user) = user {
        chown(share.path(), Some(user.uid), Some(user.gid))?;
    }
    let mut daemon_options = daemon::Options::new(share.path()).arguments(&["--xattr"]);
    if let Some(user) = user {
        daemon_options = daemon_options.user(user);
    }
    let daemon = Daemon::start(&daemon_options)?;
    let check = tools::guest_check(Machine::Uml.arch())?;
    let mut options = Options::new(Machine::Uml)
        .share(daemon.socket(), TAG)
        .program("guest-check", &check);
    options.user = user;
    let mut guest = Guest::boot(&options).with_context(|| daemon.log())?;
    guest.mount(TAG, "/mnt").with_context(|| daemon.log())?;

    fs::write(share.path().join("by-host"), "from the host\n")?;
    let seen =
        guest.sh("cat /mnt/by-host && mkdir /mnt/d && echo from the guest >/mnt/d/by-guest")?;
    ensure!(seen == "from the host\n", "the guest saw: {seen}");
    let made = fs::metadata(share.path().join("d/by-guest"))?;
    let owner = fs::metadata(share.path())?;
    ensure!(
        (made.uid(), made.gid()) == (owner.uid(), owner.gid()),
        "made by {}:{}, the share is {}:{}",
        made.uid(),
        made.gid(),
        owner.uid(),
        owner.gid()
    );
    let stolen = guest.run(
        "chown 1:1 /mnt/d/by-guest && stat -c %u /mnt/d/by-guest",
        gangplank_tests::guest::USUAL,
    )?;
    ensure!(
        fs::metadata(share.path().join("d/by-guest"))?.uid() == owner.uid(),
        "the guest gave a file away: {stolen:?}"
    );
    guest
        .sh(
            "mkdir /mnt/checks && guest-check /mnt/checks mmap-write mmap-read mmap-private flock \
             posix-lock \
             rename-noreplace rename-exchange unlinked allocate punch-hole seek-hole copy-range \
             append \
             vectored truncate xattr direct",
        )
        .with_context(|| daemon.log())?;
    guest.sh("mv /mnt/d /mnt/e && rm -r /mnt/e /mnt/checks && umount /mnt")?;
    guest.power_off()?;
    let (status, log) = daemon.stop()?;
    ensure!(status.success(), "the daemon ended with {status}:\n{log}");
    Ok(())
}
