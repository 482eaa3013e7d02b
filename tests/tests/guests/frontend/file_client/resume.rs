//! `cp --resume`: copies that were interrupted.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::tools;

use super::client::{done, pattern};
use crate::fixture::Fixture;

/// Bytes of the file, in several blocks of checksums.
const LEN: u64 = (33 << 20) + 777;

/// Bytes that are copied when the client is killed.
const INTERRUPTED: u64 = 16 << 20;

/// Lets a copy come so far at once, and no further before it is killed.
const SLOW: [&str; 2] = ["--limit-bps=64K", "--limit-bps-burst=20M"];

/// Limit for a copy to get that far.
const LIMIT: Duration = Duration::from_secs(60);

fn make(path: &Path) -> Result<()> {
    let mut data = pattern(1 << 20);
    let file = File::create(path)?;
    for piece in 0..LEN.div_ceil(1 << 20) {
        data[..8].copy_from_slice(&piece.to_le_bytes());
        let offset = piece << 20;
        let left = usize::try_from(LEN - offset)?.min(data.len());
        file.write_all_at(&data[..left], offset)?;
    }
    Ok(())
}

fn is_same(one: &Path, other: &Path) -> Result<bool> {
    Ok(fs::read(one)? == fs::read(other)?)
}

/// Kills a copy amid the file `partial`. Returns its inode number.
fn interrupt(fixture: &Fixture, from: &str, to: &str, partial: &Path) -> Result<u64> {
    let options = daemon::Options::new(fixture.share.path()).arguments(&SLOW);
    let slow = Daemon::start(&options)?;
    let mut child = Command::new(tools::frontend()?)
        .args(["fs", "--socket"])
        .arg(slow.socket())
        .args(["cp", "--resume", from, to])
        .stdin(Stdio::null())
        .spawn()?;
    let begun = Instant::now();
    let size = || fs::metadata(partial).map_or(0, |metadata| metadata.len());
    while size() < INTERRUPTED && begun.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill()?;
    let status = child.wait()?;
    ensure!(
        !status.success(),
        "the copy was complete before it was killed"
    );
    let metadata = fs::metadata(partial).context("no partial copy")?;
    ensure!(
        metadata.len() >= INTERRUPTED,
        "{} bytes in time",
        metadata.len()
    );
    Ok(metadata.ino())
}

/// What was copied is not copied again, unless it is wrong. The file has its name only when it is
/// complete.
#[test]
fn an_interrupted_copy_is_continued_and_verified() -> Result<()> {
    let mut fixture = Fixture::ours(&[])?;
    let elsewhere = tempfile::tempdir()?;
    let share = fixture.share.path().to_owned();
    let (source, in_share) = (elsewhere.path().join("disk.img"), share.join("disk.img"));
    make(&source)?;
    let source_name = source.display().to_string();
    let partial = share.join(".disk.img.gangplank-partial");
    let inode = interrupt(&fixture, &source_name, ":", &partial)?;
    ensure!(!in_share.exists(), "a part of the file has its name");
    // What was in flight may be missing amid the rest.
    let damaged = File::options().write(true).open(&partial)?;
    damaged.write_all_at(&[0; 4096], 13 << 20)?;
    done(&mut fixture, &["cp", "--resume", &source_name, ":"])?;
    ensure!(is_same(&source, &in_share)?, "the copy differs");
    ensure!(fs::metadata(&in_share)?.ino() == inode, "it was begun anew");
    ensure!(!partial.exists(), "the partial copy is still there");

    // Out of the share, and the source has become another meanwhile.
    let back = elsewhere.path().join("back.img");
    let back_name = back.display().to_string();
    let partial = elsewhere.path().join(".back.img.gangplank-partial");
    let inode = interrupt(&fixture, ":disk.img", &back_name, &partial)?;
    File::options()
        .write(true)
        .open(&in_share)?
        .set_len(LEN / 2)?;
    done(
        &mut fixture,
        &["cp", "--resume", "-p", ":disk.img", &back_name],
    )?;
    ensure!(is_same(&in_share, &back)?, "the copy differs");
    ensure!(fs::metadata(&back)?.ino() == inode, "it was begun anew");
    ensure!(!partial.exists(), "the partial copy is still there");

    // A file that is there already is not copied again.
    done(&mut fixture, &["cp", "--resume", ":disk.img", &back_name])?;
    ensure!(fs::metadata(&back)?.ino() == inode, "it was copied again");
    Ok(())
}

/// Holes stay holes, before and behind the place of the interruption.
#[test]
fn a_resumed_copy_keeps_holes() -> Result<()> {
    let mut fixture = Fixture::ours(&[])?;
    let share = fixture.share.path().to_owned();
    let file = File::create(share.join("sparse"))?;
    for offset in [0, 9 << 20, 40 << 20] {
        file.write_all_at(&pattern(10_000), offset)?;
    }
    file.set_len(64 << 20)?;
    let partial = File::create(share.join(".copy.gangplank-partial"))?;
    partial.write_all_at(&pattern(10_000), 0)?;
    partial.write_all_at(&pattern(10_000), 9 << 20)?;
    done(&mut fixture, &["cp", "--resume", ":sparse", ":copy"])?;
    let copy = fs::metadata(share.join("copy"))?;
    ensure!(copy.ino() == partial.metadata()?.ino(), "it was begun anew");
    ensure!(copy.blocks() < 1000, "{} blocks", copy.blocks());
    ensure!(is_same(&share.join("sparse"), &share.join("copy"))?);
    Ok(())
}
