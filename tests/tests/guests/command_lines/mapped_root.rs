//! `--ownership=mapped`: the guest of an ordinary user unpacks a Debian tree and boots from it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::debian_tree;
use gangplank_tests::guest::{Guest, Machine, Options, Role};
use gangplank_tests::process::User;

use crate::LONG;

pub(crate) fn boots() -> Result<()> {
    let parent = tempfile::Builder::new()
        .prefix("gangplank-mapped-")
        .tempdir()?;
    fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o755))?;
    let (source, share) = (parent.path().join("source"), parent.path().join("share"));
    debian_tree::copy_to(&source, Machine::Uml.arch())?;
    fs::create_dir(&share)?;
    let user = User::NOBODY;
    chown(&share, Some(user.uid), Some(user.gid))?;
    let options = daemon::Options::new(&source).tag("source");
    let from = Daemon::start(&options.arguments(&["--readonly", "--cache=always"]))?;
    let options = daemon::Options::new(&share).user(user);
    let to = Daemon::start(&options.arguments(&["--ownership=mapped", "--sandbox=namespace"]))?;

    let mut options = Options::new(Machine::Uml)
        .share(to.socket(), TAG)
        .share(from.socket(), "source");
    let mut guest = Guest::boot(&options).with_context(|| to.log())?;
    guest.mount(TAG, "/mnt")?;
    guest.mount("source", "/source")?;
    let list = "find . -exec stat -c '%n %u:%g %a %F %t:%T' {} + | sort";
    guest
        .sh_within(
            &format!(
                "set -ex; cp -a /source/. /mnt/; cd /mnt; mknod -m 666 dev/null c 1 3; \
                 mknod dev/disk b 259 300; mkfifo -m 600 run/fifo; chown 5:60 run/fifo; \
                 ln -s null dev/link; chown -h 1000:1001 dev/link; \
                 test \"$(stat -c %u:%g dev/link)\" = 1000:1001; echo x >dev/null; \
                 test \"$(stat -c '%F %t:%T' dev/disk)\" = 'block special file 103:12c'; \
                 chmod 4755 bin/bash; chmod 755 bin/bash; rm dev/disk run/fifo dev/link dev/null; \
                 (cd /source; {list}) >/tmp/before; (cd /mnt; {list}) >/tmp/after; \
                 grep -v '^\\. ' /tmp/before >/tmp/b; grep -v '^\\. ' /tmp/after >/tmp/a; \
                 cmp /tmp/a /tmp/b; test $(wc -l </tmp/a) -gt 1000",
            ),
            LONG,
        )
        .with_context(|| to.log())?;
    guest.power_off()?;
    let script = fs::symlink_metadata(share.join("etc/passwd"))?;
    ensure!((script.uid(), script.mode() & 0o777) == (user.uid, 0o600));

    options.shares.truncate(1);
    options.role = Role::Root(TAG.to_owned());
    let mut guest = Guest::boot(&options).with_context(|| to.log())?;
    let mounts = guest.sh("cat /proc/mounts")?;
    ensure!(mounts.contains(&format!("{TAG} / virtiofs rw")), "{mounts}");
    guest
        .sh(
            "set -ex; bash -c 'realpath /proc/$$/exe'; git init --quiet /root/repository; \
             test \"$(stat -c %u:%g:%a /tmp)\" = 0:0:1777; \
             install -o games -g games /bin/true /tmp/x; \
             test \"$(stat -c %U:%G /tmp/x)\" = games:games; sync",
        )
        .with_context(|| to.log())?;
    guest.power_off()
}
