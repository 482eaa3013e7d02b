//! Trees and large files keep their data in both directions.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::guest_fixture::Fixture;
use crate::packages;

/// Limit for large transfers in an emulated guest.
const LONG: Duration = Duration::from_secs(600);

/// Files of the tree, and of the small one.
const TREE_FILES: u32 = 5000;
const BRIEF_TREE_FILES: u32 = 200;

/// Bytes of the large file, and of the small one.
const FILE_LEN: u64 = 256 << 20;
const BRIEF_FILE_LEN: u64 = 16 << 20;

/// 5,000 files: unpacked by the guest's tar, compared by both sides' diff.
pub(super) fn tree_survives_tar_and_diff(fixture: &mut Fixture) -> Result<()> {
    let files = if fixture.setting().is_brief {
        BRIEF_TREE_FILES
    } else {
        TREE_FILES
    };
    let original = tempfile::tempdir()?;
    make_tree(&original.path().join("tree"), files)?;
    packages::run(
        Command::new("tar")
            .arg("-cf")
            .arg(fixture.host_path("tree.tar"))
            .arg("-C")
            .arg(original.path())
            .arg("tree"),
    )?;
    fixture.guest()?.sh_within(
        "mkdir /tmp/reference && tar -xf /mnt/tree.tar -C /tmp/reference && tar -xf /mnt/tree.tar \
         -C /mnt",
        LONG,
    )?;
    packages::run(
        Command::new("diff")
            .args(["-r", "--no-dereference"])
            .arg(original.path().join("tree"))
            .arg(fixture.host_path("tree")),
    )
    .context("comparing on the host")?;
    // Drop the guest's cache, so that the files are read from the daemon.
    fixture.guest()?.sh("umount /mnt")?;
    let guest = fixture.guest()?;
    guest.sh_within("diff -r /tmp/reference/tree /mnt/tree", LONG)?;
    let count = guest.sh("find /mnt/tree -type f | wc -l")?;
    ensure!(count.trim() == files.to_string(), "{count} files");
    guest.sh_within("rm -r /mnt/tree /mnt/tree.tar /tmp/reference", LONG)?;
    ensure!(!fixture.host_path("tree").exists());
    Ok(())
}

/// 256 MiB copied by the guest with fsync: the checksum is the same on both sides.
pub(super) fn sequential_256_mib(fixture: &mut Fixture) -> Result<()> {
    let input = fixture.host_path("input");
    let len = if fixture.setting().is_brief {
        BRIEF_FILE_LEN
    } else {
        FILE_LEN
    };
    let mut random = File::open("/dev/urandom")?.take(len);
    io::copy(&mut random, &mut File::create(&input)?)?;
    let expected = checksum(&input)?;
    let guest = fixture.guest()?;
    guest.sh_within("dd if=/mnt/input of=/mnt/output bs=1M conv=fsync", LONG)?;
    guest.sh("echo 3 >/proc/sys/vm/drop_caches")?;
    let seen = guest.sh_within("md5sum </mnt/output", LONG)?;
    ensure!(
        seen.trim() == expected,
        "the guest's sum {seen}, the host's {expected}"
    );
    let written = checksum(&fixture.host_path("output"))?;
    ensure!(written == expected, "written {written}, read {expected}");
    fs::remove_file(input)?;
    fs::remove_file(fixture.host_path("output"))?;
    Ok(())
}

/// MD5 is the fastest sum that busybox has, which matters in an emulated guest.
fn checksum(path: &Path) -> Result<String> {
    let sum = packages::output(Command::new("md5sum").stdin(File::open(path)?))?;
    Ok(sum.trim().to_owned())
}

/// Files of many sizes, empty ones and links among them, some directories deep.
fn make_tree(root: &Path, files: u32) -> Result<()> {
    for number in 0..files {
        let dir = root.join(format!("d{}/e{}/f{}", number % 10, number % 7, number % 5));
        if number < 350 {
            fs::create_dir_all(&dir)?;
        }
        let line = format!("file {number} of the tree\n");
        let length = usize::try_from((number * 37) % 9000)?;
        let mut content = line.repeat(length / line.len() + 1).into_bytes();
        content.truncate(length);
        fs::write(dir.join(format!("file-{number}")), content)?;
        if number % 100 == 0 {
            std::os::unix::fs::symlink(
                format!("file-{number}"),
                dir.join(format!("link-{number}")),
            )?;
        }
    }
    Ok(())
}
