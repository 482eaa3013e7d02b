//! Guests that move between daemons while fsx and fio check every byte.
//!
//! The short form moves each guest a few times, `scripts/test --long` 50 times.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::TAG;
use gangplank_tests::debian_tree;
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::guest_work::{self, APPEND, FSX, Program};
use gangplank_tests::tools;

use crate::fixture::{Fixture, Kind, socket_of};

/// Moves in the short form.
const MOVES: usize = 6;

/// Moves with `GANGPLANK_MIGRATIONS`, the variable that `scripts/test --long` sets.
const MOVES_VARIABLE: &str = "GANGPLANK_MIGRATIONS";

/// Limit for the guest's programs to end after the last move.
const ENDING: Duration = Duration::from_secs(120);

/// fio, which verifies what it wrote.
const FIO: Program = (
    "fio",
    "while ! test -e /dev/shm/end; do \
       chroot /mnt/debian fio --name=verify --directory=/work --size=4M --bsrange=4k-64k \
         --blockalign=4k --rw=randrw --ioengine=psync --verify=crc32c --verify_fatal=1 \
         --do_verify=1 --thread --minimal || exit 1; \
       rm /mnt/debian/work/verify.* || exit 1; done",
);

/// What paths cannot help to find: a file without a name.
const UNLINKED: Program = (
    "unlinked",
    "exec 4<>/mnt/removed; rm /mnt/removed; i=0; while ! test -e /dev/shm/end; do \
       echo line $i >&4 && i=$((i+1)) || exit 1; done; \
     [ $(wc -l </proc/self/fd/4) = $i ] || exit 1",
);

/// How the inodes are found at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    FindPaths,
    FileHandles,
}

fn arguments(kind: Kind, mode: Mode) -> &'static [&'static str] {
    match (mode, kind) {
        // Between unlink(2) and FORGET, the guest's kernel remembers an inode without a name.
        (Mode::FindPaths, _) => &["--migration-on-error=guest-error"],
        (Mode::FileHandles, Kind::Gangplankd) => &["--migration-mode=file-handles"],
        (Mode::FileHandles, Kind::Virtiofsd) => &[
            "--migration-mode=file-handles",
            "--modcaps=+dac_read_search",
        ],
    }
}

fn moves() -> Result<usize> {
    match std::env::var(MOVES_VARIABLE) {
        Ok(moves) => moves.parse().with_context(|| MOVES_VARIABLE.to_owned()),
        Err(_) => Ok(MOVES),
    }
}

/// Moves a guest through `kinds`, again and again.
pub(crate) fn under_load(machine: Machine, kinds: &[Kind], mode: Mode) -> Result<()> {
    let fixture = Fixture::new(&[])?;
    fs::write(fixture.host("fsx.toml"), tools::FSX_CONFIGURATION)?;
    // fio's own files move with the guest as well.
    debian_tree::copy_to(&fixture.host("debian"), machine.arch())?;
    let mut kinds = kinds.iter().cycle().copied();
    let mut start = || {
        let kind = kinds.next().context("no daemon")?;
        fixture.daemon(kind, arguments(kind, mode))
    };
    let mut daemon = start()?;
    fixture.put(&daemon)?;
    let mut options = Options::new(machine)
        .share(&fixture.relay.socket(), TAG)
        .program("fsx", &tools::fsx()?);
    options.memory_mib = 512;
    let mut guest = Guest::boot(&options).with_context(|| fixture.relay.log())?;
    guest.mount(TAG, "/mnt")?;
    guest.sh(
        "mount -t proc proc /mnt/debian/proc && mount -o bind /dev /mnt/debian/dev && \
         mount -o bind /dev/shm /mnt/debian/dev/shm && mkdir -p /mnt/debian/work",
    )?;
    let unlinked = (mode == Mode::FileHandles).then_some(UNLINKED);
    let programs: Vec<_> = [APPEND, FSX, FIO].into_iter().chain(unlinked).collect();
    guest_work::start(&mut guest, &programs)?;
    let moves = moves()?;
    for _ in 0..moves {
        std::thread::sleep(Duration::from_millis(fastrand::u64(200..1500)));
        let next = start()?;
        let said = fixture.relay.tell(&["switch", socket_of(&next)?]);
        let logs = || {
            let (relay, daemon, next) = (fixture.relay.log(), daemon.log(), next.log());
            format!("relay:\n{relay}\nsource:\n{daemon}\ndestination:\n{next}")
        };
        ensure!(
            said.with_context(logs)?.contains("bytes of state"),
            "{}",
            logs()
        );
        daemon = next;
    }
    let logs = || format!("{}\n{}", fixture.relay.log(), daemon.log());
    guest_work::end(&mut guest, programs.len(), ENDING).with_context(logs)?;
    guest_work::check_kernel_log(&mut guest)?;
    guest_work::check_appended(&mut guest, &fixture.host("log"), "/dev/shm/lines")?;
    guest.sh("umount /mnt/debian/dev/shm /mnt/debian/dev /mnt/debian/proc /mnt")?;
    let status = fixture.relay.tell(&["status"])?;
    let expected = format!("daemons {}, losses 0", moves + 1);
    ensure!(status.contains(&expected), "{status}");
    Ok(())
}

/// Moves a guest through `kinds` on one directory tree, and then to gangplankd on another one with
/// the same content. Its files are found by their paths, and the programs that have them open go
/// on.
pub(crate) fn to_another_tree(machine: Machine, kinds: &[Kind]) -> Result<()> {
    let [first, second] = [Fixture::new(&[])?, Fixture::new(&[])?];
    for fixture in [&first, &second] {
        fs::create_dir_all(fixture.host("dir/below"))?;
        for name in ["dir/one", "dir/below/two"] {
            fs::write(fixture.host(name), name)?;
        }
    }
    let mut kinds = kinds.iter().copied();
    let mut daemon = first.daemon(kinds.next().context("no daemon")?, &[])?;
    first.put(&daemon)?;
    let mut guest = first.boot(machine)?;
    guest.mount(TAG, "/mnt")?;
    let said = guest.sh(
        "cd /mnt/dir/below && { sleep 600 5<>two & } && exec 6>>../one && cat two && ls -R /mnt \
         >/dev/null; { (cd /mnt/dir/below; exec 7<>two; touch /tmp/ready; \
           until test -e /tmp/moved; do sleep 0.1; done; \
           echo WRITTEN >&7 && cat two /mnt/dir/one && touch new && rm new; echo done) \
          >/tmp/log 2>&1 & }; until test -e /tmp/ready; do sleep 0.1; done",
    )?;
    ensure!(said == "dir/below/two", "{said}");
    let others = kinds.map(|kind| (&first, kind));
    for (fixture, kind) in others.chain([(&second, Kind::Gangplankd)]) {
        let next = fixture.daemon(kind, &[])?;
        let switched = first.relay.tell(&["switch", socket_of(&next)?]);
        let said = switched.with_context(|| format!("{}{}", daemon.log(), next.log()))?;
        ensure!(said.contains("bytes of state"), "{said}");
        // The one before ends now.
        daemon = next;
        let found = guest.sh("cat /mnt/dir/one /mnt/dir/below/two")?;
        ensure!(found == "dir/onedir/below/two", "{kind:?}: {found}");
    }
    let said = guest.sh(
        "touch /tmp/moved; for i in $(seq 600); do grep -q done /tmp/log && break; sleep 0.1; \
         done; cat /tmp/log",
    )?;
    ensure!(
        said == "WRITTEN\nlow/twodir/onedone\n" || said == "WRITTEN\nw/twodir/onedone\n",
        "{said}\n{}",
        daemon.log()
    );
    let written = fs::read_to_string(second.host("dir/below/two"))?;
    ensure!(written.starts_with("WRITTEN\n"), "{written}");
    ensure!(fs::read_to_string(first.host("dir/below/two"))? == "dir/below/two");
    Ok(())
}
