//! A QEMU guest whose memory the daemon does not see.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::driver::fixture::wait_for_log;
use gangplank_tests::guest::{Guest, Machine, Memory, Options};

/// What the daemon says of a file that lacks `share=on`.
const DAEMON_SAYS: &str = "the guest's memory is not shared: add share=on to its memory backend";

/// What QEMU says of memory that is no file, and then starts no device.
const QEMU_SAYS: &str = "share=on";

/// Limit for QEMU to say so: an emulated guest starts its driver slowly.
const SAYING: Duration = Duration::from_secs(60);

/// How long a guest that waits for ever is watched.
const WATCHED: Duration = Duration::from_secs(2);

/// The operator is told. The guest cannot be: its rings are in the memory that is not seen.
pub(crate) fn is_said_to_the_operator(memory: Memory) -> Result<()> {
    let share = tempfile::tempdir()?;
    let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
    let options = Options {
        memory,
        ..Options::new(Machine::QemuX86_64).share(daemon.socket(), TAG)
    };
    let mut guest = Guest::boot(&options).with_context(|| daemon.log())?;
    // The guest's driver starts the device, and waits for its first reply.
    let mount = format!("mount -t virtiofs {TAG} /mnt && ls /mnt");
    ensure!(guest.run(&mount, WATCHED).is_err(), "it sees the share");
    match memory {
        Memory::PrivateFile => wait_for_log(&daemon, DAEMON_SAYS),
        _ => {
            let deadline = Instant::now() + SAYING;
            while !guest.complaints().contains(QEMU_SAYS) {
                let said = guest.complaints();
                ensure!(Instant::now() < deadline, "QEMU says: {said}");
                sleep(Duration::from_millis(20));
            }
            Ok(())
        }
    }
}
