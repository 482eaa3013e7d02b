//! A guest of QEMU 10.0 that moves, as it runs, to other QEMUs with other daemons.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::guest::{Guest, Machine, Options, Qemu};
use gangplank_tests::guest_work::{self, APPEND, FSX, NAMES, Program};
use gangplank_tests::tools;
use gangplank_tests::wait;

/// Limit for the guest's programs to end.
const ENDING: Duration = Duration::from_secs(120);

/// The programs that work in the guest.
const PROGRAMS: [Program; 3] = [APPEND, NAMES, FSX];

/// The guest moves from gangplankd to virtiofsd 1.14 and to another gangplankd, under load.
pub(crate) fn live() -> Result<()> {
    let share = tempfile::tempdir()?;
    fs::write(share.path().join("fsx.toml"), tools::FSX_CONFIGURATION)?;
    let start = |is_ours: bool| {
        // Between unlink(2) and FORGET, the guest's kernel remembers an inode without a name.
        let options =
            daemon::Options::new(share.path()).arguments(&["--migration-on-error=guest-error"]);
        Daemon::start(&match is_ours {
            true => options,
            false => options.program(&tools::virtiofsd()?),
        })
    };
    let options = |daemon: &Daemon| -> Result<Options> {
        Ok(Options {
            qemu: Qemu::Backports,
            ..Options::new(Machine::QemuX86_64)
                .share(daemon.socket(), TAG)
                .program("fsx", &tools::fsx()?)
        })
    };
    let mut daemon = start(true)?;
    let mut guest = Guest::boot(&options(&daemon)?).with_context(|| daemon.log())?;
    guest.mount(TAG, "/mnt").with_context(|| daemon.log())?;
    guest_work::start(&mut guest, &PROGRAMS)?;
    let sockets = tempfile::tempdir()?;
    for (step, is_ours) in [false, true].into_iter().enumerate() {
        wait_until_longer(&share.path().join("log"))?;
        let next = start(is_ours)?;
        let socket = sockets.path().join(step.to_string());
        let arriving = Options {
            incoming: Some(socket.clone()),
            ..options(&next)?
        };
        let arrived = Guest::boot(&arriving).with_context(|| next.log())?;
        guest.migrate(&socket).with_context(|| {
            let (left, right) = (guest.complaints(), arrived.complaints());
            format!(
                "source: {left}\n{}\ndestination: {right}\n{}",
                daemon.log(),
                next.log()
            )
        })?;
        (guest, daemon) = (arrived, next);
        guest
            .sh("ls /mnt/names && tail -n 1 /mnt/log")
            .with_context(|| format!("step {step}: {}\n{}", guest.complaints(), daemon.log()))?;
    }
    let ended = guest_work::end(&mut guest, PROGRAMS.len(), ENDING);
    ended.with_context(|| daemon.log())?;
    guest_work::check_kernel_log(&mut guest)?;
    guest_work::check_appended(&mut guest, &share.path().join("log"), "/dev/shm/lines")?;
    guest.sh("umount /mnt")?;
    Ok(())
}

/// Waits until the guest's programs are at work: one of them has appended to the file.
fn wait_until_longer(path: &Path) -> Result<()> {
    // It need not exist yet.
    let len = || fs::metadata(path).map_or(0, |metadata| metadata.len());
    let begin = len();
    wait::until("the guest writes something", ENDING, || Ok(len() > begin))
}
