//! What is done to files in the mount is done to the share's, and the other way round.

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

use crate::Bench;

/// Creating, writing, renaming and removing, on either side, shows on the other at once.
pub(crate) fn cross_both_ways(bench: &mut Bench) -> Result<()> {
    fs::create_dir_all(bench.here("a/b"))?;
    fs::write(bench.here("a/b/file"), "from the mount\n")?;
    ensure!(fs::read(bench.there("a/b/file"))? == b"from the mount\n");
    fs::write(bench.there("a/b/other"), "from the host\n")?;
    ensure!(fs::read(bench.here("a/b/other"))? == b"from the host\n");
    fs::OpenOptions::new()
        .append(true)
        .open(bench.here("a/b/other"))?
        .write_all(b"and the mount\n")?;
    ensure!(fs::read(bench.there("a/b/other"))? == b"from the host\nand the mount\n");

    fs::rename(bench.here("a/b"), bench.here("c"))?;
    ensure!(bench.there("c/file").exists() && !bench.there("a/b").exists());
    fs::rename(bench.there("c"), bench.there("d"))?;
    ensure!(fs::read(bench.here("d/file"))? == b"from the mount\n");
    ensure!(!bench.here("c").exists());
    fs::remove_file(bench.there("d/file"))?;
    ensure!(!bench.here("d/file").exists());
    fs::remove_dir_all(bench.here("d"))?;
    fs::remove_dir(bench.here("a"))?;
    ensure!(fs::read_dir(bench.there(""))?.count() == 0);

    let state = rustix::fs::statfs(bench.here(""))?;
    let host = rustix::fs::statfs(bench.there(""))?;
    ensure!(
        state.f_blocks == host.f_blocks,
        "{} and {} blocks",
        state.f_blocks,
        host.f_blocks
    );
    Ok(())
}

/// Links of both kinds, pipes, devices, directories; times and modes.
pub(crate) fn are_of_every_kind(bench: &mut Bench) -> Result<()> {
    fs::write(bench.here("file"), "content")?;
    fs::hard_link(bench.here("file"), bench.here("linked"))?;
    symlink("file", bench.here("symbolic"))?;
    ensure!(fs::read_link(bench.there("symbolic"))?.as_os_str() == "file");
    ensure!(fs::read(bench.here("symbolic"))? == b"content");
    let (one, other) = (
        fs::metadata(bench.here("file"))?,
        fs::metadata(bench.here("linked"))?,
    );
    ensure!(
        (one.ino(), one.nlink()) == (other.ino(), 2),
        "{one:?}, {other:?}"
    );
    ensure!(one.ino() == fs::metadata(bench.there("file"))?.ino());

    packages::run(Command::new("mknod").arg(bench.here("pipe")).arg("p"))?;
    packages::run(
        Command::new("mknod")
            .arg(bench.here("null"))
            .args(["c", "1", "3"]),
    )?;
    ensure!(fs::metadata(bench.there("pipe"))?.file_type().is_fifo());
    ensure!(fs::metadata(bench.there("null"))?.rdev() == 0x103);
    ensure!(fs::metadata(bench.here("null"))?.rdev() == 0x103);

    let file = fs::File::options().write(true).open(bench.here("file"))?;
    file.set_permissions(fs::Permissions::from_mode(0o4751))?;
    file.set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000_000))?;
    let host = fs::metadata(bench.there("file"))?;
    ensure!(
        (host.mode() & 0o7777, host.mtime()) == (0o4751, 1_000_000_000),
        "{host:?}"
    );
    let seen = fs::metadata(bench.here("file"))?;
    ensure!((seen.mode(), seen.mtime(), seen.mtime_nsec()) == (host.mode(), host.mtime(), 0));
    Ok(())
}

/// A user's new files are the user's, and others' are closed to the user.
pub(crate) fn belong_to_who_makes_them(bench: &mut Bench) -> Result<()> {
    fs::create_dir(bench.here("open"))?;
    fs::set_permissions(bench.here("open"), fs::Permissions::from_mode(0o777))?;
    fs::write(bench.here("closed"), "secret")?;
    fs::set_permissions(bench.here("closed"), fs::Permissions::from_mode(0o600))?;
    let user = User::NOBODY;
    let sh = |text: String| packages::run(process::tied("sh", Some(user)).args(["-c", &text]));
    let (open, closed) = (bench.here("open"), bench.here("closed"));
    sh(format!(
        "cd {} && echo x >file && mkdir dir && ln -s file link && mkfifo pipe",
        open.display()
    ))?;
    for name in ["file", "dir", "link", "pipe"] {
        let made = fs::symlink_metadata(bench.there("open").join(name))?;
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
pub(crate) fn are_as_large_as_on_the_host(bench: &mut Bench) -> Result<()> {
    let file = fs::File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(bench.here("large"))?;
    let size = (5 << 32) + 7;
    file.set_len(size)?;
    ensure!(fs::metadata(bench.there("large"))?.len() == size);
    file.write_all_at(b"behind the end", size)?;
    let mut end = [0; 14];
    file.read_exact_at(&mut end, size)?;
    ensure!(&end == b"behind the end");
    ensure!(fs::metadata(bench.here("large"))?.len() == size + 14);
    file.set_len(3)?;
    ensure!(fs::metadata(bench.there("large"))?.len() == 3);
    fs::create_dir(bench.there("directory"))?;
    fs::File::create(bench.there("directory/larger"))?.set_len(1 << 40)?;
    ensure!(fs::metadata(bench.here("directory/larger"))?.len() == 1 << 40);
    fs::remove_dir_all(bench.here("directory"))?;
    ensure!(!bench.there("directory").exists());
    Ok(())
}

/// 3,000 names once each; the list goes on where it was, and begins anew when told so.
pub(crate) fn list_completely(bench: &mut Bench) -> Result<()> {
    fs::create_dir(bench.there("many"))?;
    for number in 0..3000 {
        fs::write(
            bench.there(&format!("many/a-rather-long-file-name-{number:05}")),
            "",
        )?;
    }
    let names = || -> Result<BTreeSet<_>> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(bench.here("many"))? {
            let name = entry?.file_name();
            ensure!(names.insert(name.clone()), "{} twice", name.display());
        }
        Ok(names)
    };
    ensure!(names()?.len() == 3000);
    fs::remove_dir_all(bench.here("many"))?;
    ensure!(!bench.there("many").exists());

    let longest = "n".repeat(255);
    fs::write(bench.here(&longest), "x").context("the longest name there is")?;
    ensure!(bench.there(&longest).exists());
    let longer = fs::write(bench.here(&"n".repeat(256)), "x");
    let errno = longer.err().and_then(|error| error.raw_os_error());
    ensure!(
        errno == Some(Errno::NAMETOOLONG.raw_os_error()),
        "{errno:?}"
    );
    Ok(())
}

/// Mappings, locks among this machine's programs, appending, unlinked files, exchanging names.
pub(crate) fn do_what_programs_ask(bench: &mut Bench) -> Result<()> {
    const CHECKS: &str = "mmap-write mmap-read mmap-private flock posix-lock rename-noreplace rename-exchange unlinked append \
                          vectored truncate copy-range";
    fs::create_dir(bench.here("checks"))?;
    packages::run(
        Command::new(tools::guest_check(tools::host_arch())?)
            .arg(bench.here("checks"))
            .args(CHECKS.split_whitespace()),
    )
}
