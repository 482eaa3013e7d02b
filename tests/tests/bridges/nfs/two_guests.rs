//! Two guests on one share: one mounts it by NFS alone, the other by virtio-fs alone.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::debian_tree;
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::nfs::{self, CLIENT_MODULES, NfsServer};
use gangplank_tests::runner::note;
use gangplank_tests::tools;
use tempfile::TempDir;

/// Limit for what a busy machine does in seconds.
const PATIENT: Duration = Duration::from_secs(300);

/// Changes that one guest makes and the other looks for.
const CHANGES: usize = 20;

/// Additions of each guest to one number: enough for both to be at it at the same time.
const ADDITIONS: u64 = 2000;

/// A guest that has no daemon, and one that has no network.
pub(crate) struct TwoGuests {
    pub(crate) by_nfs: Guest,
    pub(crate) by_virtiofs: Guest,
    pub(crate) server: NfsServer,
    pub(crate) daemon: Daemon,
    share: TempDir,
}

impl TwoGuests {
    pub(crate) fn new() -> Result<Self> {
        let share = tempfile::Builder::new().prefix("gangplank-").tempdir()?;
        fs::set_permissions(share.path(), Permissions::from_mode(0o755))?;
        let daemon =
            daemon::Options::new(share.path()).arguments(&["--locks=host", "--cache=never"]);
        let daemon = Daemon::start(&daemon)?;
        let server = NfsServer::start(daemon.socket(), &["--client", "*(rw,no_root_squash)"])?;
        let machine = Machine::Uml;
        debian_tree::copy_nfs_client(&share.path().join("client"), machine.arch())?;
        let check = tools::guest_check(machine.arch())?;

        let options = Options::new(machine)
            .share(daemon.socket(), TAG)
            .program("guest-check", &check);
        let mut by_virtiofs = Guest::boot(&options)?;
        by_virtiofs.mount(TAG, "/mnt")?;

        let mut options = Options::new(machine).program("guest-check", &check);
        options.modules = CLIENT_MODULES.to_vec();
        options.switch = Some(server.packets());
        let mut by_nfs = Guest::boot(&options)?;
        nfs::configure(&mut by_nfs, 15)?;
        // A mount that shared its superblock with the one below would take locks from it.
        nfs::mount(&mut by_nfs, "/", "/unlocked", ",nolock,noac,nosharecache")?;
        nfs::start_status_monitor(&mut by_nfs, "/unlocked/client")?;
        nfs::mount(&mut by_nfs, "/", "/locked", ",nosharecache")?;
        Ok(Self {
            by_nfs,
            by_virtiofs,
            server,
            daemon,
            share,
        })
    }
}

/// Sizes, content of the same length, new names and removed ones show in the first look after the
/// change. Sizes are asked for before a file is opened: that alone would make a client ask again.
pub(crate) fn a_guest_without_a_daemon_sees_at_once_what_another_writes(
    fixture: &mut TwoGuests,
) -> Result<()> {
    let TwoGuests {
        by_nfs,
        by_virtiofs,
        ..
    } = fixture;
    by_virtiofs.sh("mkdir /mnt/seen && cd /mnt/seen && echo 'change 00' >file && touch sizes")?;
    by_nfs.sh("cd /unlocked/seen && stat sizes && cat file")?;
    let mut waits = Vec::new();
    for change in 1..=CHANGES {
        let before = change - 1;
        by_virtiofs.sh(&format!(
            "cd /mnt/seen && echo 'change {change:02}' >file && echo >>sizes && \
             touch name-{change} && rm -f name-{before}"
        ))?;
        let changed = Instant::now();
        let seen = by_nfs.sh("cd /unlocked/seen && stat -c %s sizes && cat file && ls")?;
        waits.push(changed.elapsed());
        ensure!(
            seen.trim() == format!("{change}\nchange {change:02}\nfile\nname-{change}\nsizes"),
            "change {change}: {seen}"
        );
    }
    waits.sort_unstable();
    note(&format!(
        "a look takes {:?}, at most {:?}",
        waits[CHANGES / 2],
        waits[CHANGES - 1]
    ));
    Ok(())
}

/// Both guests add to one number, each time under a lock, and no addition is lost.
pub(crate) fn guests_of_both_kinds_hand_a_lock_over(fixture: &mut TwoGuests) -> Result<()> {
    let TwoGuests {
        by_nfs,
        by_virtiofs,
        share,
        ..
    } = fixture;
    by_virtiofs.sh("mkdir /mnt/counter")?;
    let count = |guest: &mut Guest, directory: &str| {
        guest.sh_within(
            &format!("guest-check {directory}/counter --count posix {ADDITIONS}"),
            PATIENT,
        )
    };
    let started = Instant::now();
    let (one, other) = thread::scope(|scope| {
        let one = scope.spawn(|| count(by_nfs, "/locked"));
        let other = count(by_virtiofs, "/mnt");
        (one.join(), other)
    });
    one.map_err(|_| anyhow!("the thread panicked"))??;
    other?;
    let counter = fs::read_to_string(share.path().join("counter/posix.number"))?;
    ensure!(counter == format!("{:020}", 2 * ADDITIONS), "{counter}");
    note(&format!(
        "{} locks in {:?}",
        2 * ADDITIONS,
        started.elapsed()
    ));
    Ok(())
}
