//! Operations that a shell cannot do: mappings, locks, special renames, holes, `O_DIRECT`.

use std::fs;

use anyhow::{Result, ensure};

use crate::guest::Guest;
use crate::guest_fixture::{DIRECT_TAG, Fixture};

/// The exit status of `guest-check --try-posix-lock` if another process has the lock.
pub const LOCK_IS_HELD: i32 = 7;

/// Checks of `guest-check` that every kernel supports.
const CHECKS: &str = "mmap-write mmap-read mmap-private flock posix-lock rename-noreplace \
    rename-exchange rename-whiteout unlinked allocate punch-hole seek-hole copy-range append \
    vectored truncate xattr direct";

/// The check that an ordinary user's daemon cannot pass: the kernel asks for `CAP_MKNOD` before it
/// leaves a whiteout behind (renameat2(2)).
const PRIVILEGED_CHECK: &str = "rename-whiteout";

/// Checks that need Linux 6.12: older FUSE clients lack the operation for nameless files (6.2) or
/// the one for birth times (6.6).
const NEWER_CHECKS: &str = "tmpfile birth-time";

/// Runs the checks in the new directory `directory` of the guest.
///
/// # Errors
/// With every check's result when one fails.
pub fn run_checks(guest: &mut Guest, directory: &str) -> Result<()> {
    run(guest, directory, CHECKS)
}

fn run(guest: &mut Guest, directory: &str, checks: &str) -> Result<()> {
    let release = guest.sh("uname -r")?;
    let old = release.starts_with("6.1.");
    let newer = if old { "" } else { NEWER_CHECKS };
    guest
        .sh(&format!(
            "mkdir {directory} && guest-check {directory} {checks} {newer}"
        ))
        .map(drop)
}

/// The checks that the daemon's user can pass.
fn possible(fixture: &Fixture) -> String {
    if fixture.setting().user.is_none() {
        CHECKS.to_owned()
    } else {
        CHECKS.replace(PRIVILEGED_CHECK, "")
    }
}

/// Every check passes on the share with default options.
pub(super) fn checks_pass(fixture: &mut Fixture) -> Result<()> {
    let checks = possible(fixture);
    run(fixture.guest()?, "/mnt/checks", &checks)
}

/// Every check except shared mappings passes on a share that caches nothing and allows `O_DIRECT`,
/// through a second device of the same guest.
pub(super) fn checks_pass_uncached(fixture: &mut Fixture) -> Result<()> {
    let checks = possible(fixture);
    let unmapped: Vec<&str> = checks
        .split_whitespace()
        // Without --allow-mmap, cache=never has no page cache that a mapping could show.
        .filter(|check| !check.starts_with("mmap"))
        .collect();
    let guest = mounted_directly(fixture)?;
    guest
        .sh(&format!(
            "mkdir /direct/uncached && guest-check /direct/uncached {}",
            unmapped.join(" ")
        ))
        .map(drop)
}

/// `dd` with `O_DIRECT` on both sides works whether or not the daemon passes the flag on. On arm64
/// the flag has the value of `O_DIRECTORY` on x86.
pub(super) fn direct_dd_works(fixture: &mut Fixture) -> Result<()> {
    mounted_directly(fixture)?;
    for mount in ["/mnt", "/direct"] {
        fixture.guest()?.sh(&format!(
            "cd {mount} && dd if=/dev/urandom of=dd-a bs=64k count=16 oflag=direct && \
             dd if=dd-a of=dd-b bs=64k iflag=direct oflag=direct && \
             dd if=dd-b of=dd-a bs=64k iflag=direct oflag=direct conv=notrunc && cmp dd-a dd-b && \
             cd /"
        ))?;
        let (one, other) = (
            fs::read(fixture.host_path("dd-a"))?,
            fs::read(fixture.host_path("dd-b"))?,
        );
        ensure!(
            one.len() == 1 << 20 && one == other,
            "{mount}: copies differ"
        );
        fs::remove_file(fixture.host_path("dd-a"))?;
        fs::remove_file(fixture.host_path("dd-b"))?;
    }
    Ok(())
}

/// The guest with the second share on `/direct`.
fn mounted_directly(fixture: &mut Fixture) -> Result<&mut Guest> {
    let guest = fixture.guest()?;
    if guest.sh("cat /proc/mounts")?.contains(" /direct virtiofs ") {
        return Ok(guest);
    }
    guest.mount(DIRECT_TAG, "/direct")?;
    Ok(guest)
}
