//! An id-mapped mount of the share, in a guest with Linux 6.12.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::guest::kernel::Release;
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::tools;

/// The share is mounted on `/mnt`, and again on `/idmapped`, where user 10000 on the share is root.
pub(crate) fn works(arguments: &[&str]) -> Result<()> {
    let share = tempfile::Builder::new()
        .prefix("gangplank-idmapped-")
        .tempdir()?;
    let arguments = [arguments, &["--log-level=debug"]].concat();
    let daemon = Daemon::start(&daemon::Options::new(share.path()).arguments(&arguments))?;
    let mut options = Options::new(Machine::QemuX86_64)
        .share(daemon.socket(), TAG)
        .program(
            "guest-check",
            &tools::guest_check(Machine::QemuX86_64.arch())?,
        );
    options.release = Release::Linux6_12;
    let mut guest = Guest::boot(&options).with_context(|| daemon.log())?;
    guest.mount(TAG, "/mnt").with_context(|| daemon.log())?;
    ensure!(daemon.log().contains("ALLOW_IDMAP"), "{}", daemon.log());
    guest
        .sh(
            "set -ex; cd /mnt; touch roots; chmod 1777 .; su games -c 'echo x >/mnt/games'; \
             mkdir hers; chown 10000:10000 hers; mkdir -p /run/idmapped; \
             unshare -U sleep 1000 & sleep 1; p=$!; \
             echo '10000 0 1000' >/proc/$p/uid_map; echo '10000 0 1000' >/proc/$p/gid_map; \
             guest-check /mnt idmapped-mount /run/idmapped $p; kill $p; cd /run/idmapped; \
             test \"$(stat -c %u:%g hers)\" = 0:0; touch hers/file; mkdir hers/directory; \
             ln -s file hers/link; mkfifo hers/fifo; mv hers/file hers/moved; \
             chown 5:60 hers/directory; su games -c 'echo y >/run/idmapped/hers/directory/x'; \
             test \"$(stat -c %u:%g hers/directory/x)\" = 5:60; \
             test \"$(stat -c %u:%g /mnt/hers/directory/x)\" = 10005:10060; \
             rm hers/fifo; cat hers/directory/x",
        )
        .with_context(|| daemon.log())?;
    for (name, user, group) in [
        ("roots", 0, 0),
        ("games", 5, 60),
        ("hers/moved", 10000, 10000),
        ("hers/link", 10000, 10000),
        ("hers/directory", 10005, 10060),
        ("hers/directory/x", 10005, 10060),
    ] {
        let file = fs::symlink_metadata(share.path().join(name)).context(name)?;
        ensure!(
            (file.uid(), file.gid()) == (user, group),
            "{name}: {file:?}"
        );
    }
    guest.power_off()
}
