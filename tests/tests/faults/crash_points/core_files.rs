//! A worker that panics leaves a core file where the host wants one, and nothing of its guest in
//! it.

use std::fs;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_backend::crash_hook::{Death, Point};
use gangplank_fuse::{NodeId, Opcode};
use gangplank_tests::driver::fixture::wait_for_log;
use gangplank_tests::driver::{Driver, Setup};
use gangplank_tests::process::User;
use gangplank_tests::wait;

use super::crash::Crashing;

/// What the host does with core files (core(5)), and whether with those of processes that have
/// changed their user (proc_sys_fs(5)).
const PATTERN: &str = "/proc/sys/kernel/core_pattern";
const SUID_DUMPABLE: &str = "/proc/sys/fs/suid_dumpable";

/// Bytes in guest memory that are nowhere else.
const MARK: &[u8] = b"4d1f the guest's own 8b07 the guest's own c3e9";

/// Larger than a core file without the guest's memory and state: a worker's heap and stacks.
const MOST: u64 = 64 << 20;

/// Limit for a core file to be written after the worker's end.
const HANDLING: Duration = Duration::from_secs(20);

/// The host's settings, which are put back when this is dropped.
struct Settings([(&'static str, String); 2]);

impl Settings {
    /// The kernel passes core files to a program, which puts them into `directory`, each with the
    /// number of its process. `None` if this process may not say so.
    fn change(directory: &Path) -> Result<Option<Self>> {
        let read = |path| Ok::<_, std::io::Error>((path, fs::read_to_string(path)?));
        let settings = Self([read(PATTERN)?, read(SUID_DUMPABLE)?]);
        let program = directory.join("handler");
        let directory = directory.to_str().context("a path that is no text")?;
        // Complete under its name.
        let text =
            format!("#!/bin/sh\ncd {directory}\n/bin/cat >part.$1 && /bin/mv part.$1 core.$1\n");
        fs::write(&program, text)?;
        fs::set_permissions(&program, Permissions::from_mode(0o755))?;
        let pattern = format!("|{} %P", program.display());
        let is_changed = User::is_root()
            && fs::write(PATTERN, pattern).is_ok()
            && fs::write(SUID_DUMPABLE, "2").is_ok();
        Ok(is_changed.then_some(settings))
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        for (path, value) in &self.0 {
            let _ = fs::write(path, value);
        }
    }
}

/// Has the worker panic, and returns where its core file would be.
fn panic(crashing: &Crashing, guest: &mut Driver, directory: &Path) -> Result<PathBuf> {
    let worker = crashing.fixture.last_worker()?;
    let at = (Some(Opcode::Getattr), Point::Begun);
    crashing.order(at, Death::Fault, 0, 1)?;
    guest.getattr(NodeId::ROOT, None)?;
    crashing.clear()?;
    Ok(directory.join(format!("core.{worker}")))
}

#[test]
fn a_panic_leaves_a_core_file_as_the_host_permits_without_anything_of_the_guest() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let Some(settings) = Settings::change(directory.path())? else {
        eprintln!("skipped: this user may not say where core files go");
        return Ok(());
    };
    let crashing = Crashing::new(&["--max-crashes=100000"])?;
    let log = || crashing.fixture.log();
    let mut guest = crashing.fixture.guest(&Setup::default())?;
    let place = guest.memory.allocate(MARK.len())?;
    guest.memory.write(place, MARK);
    // Said of the worker that starts next.
    fs::write(SUID_DUMPABLE, "0")?;

    let file = panic(&crashing, &mut guest, directory.path())?;
    wait_for_log(
        &crashing.fixture.daemon,
        "found a fault in itself (core dumped)",
    )?;
    wait::until("there is a core file", HANDLING, || Ok(file.exists())).with_context(log)?;
    let len = file.metadata()?.len();
    ensure!(len < MOST, "it has {len} bytes");
    let core = fs::read(&file)?;
    ensure!(core.starts_with(b"\x7fELF"), "it is no core file");
    let mut windows = core.windows(MARK.len());
    ensure!(!windows.any(|bytes| bytes == MARK), "it has guest memory");

    let file = panic(&crashing, &mut guest, directory.path())?;
    wait_for_log(&crashing.fixture.daemon, "found a fault in itself; please")?;
    ensure!(!file.exists(), "the host permits no core file");
    let share: Vec<_> = fs::read_dir(crashing.fixture.share())?.collect::<Result<_, _>>()?;
    ensure!(share.is_empty(), "the share has {share:?}");
    drop(settings);
    drop(guest);
    crashing.fixture.wait_until_idle()
}
