//! Locks of a stock client (lockd, rpc.statd) by NLM, and of a virtio-fs guest, on one share.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::debian_tree;
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::nfs::{self, CLIENT_MODULES, NfsServer};
use gangplank_tests::tools;
use gangplank_tests::wait;
use tempfile::TempDir;

use crate::Card;

/// Limit for what a busy machine does in seconds.
const PATIENT: Duration = Duration::from_secs(300);

/// Additions of each of two clients.
const ADDITIONS: u64 = 250;

/// Limit for a lock to come to a client that waits for it. The client's kernel asks again after 30
/// seconds, if it is not called.
const CALLED: Duration = Duration::from_secs(20);

/// Seconds in which clients reclaim locks after a restart.
const GRACE: &str = "10";

/// A guest that mounts the share by NFS with locks, and by virtio-fs.
pub(crate) struct LockFixture {
    pub(crate) guest: Option<Guest>,
    pub(crate) server: NfsServer,
    pub(crate) daemon: Daemon,
    share: TempDir,
    machine: Machine,
    card: Card,
}

impl LockFixture {
    pub(crate) fn new(machine: Machine, card: Card) -> Result<Self> {
        let share = tempfile::Builder::new().prefix("gangplank-").tempdir()?;
        fs::set_permissions(share.path(), Permissions::from_mode(0o755))?;
        // Another kernel's changes show at once.
        let daemon =
            daemon::Options::new(share.path()).arguments(&["--locks=host", "--cache=never"]);
        let daemon = Daemon::start(&daemon)?;
        let server = NfsServer::start(
            daemon.socket(),
            &["--client", "*(rw,no_root_squash)", "--grace", GRACE],
        )?;
        debian_tree::copy_nfs_client(&share.path().join("client"), machine.arch())?;
        let guest = Some(boot(machine, &daemon, &server, card)?);
        Ok(Self {
            guest,
            server,
            daemon,
            share,
            machine,
            card,
        })
    }

    fn host_path(&self, name: &str) -> PathBuf {
        self.share.path().join(name)
    }

    fn guest(&mut self) -> Result<&mut Guest> {
        self.guest.as_mut().context("the guest is gone")
    }
}

/// Boots a guest, starts rpcbind and rpc.statd in it, and mounts.
fn boot(machine: Machine, daemon: &Daemon, server: &NfsServer, card: Card) -> Result<Guest> {
    let mut options = Options::new(machine)
        .share(daemon.socket(), TAG)
        .program("guest-check", &tools::guest_check(machine.arch())?);
    options.modules = CLIENT_MODULES.to_vec();
    options.switch = Some(card(server));
    let mut guest = Guest::boot(&options)?;
    nfs::configure(&mut guest, 15)?;
    guest.mount(TAG, "/mnt")?;
    nfs::start_status_monitor(&mut guest, "/mnt/client")?;
    nfs::mount(&mut guest, "/", "/nfs", "")?;
    Ok(guest)
}

/// Whether somebody on the host has a lock on the file.
fn is_locked(path: &Path) -> Result<bool> {
    let inode = fs::metadata(path)?.ino().to_string();
    let locks = fs::read_to_string("/proc/locks")?;
    let mut lines = locks.lines().filter(|line| !line.contains("->"));
    Ok(lines.any(|line| {
        let place = line
            .split_whitespace()
            .find(|word| word.matches(':').count() == 2);
        place.is_some_and(|place| place.ends_with(&format!(":{inode}")))
    }))
}

/// Whether the file is there and locked.
fn is_locked_file(path: &Path) -> Result<bool> {
    Ok(path.exists() && is_locked(path)?)
}

fn wait_until(what: &str, is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    wait::until(what, PATIENT, is_so)
}

/// A process on the NFS mount and one on the virtio-fs mount add to the same number at the same
/// time, each time under a lock, and no addition is lost, as many would be without the lock. A
/// client that waits is called when the other unlocks. A wait that is given up leaves no lock.
pub(crate) fn clients_of_both_kinds_exclude_each_other(fixture: &mut LockFixture) -> Result<()> {
    let started = Instant::now();
    fixture.guest()?.sh_within(
        &format!(
            "count() {{ guest-check $1/counter --count posix {ADDITIONS}; }}; \
             mkdir /nfs/counter; count /nfs & one=$!; count /mnt || exit 1; wait $one"
        ),
        PATIENT,
    )?;
    let counter = fs::read_to_string(fixture.host_path("counter/posix.number"))?;
    ensure!(counter == format!("{:020}", 2 * ADDITIONS), "{counter}");
    gangplank_tests::runner::note(&format!("{:?}", started.elapsed()));
    // One waits as long as the other has the lock, and no longer.
    let record = fixture.host_path("handed-over/record");
    fixture
        .guest()?
        .sh("mkdir /nfs/handed-over && rm -f /tmp/end /tmp/got && \
         guest-check /mnt/handed-over --hold-locks /tmp/end >/dev/null 2>&1 &")?;
    wait_until("the other client has the lock", || is_locked_file(&record))?;
    fixture.guest()?.sh_within(
        "guest-check /nfs/handed-over/record --run-locked 'touch /tmp/got' >/dev/null 2>&1 & \
         sleep 3; ! [ -e /tmp/got ]",
        PATIENT,
    )?;
    fixture.guest()?.sh_within(
        "touch /tmp/end; until [ -e /tmp/got ]; do sleep 0.1; done",
        CALLED,
    )?;
    // The guest's kernel waits for the lock in vain, and gives up.
    let record = fixture.host_path("given-up/record");
    fixture
        .guest()?
        .sh("mkdir /nfs/given-up && rm -f /tmp/end && \
         guest-check /mnt/given-up --hold-locks /tmp/end >/dev/null 2>&1 &")?;
    wait_until("the other client has the lock", || is_locked_file(&record))?;
    fixture.guest()?.sh_within(
        "timeout -s KILL 3 guest-check /nfs/given-up/record --take-turns 0 1; \
         test $? != 0 && touch /tmp/end",
        PATIENT,
    )?;
    wait_until("the lock is nobody's", || Ok(!is_locked(&record)?))?;
    fixture.guest()?.sh_within(
        "guest-check /mnt/given-up/record --try-posix-lock && \
         guest-check /nfs/given-up/record --try-posix-lock",
        PATIENT,
    )?;
    Ok(())
}

/// A client reclaims its locks after the server was killed. That no other NFS client gets them
/// before is tested in `nfs_wire/locks.rs`.
pub(crate) fn a_lock_is_reclaimed_after_the_servers_death(fixture: &mut LockFixture) -> Result<()> {
    fixture
        .guest()?
        .sh("mkdir -p /nfs/kept && rm -f /tmp/end /tmp/ended && \
         (guest-check /nfs/kept --hold-locks /tmp/end; echo $? >/tmp/ended) >/dev/null 2>&1 &")?;
    let record = fixture.host_path("kept/record");
    wait_until("the client has the lock", || is_locked_file(&record))?;
    fixture.server.kill();
    wait_until("the daemon frees a dead server's lock", || {
        Ok(!is_locked(&record)?)
    })?;
    fixture.server.restart()?;
    nfs::reconnect(fixture.guest()?)?;
    wait_until("the client reclaims its lock", || is_locked(&record))?;
    let whole = fixture.host_path("kept/whole");
    wait_until("and its flock", || is_locked(&whole))?;
    // A new lock is possible after the grace period, and not one in the way.
    fixture.guest()?.sh_within(
        "guest-check /nfs/other --take-turns 0 1 && \
         guest-check /mnt/kept/record --try-posix-lock; test $? = 7",
        PATIENT,
    )?;
    fixture.guest()?.sh_within(
        "touch /tmp/end; until [ -e /tmp/ended ]; do sleep 0.1; done; test $(cat /tmp/ended) = 0",
        PATIENT,
    )?;
    wait_until("the client unlocks", || Ok(!is_locked(&record)?))
}

/// The locks of a client that vanishes are freed when it has started again.
pub(crate) fn a_client_that_starts_again_loses_its_locks(fixture: &mut LockFixture) -> Result<()> {
    fixture.guest()?.sh("mkdir -p /nfs/left && \
         guest-check /nfs/left --hold-locks /nonexistent >/dev/null 2>&1 &")?;
    let record = fixture.host_path("left/record");
    wait_until("the client has the lock", || is_locked_file(&record))?;
    if let Some(guest) = fixture.guest.take() {
        guest.kill();
    }
    let (machine, card) = (fixture.machine, fixture.card);
    fixture.guest = Some(boot(machine, &fixture.daemon, &fixture.server, card)?);
    ensure!(is_locked(&record)?, "the lock went with the connection");
    fixture
        .guest()?
        .sh("chroot /mnt/client /sbin/sm-notify -f")?;
    wait_until("the server frees the locks", || Ok(!is_locked(&record)?))?;
    let log = fixture.server.log();
    ensure!(log.contains("its locks are freed"), "{log}");
    Ok(())
}
