//! A mount at a switch: restarts of the switch, and who may be a client.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use gangplank_tests::dvk::{Mount, Switch};
use gangplank_tests::{packages, process, tools};

use crate::faults::{LIMIT, fails_in_time, recovers};
use crate::{Fixture, OPTIONS};

/// A killed switch starts again: server and mount bind their endpoints at the new one, and open
/// files continue.
pub(crate) fn a_restarted_switch_is_found_again(fixture: &mut Fixture) -> Result<()> {
    let mut kept = fs::File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(fixture.here("kept"))?;
    kept.write_all(b"before ")?;
    fixture.switch = None;
    fails_in_time(&fixture.here("kept"))?;
    fixture.switch = Some(Switch::start(&fixture.switch_socket())?);
    recovers(&fixture.here("kept"))?;
    kept.write_all(b"and after")?;
    ensure!(fs::read(fixture.there("kept"))? == b"before and after");
    Ok(())
}

/// An endpoint has one program at a time: a second mount with it is refused at once with a message,
/// one with its own endpoint is not.
pub(crate) fn a_second_mount_needs_an_endpoint_of_its_own(fixture: &mut Fixture) -> Result<()> {
    fs::write(fixture.here("file"), "content")?;
    let started = Instant::now();
    let refused = Mount::start(&fixture.topology, &OPTIONS).map(drop).err();
    let told = refused.map_or_else(String::new, |error| format!("{error:#}"));
    ensure!(
        told.contains("cannot be a client") && told.contains("cannot bind endpoint 10"),
        "refused with {told:?}"
    );
    ensure!(started.elapsed() < LIMIT, "it took {:?}", started.elapsed());
    let options: Vec<_> = OPTIONS
        .into_iter()
        .chain(["--client-endpoint", "11"])
        .collect();
    let second = Mount::start(&fixture.topology, &options)?;
    ensure!(fs::read(second.point().join("file"))? == b"content");
    drop(second);
    ensure!(fs::read(fixture.here("file"))? == b"content");
    Ok(())
}

/// umount(8) works with and without a switch.
pub(crate) fn a_mount_without_a_switch_unmounts(fixture: &mut Fixture) -> Result<()> {
    let file = fs::File::create(fixture.here("file"))?;
    fixture.switch = None;
    let started = Instant::now();
    ensure!(file.write_all_at(b"x", 0).is_err());
    drop(file);
    packages::run(std::process::Command::new("umount").arg(fixture.mount.point()))?;
    fixture.mount.ended()?;
    ensure!(started.elapsed() < LIMIT, "it took {:?}", started.elapsed());
    ensure!(!fixture.mount.is_mounted()?);
    Ok(())
}

/// A mount in the background holds no pipe of who started it, no terminal and no directory.
pub(crate) fn a_background_mount_lets_go_of_everything(fixture: &mut Fixture) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let point = directory.path().join("point");
    fs::create_dir(&point)?;
    let arguments = fixture.topology.mount_arguments(&point.to_string_lossy());
    let mut shell = process::tied("sh", None);
    shell
        // It ends only when nobody has the pipe any more.
        .args(["-c", "\"$@\" 2>&1 | cat", "sh"])
        .arg(tools::dvk()?)
        .args(&arguments)
        .args(["--client-endpoint", "12"])
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let mut shell = process::spawn(shell)?;
    let ended = process::wait_within(&mut shell, LIMIT);
    let found = fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    let found: Vec<_> = found
        .filter(|path| {
            let words = fs::read(path.join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words);
            words.contains("--tell") && words.contains(&*point.to_string_lossy())
        })
        .collect();
    let there = fs::write(point.join("file"), "content");
    let kept: Vec<_> = found
        .iter()
        .flat_map(|path| ["cwd", "fd/0", "fd/1", "fd/2"].map(|name| path.join(name)))
        .map(fs::read_link)
        .collect();
    packages::run(std::process::Command::new("umount").arg(&point))?;
    ended.context("the pipe is still open")?;
    there?;
    ensure!(fs::read(fixture.there("file"))? == b"content");
    let kept: Vec<_> = kept.into_iter().collect::<std::io::Result<_>>()?;
    let null = Path::new("/dev/null");
    ensure!(kept == [Path::new("/"), null, null, null], "{kept:?}");
    Ok(())
}

/// A file is no directory to mount on.
pub(crate) fn a_file_is_not_mounted_on(fixture: &mut Fixture) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    let output = std::process::Command::new(tools::dvk()?)
        .args(
            fixture
                .topology
                .mount_arguments(&file.path().to_string_lossy()),
        )
        .args(["--client-endpoint", "13"])
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{text}");
    ensure!(text.contains("not a directory"), "{text}");
    Ok(())
}
