//! Landlock restricts running workers, in each mode of the sandbox in which that is promised: a
//! thread of a worker is made to open what it must not.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_sandbox::landlock::is_supported;
use gangplank_tests::process::User;
use rustix::io::Errno;
use rustix::process::Signal;

use crate::fixture::{Connection, Fixture, root_or_skip};
use crate::injected_call;

/// Limit for a worker to start its threads.
const STARTING: Duration = Duration::from_secs(30);

/// `.`, as an injected call takes it.
const SELF: &[u8; 8] = b".\0\0\0\0\0\0\0";

/// What each thread of a guest's worker finds when it opens the directory of its own descriptors in
/// `/proc`, which it has a descriptor of in every mode, and the root of the share.
fn opened(guest: &Connection) -> Result<Vec<(Option<Errno>, Option<Errno>)>> {
    let worker = guest.worker;
    let device = |path: &str| fs::metadata(path).map(|found| found.dev());
    let proc = device("/proc")?;
    let root = fs::metadata(format!("/proc/{worker}/cwd/."))?;
    let (mut own, mut share) = (None, None);
    for entry in fs::read_dir(format!("/proc/{worker}/fd"))? {
        let entry = entry?;
        let number: i32 = entry.file_name().to_string_lossy().parse()?;
        let Ok(found) = fs::metadata(entry.path()) else {
            continue;
        };
        if found.is_dir() && found.dev() == proc {
            own = Some(number);
        } else if found.is_dir() && (found.dev(), found.ino()) == (root.dev(), root.ino()) {
            share = Some(number);
        }
    }
    let own = own.context("no descriptor of /proc/self/fd")?;
    let share = share.context("no descriptor of the share")?;
    let tasks = format!("/proc/{worker}/task");
    // The last of the threads may start after the first reply.
    let deadline = Instant::now() + STARTING;
    while fs::read_dir(&tasks)?.count() <= 3 && Instant::now() < deadline {
        sleep(Duration::from_millis(5));
    }
    let mut results = Vec::new();
    for entry in fs::read_dir(&tasks)? {
        let thread = entry?.file_name().to_string_lossy().parse()?;
        let open = |directory| injected_call::open(thread, directory, SELF);
        results.push((open(own)?, open(share)?));
    }
    ensure!(results.len() > 3, "a worker has {} threads", results.len());
    Ok(results)
}

/// The results in a daemon with these arguments, whose guest is served afterwards.
fn opened_with(
    fixture: &Fixture,
    arguments: &[&str],
) -> Result<Vec<(Option<Errno>, Option<Errno>)>> {
    let daemon = fixture.serve(arguments)?;
    let mut guest = daemon.connect()?;
    let opened = opened(&guest).with_context(|| format!("{arguments:?}"))?;
    guest.get_features()?;
    let ended = daemon.signal(Signal::TERM)?;
    ensure!(ended.status.success(), "{ended:?}");
    Ok(opened)
}

#[test]
fn no_thread_of_a_worker_opens_what_is_outside_of_the_share() -> Result<()> {
    let test = "no_thread_of_a_worker_opens_what_is_outside_of_the_share";
    if !root_or_skip(test) {
        return Ok(());
    }
    if !is_supported() {
        eprintln!("SKIPPED {test}: this kernel has no Landlock");
        return Ok(());
    }
    let never = "--inode-file-handles=never";
    for arguments in [
        &["--sandbox=namespace", never][..],
        &["--sandbox=chroot"],
        &["--sandbox=chroot", never],
        &["--sandbox=none"],
        &["--sandbox=none", never],
    ] {
        assert_restricted(&Fixture::new()?, arguments)?;
    }
    for sandbox in ["--sandbox=namespace", "--sandbox=none"] {
        assert_restricted(&Fixture::of(Some(User::NOBODY))?, &[sandbox])?;
    }
    Ok(())
}

fn assert_restricted(fixture: &Fixture, arguments: &[&str]) -> Result<()> {
    for (own, share) in opened_with(fixture, arguments)? {
        ensure!(own == Some(Errno::ACCESS), "{arguments:?}: {own:?}");
        ensure!(share.is_none(), "{arguments:?}: the share: {share:?}");
    }
    Ok(())
}

/// The exception in SECURITY.md. It shows that the test above sees Landlock and nothing else.
#[test]
fn a_worker_that_must_open_by_handle_without_a_namespace_is_not_restricted() -> Result<()> {
    if !root_or_skip("a_worker_that_must_open_by_handle_without_a_namespace_is_not_restricted") {
        return Ok(());
    }
    let arguments = ["--sandbox=none", "--inode-file-handles=mandatory"];
    for (own, share) in opened_with(&Fixture::new()?, &arguments)? {
        ensure!(own.is_none() && share.is_none(), "{own:?} {share:?}");
    }
    Ok(())
}
