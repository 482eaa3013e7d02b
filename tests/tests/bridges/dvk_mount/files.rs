//! Changes in the mount show in the share, and the other way round.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use gangplank_tests::packages;
use gangplank_tests::process::{self, User};
use gangplank_tests::tools;
use rustix::io::Errno;

use crate::Fixture;

/// A creation, write, rename or removal on either side shows on the other at once.
pub(crate) fn cross_both_ways(fixture: &mut Fixture) -> Result<()> {
    fs::create_dir_all(fixture.here("a/b"))?;
    fs::write(fixture.here("a/b/file"), "from the mount\n")?;
    ensure!(fs::read(fixture.there("a/b/file"))? == b"from the mount\n");
    fs::write(fixture.there("a/b/other"), "from the host\n")?;
    ensure!(fs::read(fixture.here("a/b/other"))? == b"from the host\n");
    fs::OpenOptions::new()
        .append(true)
        .open(fixture.here("a/b/other"))?
        .write_all(b"and the mount\n")?;
    ensure!(fs::read(fixture.there("a/b/other"))? == b"from the host\nand the mount\n");

    fs::rename(fixture.here("a/b"), fixture.here("c"))?;
    ensure!(fixture.there("c/file").exists() && !fixture.there("a/b").exists());
    fs::rename(fixture.there("c"), fixture.there("d"))?;
    ensure!(fs::read(fixture.here("d/file"))? == b"from the mount\n");
    ensure!(!fixture.here("c").exists());
    fs::remove_file(fixture.there("d/file"))?;
    ensure!(!fixture.here("d/file").exists());
    fs::remove_dir_all(fixture.here("d"))?;
    fs::remove_dir(fixture.here("a"))?;
    ensure!(fs::read_dir(fixture.there(""))?.count() == 0);

    let state = rustix::fs::statfs(fixture.here(""))?;
    let host = rustix::fs::statfs(fixture.there(""))?;
    ensure!(
        state.f_blocks == host.f_blocks,
        "{} and {} blocks",
        state.f_blocks,
        host.f_blocks
    );
    Ok(())
}

/// SymlinkPolicy of both kinds, pipes, devices, directories; times and modes.
pub(crate) fn are_of_every_kind(fixture: &mut Fixture) -> Result<()> {
    fs::write(fixture.here("file"), "content")?;
    fs::hard_link(fixture.here("file"), fixture.here("linked"))?;
    symlink("file", fixture.here("symbolic"))?;
    ensure!(fs::read_link(fixture.there("symbolic"))?.as_os_str() == "file");
    ensure!(fs::read(fixture.here("symbolic"))? == b"content");
    let (one, other) = (
        fs::metadata(fixture.here("file"))?,
        fs::metadata(fixture.here("linked"))?,
    );
    ensure!(
        (one.ino(), one.nlink()) == (other.ino(), 2),
        "{one:?}, {other:?}"
    );
    ensure!(one.ino() == fs::metadata(fixture.there("file"))?.ino());

    packages::run(Command::new("mknod").arg(fixture.here("pipe")).arg("p"))?;
    packages::run(
        Command::new("mknod")
            .arg(fixture.here("null"))
            .args(["c", "1", "3"]),
    )?;
    ensure!(fs::metadata(fixture.there("pipe"))?.file_type().is_fifo());
    ensure!(fs::metadata(fixture.there("null"))?.rdev() == 0x103);
    ensure!(fs::metadata(fixture.here("null"))?.rdev() == 0x103);

    let file = fs::File::options().write(true).open(fixture.here("file"))?;
    file.set_permissions(fs::Permissions::from_mode(0o4751))?;
    file.set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000_000))?;
    let host = fs::metadata(fixture.there("file"))?;
    ensure!(
        (host.mode() & 0o7777, host.mtime()) == (0o4751, 1_000_000_000),
        "{host:?}"
    );
    let seen = fs::metadata(fixture.here("file"))?;
    ensure!((seen.mode(), seen.mtime(), seen.mtime_nsec()) == (host.mode(), host.mtime(), 0));
    Ok(())
}

/// A user's new files are the user's, and others' are closed to the user.
pub(crate) fn belong_to_who_makes_them(fixture: &mut Fixture) -> Result<()> {
    fs::create_dir(fixture.here("open"))?;
    fs::set_permissions(fixture.here("open"), fs::Permissions::from_mode(0o777))?;
    fs::write(fixture.here("closed"), "secret")?;
    fs::set_permissions(fixture.here("closed"), fs::Permissions::from_mode(0o600))?;
    let user = User::NOBODY;
    let sh = |text: String| packages::run(process::tied("sh", Some(user)).args(["-c", &text]));
    let (open, closed) = (fixture.here("open"), fixture.here("closed"));
    sh(format!(
        "cd {} && echo x >file && mkdir dir && ln -s file link && mkfifo pipe",
        open.display()
    ))?;
    for name in ["file", "dir", "link", "pipe"] {
        let made = fs::symlink_metadata(fixture.there("open").join(name))?;
        ensure!(
            (made.uid(), made.gid()) == (user.uid, user.gid),
            "{name}: {made:?}"
        );
    }
    ensure!(sh(format!("cat {}", closed.display())).is_err());
    ensure!(sh(format!("rm -f {}", closed.display())).is_err());
    ensure!(closed.exists());
    Ok(())
}

/// Sizes have 64 bits between our two ends, although rhostfs has 32.
pub(crate) fn are_as_large_as_on_the_host(fixture: &mut Fixture) -> Result<()> {
    let file = fs::File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(fixture.here("large"))?;
    let size = (5 << 32) + 7;
    file.set_len(size)?;
    ensure!(fs::metadata(fixture.there("large"))?.len() == size);
    file.write_all_at(b"behind the end", size)?;
    let mut end = [0; 14];
    file.read_exact_at(&mut end, size)?;
    ensure!(&end == b"behind the end");
    ensure!(fs::metadata(fixture.here("large"))?.len() == size + 14);
    file.set_len(3)?;
    ensure!(fs::metadata(fixture.there("large"))?.len() == 3);
    fs::create_dir(fixture.there("directory"))?;
    fs::File::create(fixture.there("directory/larger"))?.set_len(1 << 40)?;
    ensure!(fs::metadata(fixture.here("directory/larger"))?.len() == 1 << 40);
    fs::remove_dir_all(fixture.here("directory"))?;
    ensure!(!fixture.there("directory").exists());
    Ok(())
}

/// 3,000 names once each. The listing continues from an offset and restarts after a rewind.
pub(crate) fn list_completely(fixture: &mut Fixture) -> Result<()> {
    fs::create_dir(fixture.there("many"))?;
    for number in 0..3000 {
        fs::write(
            fixture.there(&format!("many/a-rather-long-file-name-{number:05}")),
            "",
        )?;
    }
    let names = || -> Result<BTreeSet<_>> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(fixture.here("many"))? {
            let name = entry?.file_name();
            ensure!(names.insert(name.clone()), "{} twice", name.display());
        }
        Ok(names)
    };
    ensure!(names()?.len() == 3000);
    fs::remove_dir_all(fixture.here("many"))?;
    ensure!(!fixture.there("many").exists());

    let longest = "n".repeat(255);
    fs::write(fixture.here(&longest), "x").context("the longest name there is")?;
    ensure!(fixture.there(&longest).exists());
    let longer = fs::write(fixture.here(&"n".repeat(256)), "x");
    let errno = longer.err().and_then(|error| error.raw_os_error());
    ensure!(
        errno == Some(Errno::NAMETOOLONG.raw_os_error()),
        "{errno:?}"
    );
    Ok(())
}

/// Mappings, locks among this machine's programs, appending, unlinked files, exchanging names.
pub(crate) fn do_what_programs_ask(fixture: &mut Fixture) -> Result<()> {
    const CHECKS: &str = "mmap-write mmap-read mmap-private flock posix-lock rename-noreplace \
        rename-exchange unlinked append \
                          vectored truncate copy-range";
    fs::create_dir(fixture.here("checks"))?;
    packages::run(
        Command::new(tools::guest_check(tools::host_arch())?)
            .arg(fixture.here("checks"))
            .args(CHECKS.split_whitespace()),
    )
}
