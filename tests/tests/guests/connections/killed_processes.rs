//! SIGKILL of one guest's worker or keeper, or of the acceptor, beside another guest.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::driver::fixture::{acceptor_of, guest_processes, wait_for_log};
use gangplank_tests::guest::{Guest, Machine, Options};
use rustix::process::{Pid, Signal, kill_process};

/// Writes files of random bytes, drops the guest's cache, and compares what it reads.
const VERIFY: &str = "mkdir -p /mnt/calm && cd /mnt/calm && for i in $(seq 30); do \
    dd if=/dev/urandom of=/tmp/random bs=64k count=8 2>/dev/null && cp /tmp/random f$i && \
    echo 3 >/proc/sys/vm/drop_caches && cmp /tmp/random f$i && mv f$i g$i || exit 1; \
    done; ls | wc -l; cd / && rm -r /mnt/calm";

/// Writes without end, in the background.
const WRITE: &str = "mkdir -p /mnt/busy && (while :; do dd if=/dev/zero of=/mnt/busy/f bs=1M \
    count=4; done) >/dev/null 2>&1 &";

/// Limit for the verification on a busy machine.
const VERIFYING: Duration = Duration::from_secs(120);

/// What is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Victim {
    Worker,
    Keeper,
    Acceptor,
}

/// The other guest verifies its data without an error, and a new guest is served.
pub(crate) fn each_process_is_killed() -> Result<()> {
    let share = tempfile::tempdir()?;
    let mut daemon = Daemon::start(&daemon::Options::new(share.path()))?;
    wait_for_log(&daemon, "waiting for guests")?;
    let boot = || -> Result<Guest> {
        let options = Options::new(Machine::Uml).share(daemon.socket(), TAG);
        let mut guest = Guest::boot(&options).with_context(|| daemon.log())?;
        guest.mount(TAG, "/mnt").with_context(|| daemon.log())?;
        Ok(guest)
    };
    let mut other = boot()?;
    for victim in [Victim::Worker, Victim::Keeper, Victim::Acceptor] {
        let mut guest = boot()?;
        guest.sh(WRITE)?;
        // The victim has connected last.
        let (keeper, worker) = guest_processes(&daemon)?.pop().context("a guest")?;
        let process = match victim {
            Victim::Worker => worker,
            Victim::Keeper => keeper,
            Victim::Acceptor => acceptor_of(&daemon)?,
        };
        let seen = thread::scope(|scope| -> Result<String> {
            let verifying = scope.spawn(|| other.sh_within(VERIFY, VERIFYING));
            thread::sleep(Duration::from_millis(500));
            let process = Pid::from_raw(process.try_into()?).context("a process id")?;
            kill_process(process, Signal::KILL)?;
            let verified = verifying.join();
            verified.map_err(|_| anyhow!("the guest's thread panicked"))?
        });
        let seen = seen.with_context(|| daemon.log())?;
        ensure!(seen == "30\n", "the other guest saw: {seen}");
        if victim != Victim::Keeper {
            let written = guest.sh("echo written >/mnt/after && cat /mnt/after")?;
            ensure!(written == "written\n", "the guest saw: {written}");
        }
        guest.kill();
    }
    for ended in [
        "the worker of guest 2 was",
        "the keeper of guest 3 was",
        "the acceptor was",
    ] {
        wait_for_log(&daemon, ended)?;
    }
    let seen = boot()?.sh("cat /mnt/busy/f | wc -c")?;
    ensure!(!seen.is_empty(), "the next guest saw nothing");
    ensure!(daemon.is_running()?, "the daemon ended\n{}", daemon.log());
    Ok(())
}
