//! Programs of other projects on the mount: fsx, git, and a timed copy.

use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use gangplank_tests::git::git;
use gangplank_tests::runner::note;
use gangplank_tests::{packages, tools};

use crate::Fixture;

/// Every operation of fsx except those without a call in the protocol (allocating, punching holes),
/// and `invalidate`, which needs several clients that share a mapping.
const FSX: &str = r"
flen = 1048576

[opsize]
max = 131072

[weights]
close_open = 1.0
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 0.0
punch_hole = 0.0
sendfile = 1.0
posix_fadvise = 1.0
copy_file_range = 1.0
";

/// Files of the repository.
const FILES: usize = 200;

/// Bytes of the copy.
const BULK: usize = 64 << 20;

/// 5,000 operations by a fixed seed, so that a failure repeats.
pub(crate) fn five_thousand_operations(fixture: &mut Fixture) -> Result<()> {
    fs::write(fixture.there("fsx.toml"), FSX)?;
    packages::run(
        Command::new(tools::fsx()?)
            .current_dir(fixture.here(""))
            .args([
                "-f", "fsx.toml", "-N", "5000", "-S", "42", "-P", "/tmp", "fsx-file",
            ]),
    )
}

/// Clones, changes, commits and packs in the mount; both sides check every object.
pub(crate) fn clones_and_checks(fixture: &mut Fixture) -> Result<()> {
    let source = fixture.there("source");
    fs::create_dir(&source)?;
    git(&source, &["init", "--quiet"])?;
    for number in 0..FILES {
        let dir = source.join(format!("dir-{}", number % 20));
        fs::create_dir_all(&dir)?;
        let content = format!("line of file {number}\n").repeat(number + 1);
        fs::write(dir.join(format!("file-{number}")), content)?;
    }
    git(&source, &["add", "."])?;
    git(&source, &["commit", "--quiet", "-m", "first"])?;

    let clone = fixture.here("clone");
    git(
        fixture.here("").as_path(),
        &["clone", "--quiet", "--no-local", "source", "clone"],
    )?;
    git(&clone, &["fsck", "--full", "--strict"])?;
    ensure!(git(&clone, &["status", "--porcelain"])?.is_empty());
    fs::write(clone.join("dir-3/file-3"), "changed\n")?;
    git(&clone, &["rm", "--quiet", "-r", "dir-4"])?;
    git(&clone, &["commit", "--quiet", "-a", "-m", "changed"])?;
    git(&clone, &["gc", "--quiet"])?;
    git(&clone, &["fsck", "--full", "--strict"])?;
    let on_host = fixture.there("clone");
    git(&on_host, &["fsck", "--full", "--strict"])?;
    git(&on_host, &["diff", "--quiet", "HEAD"])?;
    Ok(())
}

/// 64 MiB are the same bytes after a copy in and out.
pub(crate) fn sixty_four_mebibytes(fixture: &mut Fixture) -> Result<()> {
    // All pages differ.
    let data: Vec<u8> = (0..BULK / 8).flat_map(|word| word.to_le_bytes()).collect();
    let started = Instant::now();
    fs::write(fixture.here("bulk"), &data)?;
    let written = started.elapsed();
    ensure!(
        fs::read(fixture.there("bulk"))? == data,
        "the host reads other bytes"
    );
    let started = Instant::now();
    ensure!(
        fs::read(fixture.here("bulk"))? == data,
        "the mount reads other bytes"
    );
    let read = started.elapsed();
    let rate = |took: std::time::Duration| 64.0 / took.as_secs_f64();
    note(&format!(
        "written at {:.0} MiB/s, read at {:.0} MiB/s",
        rate(written),
        rate(read)
    ));
    Ok(())
}
