//! A mount at a switch: restarts of the switch, and who may be a client.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use anyhow::{Result, ensure};
use gangplank_tests::dvk::{Mount, Switch};
use gangplank_tests::packages;

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
