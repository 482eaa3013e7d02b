//! `--ownership=mapped`: an ordinary user, who runs daemon and guest, unpacks a Debian tree in the
//! guest, boots from it, and packs it again.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::guest::{Guest, Machine, Options, Role};
use gangplank_tests::process::User;
use gangplank_tests::{debian_tree, packages};

use crate::LONG;

/// Minimum number of files in the tree. Fewer mean that a listing was not parsed.
const AT_LEAST: usize = 5000;

/// What the guest adds, as the archive has it: kinds, owners and permissions that the host would
/// not store for an ordinary user.
const ADDED: [&str; 5] = [
    "-rwsr-sr-x 5/60 10 ./root/set-id",
    "brw-r----- 0/6 259,300 ./dev/disk",
    "crw-rw-rw- 0/0 1,3 ./dev/null",
    "lrwxrwxrwx 1000/1001 0 ./dev/link -> null",
    "prw------- 5/60 0 ./run/fifo",
];

pub(crate) fn boots() -> Result<()> {
    let parent = tempfile::Builder::new()
        .prefix("gangplank-mapped-")
        .tempdir()?;
    fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o755))?;
    let [source, share, archives] =
        ["source", "share", "archives"].map(|name| parent.path().join(name));
    debian_tree::copy_to(&source, Machine::Uml.arch())?;
    let user = User::NOBODY;
    for directory in [&share, &archives] {
        fs::create_dir(directory)?;
        chown(directory, Some(user.uid), Some(user.gid))?;
    }
    let [packed, packed_again] = ["in.tar", "out.tar"].map(|name| archives.join(name));
    pack(&source, &packed)?;
    fs::remove_dir_all(&source)?;

    let options = daemon::Options::new(&share).user(user);
    let daemon = Daemon::start(&options.arguments(&["--ownership=mapped", "--sandbox=namespace"]))?;
    let options = daemon::Options::new(&archives).user(user);
    let plain = Daemon::start(&options.tag("archives"))?;
    let mut options = Options::new(Machine::Uml)
        .share(daemon.socket(), TAG)
        .share(plain.socket(), "archives");
    options.user = Some(user);
    let mut guest = Guest::boot(&options).with_context(|| daemon.log())?;
    guest.mount(TAG, "/mnt").with_context(|| daemon.log())?;
    guest.mount("archives", "/archives")?;
    guest
        .sh_within("tar -xpf /archives/in.tar -C /mnt", LONG)
        .with_context(|| daemon.log())?;
    // Content, kinds, owners, permissions, links and times, as the tree's own tar finds them.
    guest
        .sh_within(
            "chroot /mnt tar --numeric-owner -df - -C / </archives/in.tar",
            LONG,
        )
        .with_context(|| daemon.log())?;
    guest
        .sh(
            "set -ex; cd /mnt; mknod -m 666 dev/null c 1 3; mknod -m 640 dev/disk b 259 300; \
             chown 0:6 dev/disk; mkfifo -m 600 run/fifo; chown 5:60 run/fifo; \
             ln -s null dev/link; chown -h 1000:1001 dev/link; echo '#!/bin/sh' >root/set-id; \
             chown 5:60 root/set-id; chmod 6755 root/set-id; \
             test \"$(stat -c %u:%g dev/link)\" = 1000:1001; echo x >dev/null; \
             test \"$(stat -c '%F %t:%T' dev/disk)\" = 'block special file 103:12c'",
        )
        .with_context(|| daemon.log())?;
    guest
        .sh_within(
            "chroot /mnt tar --numeric-owner --sort=name -cf - -C / . >/archives/out.tar",
            LONG,
        )
        .with_context(|| daemon.log())?;
    guest.power_off()?;
    let before = entries(&packed)?;
    let (added, after): (Vec<String>, Vec<String>) = entries(&packed_again)?
        .into_iter()
        .partition(|entry| before.binary_search(entry).is_err());
    ensure!(added == ADDED, "the guest added {added:#?}");
    ensure!(before.len() >= AT_LEAST, "{} files", before.len());
    ensure!(before == after, "not every file has come back");
    is_an_ordinary_users(&share, user)?;

    options.role = Role::Root(TAG.to_owned());
    let mut guest = Guest::boot(&options).with_context(|| daemon.log())?;
    let mounts = guest.sh("cat /proc/mounts")?;
    ensure!(mounts.contains(&format!("{TAG} / virtiofs rw")), "{mounts}");
    guest
        .sh(
            "set -ex; bash -c 'realpath /proc/$$/exe'; git init --quiet /root/repository; \
             test \"$(stat -c %u:%g:%a /tmp)\" = 0:0:1777; \
             install -o games -g games /bin/true /tmp/x; \
             test \"$(stat -c %U:%G /tmp/x)\" = games:games; sync",
        )
        .with_context(|| daemon.log())?;
    guest.power_off()
}

/// Makes an archive of `tree` that has owners by their ids. Everybody may read it.
fn pack(tree: &Path, archive: &Path) -> Result<()> {
    packages::run(
        Command::new("tar")
            .args(["--numeric-owner", "--sort=name", "-cf"])
            .arg(archive)
            .arg("-C")
            .arg(tree)
            .arg("."),
    )
}

/// What an archive has, sorted: kind and permissions, owner, size or device number, name, and
/// target of a link.
fn entries(archive: &Path) -> Result<Vec<String>> {
    let mut list = Command::new("tar");
    let list = packages::output(list.args(["--numeric-owner", "-tvf"]).arg(archive))?;
    let mut entries = Vec::new();
    for line in list.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        // The date and the time are those of the last change: of a directory, when its last file
        // was unpacked.
        let [mode, owner, size, _date, _time, ref name @ ..] = *words else {
            anyhow::bail!("tar lists {line}");
        };
        entries.push(format!("{mode} {owner} {size} {}", name.join(" ")));
    }
    entries.sort();
    Ok(entries)
}

/// Checks that all files of the host belong to `user`, and none has a special kind or permission.
fn is_an_ordinary_users(share: &Path, user: User) -> Result<()> {
    let mut find = Command::new("find");
    find.arg(share)
        .args(["(", "-not", "-uid", &user.uid.to_string()]);
    find.args(["-o", "-not", "-gid", &user.gid.to_string()]);
    let found = packages::output(find.args(["-o", "-perm", "/7000", "-o", "-type", "b,c,p", ")"]))?;
    ensure!(found.is_empty(), "on the host: {found}");
    let secret = fs::symlink_metadata(share.join("etc/passwd"))?;
    ensure!(secret.mode() & 0o777 == 0o600, "{secret:?}");
    Ok(())
}
