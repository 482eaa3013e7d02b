//! Each side finds the names that the other creates, renames and removes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use anyhow::{Context, Result, ensure};

use crate::guest_fixture::Fixture;

/// Longer than a guest may cache anything (`cache=auto`: one second, and a tick of its clock).
const SETTLED: &str = "sleep 1.2";

/// A file made on one side is read on the other, with its mode and size.
pub(super) fn files_are_created_and_read_both_ways(fixture: &mut Fixture) -> Result<()> {
    fs::create_dir(fixture.host_path("both"))?;
    let guest = fixture.guest()?;
    guest.sh("echo from the guest >/mnt/both/guest && chmod 640 /mnt/both/guest")?;
    let path = fixture.host_path("both/guest");
    ensure!(fs::read_to_string(&path)? == "from the guest\n");
    let mode = fs::metadata(&path)?.permissions().mode() & 0o7777;
    ensure!(mode == 0o640, "mode {mode:o}");

    let path = fixture.host_path("both/host");
    fs::write(&path, "from the host\n")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o751))?;
    let guest = fixture.guest()?;
    let seen = guest.sh("cat /mnt/both/host && stat -c '%a %s' /mnt/both/host")?;
    ensure!(seen == "from the host\n751 14\n", "the guest saw: {seen}");
    let listed = guest.sh("ls /mnt/both")?;
    ensure!(listed == "guest\nhost\n", "the guest listed: {listed}");
    Ok(())
}

/// A change to a file shows on the other side, where the file is open or cached.
pub(super) fn changes_show_on_the_other_side(fixture: &mut Fixture) -> Result<()> {
    let path = fixture.host_path("changing");
    fs::write(&path, "first\n")?;
    let guest = fixture.guest()?;
    ensure!(guest.sh("cat /mnt/changing")? == "first\n");
    fs::write(&path, "second, and longer\n")?;
    let seen = fixture.guest()?.sh(&format!(
        "{SETTLED}; cat /mnt/changing; stat -c %s /mnt/changing"
    ))?;
    ensure!(seen == "second, and longer\n19\n", "the guest saw: {seen}");

    fixture
        .guest()?
        .sh("echo third >>/mnt/changing; truncate -s 12 /mnt/changing")?;
    ensure!(fs::read_to_string(&path)? == "second, and ");
    let before = fs::metadata(&path)?;
    // An ordinary user's daemon cannot give files to others (chown(2)).
    let (owner, chown) = match fixture.setting().user {
        None => ((12, 34), "chown 12:34 /mnt/changing"),
        Some(user) => ((user.uid, user.gid), "! chown 12:34 /mnt/changing"),
    };
    fixture.guest()?.sh(&format!(
        "touch -d @1000000000 /mnt/changing && {chown} && chmod 4755 /mnt/changing"
    ))?;
    let after = fs::metadata(&path)?;
    ensure!(
        (
            after.uid(),
            after.gid(),
            after.mtime(),
            after.mode() & 0o7777
        ) == (owner.0, owner.1, 1_000_000_000, 0o4755),
        "owner {}:{}, mtime {}, mode {:o}; before {before:?}",
        after.uid(),
        after.gid(),
        after.mtime(),
        after.mode()
    );
    Ok(())
}

/// Renames and removals show on the other side, directories included.
pub(super) fn renames_and_unlinks_show_both_ways(fixture: &mut Fixture) -> Result<()> {
    let dir = fixture.host_path("moving");
    fs::create_dir(&dir)?;
    for name in ["by-guest", "by-host", "gone-guest", "gone-host"] {
        fs::write(dir.join(name), name)?;
    }
    fs::create_dir(dir.join("directory"))?;
    let guest = fixture.guest()?;
    guest.sh("cd /mnt/moving && cat * >/dev/null 2>&1; \
         mv by-guest renamed-by-guest && rm gone-guest && mv directory renamed-directory && \
         mkdir made && mv renamed-by-guest made/ && mkdir gone && rmdir gone")?;
    ensure!(fs::read_to_string(dir.join("made/renamed-by-guest"))? == "by-guest");
    for name in ["by-guest", "gone-guest", "directory", "gone"] {
        ensure!(!dir.join(name).exists(), "{name} is still there");
    }
    ensure!(dir.join("renamed-directory").is_dir());

    fs::rename(dir.join("by-host"), dir.join("renamed-directory/by-host"))?;
    fs::remove_file(dir.join("gone-host"))?;
    let seen = fixture.guest()?.sh(&format!(
        "{SETTLED}; cd /mnt/moving && cat renamed-directory/by-host && ! test -e by-host && ! cat \
         gone-host && find . | sort"
    ))?;
    let expected =
        "./made\n./made/renamed-by-guest\n./renamed-directory\n./renamed-directory/by-host\n";
    ensure!(
        seen.starts_with("by-host") && seen.ends_with(expected),
        "the guest saw: {seen}"
    );
    Ok(())
}

/// Links, pipes, sockets and devices are what they are on both sides.
pub(super) fn every_kind_of_file_crosses(fixture: &mut Fixture) -> Result<()> {
    let dir = fixture.host_path("kinds");
    fs::create_dir(&dir)?;
    fs::write(dir.join("file"), "content")?;
    symlink("file", dir.join("host-link"))?;
    let makes_devices = fixture.setting().user.is_none();
    // An ordinary user's daemon cannot make device nodes (mknod(2), EPERM).
    let device = if makes_devices {
        "mknod null c 1 3 && echo written >null"
    } else {
        "! mknod null c 1 3"
    };
    fixture.guest()?.sh(&format!(
        "cd /mnt/kinds && ln file second-name && ln -s host-link guest-link && mkfifo pipe && cat \
         guest-link && {device}"
    ))?;
    ensure!(fs::read_link(dir.join("guest-link"))?.to_str() == Some("host-link"));
    let (file, second) = (
        fs::metadata(dir.join("file"))?,
        fs::metadata(dir.join("second-name"))?,
    );
    ensure!(
        file.ino() == second.ino() && file.nlink() == 2,
        "hard link: {file:?}, {second:?}"
    );
    ensure!(fs::metadata(dir.join("pipe"))?.file_type().is_fifo());
    if makes_devices {
        let null = fs::metadata(dir.join("null"))?;
        ensure!(
            null.file_type().is_char_device() && null.rdev() == 0x103,
            "device {:#x}",
            null.rdev()
        );
    }
    drop(std::os::unix::net::UnixListener::bind(dir.join("socket"))?);
    let seen = fixture
        .guest()?
        .sh("cd /mnt/kinds && stat -c '%n %F %h' * | sort")?;
    let lines = [
        "file regular file 2",
        "guest-link symbolic link 1",
        "pipe fifo 1",
        "socket socket 1",
    ];
    let device = makes_devices.then_some("null character special file 1");
    for line in lines.into_iter().chain(device) {
        ensure!(
            seen.contains(line),
            "no '{line}' in what the guest saw: {seen}"
        );
    }
    Ok(())
}

/// Names with spaces, quotes, newlines, non-ASCII and non-UTF-8 bytes, and of the longest length.
pub(super) fn odd_names_cross(fixture: &mut Fixture) -> Result<()> {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let longest = "n".repeat(255);
    let names: [&[u8]; 7] = [
        b" with spaces ",
        b"quote'\"\\quote",
        b"new\nline",
        "Grüße-日本語-🚢".as_bytes(),
        b"not\xff\xfeutf8",
        b"...",
        longest.as_bytes(),
    ];
    let dir = fixture.host_path("odd");
    fs::create_dir_all(dir.join("from-host"))?;
    for name in names {
        fs::write(
            dir.join("from-host")
                .join(OsString::from_vec(name.to_vec())),
            name,
        )?;
    }
    fixture.guest()?.sh(
        "cd /mnt/odd && cp -r from-host from-guest && ! touch from-guest/$(cat from-host/nnn*)n",
    )?;
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir.join("from-guest"))? {
        let name = entry?.file_name();
        let content = fs::read(dir.join("from-guest").join(&name))
            .with_context(|| format!("reading {}", name.display()))?;
        ensure!(content == name.clone().into_vec(), "content of {name:?}");
        found.insert(name.into_vec());
    }
    let expected: BTreeSet<Vec<u8>> = names.iter().map(|name| name.to_vec()).collect();
    ensure!(found == expected, "found {found:?}");
    Ok(())
}

/// Names in the large directory, and in the small one.
const NAMES: u32 = 3000;
const BRIEF_NAMES: u32 = 1000;

/// A directory of many names lists each exactly once, by readdir and with attributes.
pub(super) fn large_directory_lists_completely(fixture: &mut Fixture) -> Result<()> {
    let dir = fixture.host_path("large");
    fs::create_dir(&dir)?;
    let names = if fixture.setting().is_brief {
        BRIEF_NAMES
    } else {
        NAMES
    };
    for number in 0..names {
        fs::write(dir.join(format!("a-rather-long-file-name-{number:05}")), "")?;
    }
    let seen = fixture
        .guest()?
        .sh("cd /mnt/large && ls | sort -u | wc -l && ls | wc -l && ls -l | grep -c '^-'")?;
    let expected = format!("{names}\n").repeat(3);
    ensure!(seen == expected, "the guest counted: {seen}");
    fixture.guest()?.sh("rm -r /mnt/large")?;
    ensure!(!dir.exists(), "the directory is still there");
    Ok(())
}
