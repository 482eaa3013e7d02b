//! A User Mode Linux and a QEMU guest on one daemon at the same time.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::guest::{Guest, Machine, Options};
use tempfile::TempDir;

/// One daemon with two guests, which have its share on `/mnt`.
struct Pair {
    uml: Guest,
    qemu: Guest,
    daemon: Daemon,
    share: TempDir,
}

impl Pair {
    fn start() -> Result<Self> {
        let share = tempfile::Builder::new()
            .prefix("gangplank-pair-")
            .tempdir()?;
        let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
        let boot = |machine| -> Result<Guest> {
            let mut guest = Guest::boot(&Options::new(machine).share(daemon.socket(), TAG))?;
            guest.mount(TAG, "/mnt")?;
            Ok(guest)
        };
        let uml = boot(Machine::Uml).with_context(|| daemon.log())?;
        let qemu = boot(Machine::QemuX86_64).with_context(|| daemon.log())?;
        Ok(Self {
            uml,
            qemu,
            daemon,
            share,
        })
    }
}

/// Each guest finds what the other writes, renames and removes.
pub(crate) fn see_each_others_files() -> Result<()> {
    let mut pair = Pair::start()?;
    pair.uml.sh("mkdir /mnt/d && echo from uml >/mnt/d/uml")?;
    let seen = pair
        .qemu
        .sh("cat /mnt/d/uml && echo from qemu >/mnt/d/qemu")?;
    ensure!(seen == "from uml\n", "QEMU saw: {seen}");
    let seen = pair
        .uml
        .sh("cat /mnt/d/qemu && mv /mnt/d/qemu /mnt/d/renamed")?;
    ensure!(seen == "from qemu\n", "UML saw: {seen}");
    let seen = pair
        .qemu
        // The names that it knows are valid for a second.
        .sh("sleep 1.1; ls /mnt/d && echo more >>/mnt/d/renamed && rm /mnt/d/uml")?;
    ensure!(seen == "renamed\numl\n", "QEMU listed: {seen}");
    let seen = pair.uml.sh("sleep 1.1; ls /mnt/d && cat /mnt/d/renamed")?;
    ensure!(seen == "renamed\nfrom qemu\nmore\n", "UML saw: {seen}");

    // Both unpack and count a tree at the same time, each in its own directory.
    let work = |name: &str| {
        format!(
            "mkdir /mnt/{name} && cd /mnt/{name} && for i in $(seq 300); do echo {name} $i >f$i; \
             done && \
             cat f* | md5sum && ls | wc -l && cd / && rm -r /mnt/{name}"
        )
    };
    let (by_uml, by_qemu) = std::thread::scope(|scope| {
        let uml = scope.spawn(|| pair.uml.sh(&work("uml")));
        let qemu = scope.spawn(|| pair.qemu.sh(&work("qemu")));
        (uml.join(), qemu.join())
    });
    for result in [by_uml, by_qemu] {
        let counted = result.map_err(|_| anyhow::anyhow!("a guest's thread panicked"))??;
        ensure!(counted.ends_with("300\n"), "counted: {counted}");
    }
    let left = std::fs::read_dir(pair.share.path())?.count();
    ensure!(left == 1, "{left} entries left in the share");
    Ok(())
}

/// `kill -9` of a working guest: the other continues without an error, and the dead guest's
/// successor is served.
pub(crate) fn one_is_killed_the_other_works_on() -> Result<()> {
    let mut pair = Pair::start()?;
    pair.uml.sh(
        "mkdir /mnt/busy && (while :; do dd if=/dev/zero of=/mnt/busy/f bs=1M count=8; done) \
         >/dev/null 2>&1 &",
    )?;
    let Pair {
        uml,
        mut qemu,
        mut daemon,
        share: _share,
    } = pair;
    let before = qemu.sh("mkdir /mnt/calm && echo kept >/mnt/calm/file && cat /mnt/calm/file")?;
    ensure!(before == "kept\n");
    std::thread::scope(|scope| -> Result<()> {
        let working = scope.spawn(|| {
            qemu.sh_within(
                "exec 3</mnt/calm/file; for i in $(seq 400); do echo $i >/mnt/calm/n$i || exit 1; \
                 done; \
                 cat <&3 && cat /mnt/calm/n* | wc -l",
                Duration::from_secs(120),
            )
        });
        std::thread::sleep(Duration::from_millis(500));
        uml.kill();
        let seen = working
            .join()
            .map_err(|_| anyhow::anyhow!("the guest's thread panicked"))??;
        ensure!(seen == "kept\n400\n", "the survivor saw: {seen}");
        Ok(())
    })?;
    ensure!(daemon.is_running()?, "the daemon ended\n{}", daemon.log());
    let mut next = Guest::boot(&Options::new(Machine::Uml).share(daemon.socket(), TAG))?;
    next.mount(TAG, "/mnt")?;
    let seen = next.sh("cat /mnt/calm/file; rm -r /mnt/busy")?;
    ensure!(seen == "kept\n", "the successor saw: {seen}");
    Ok(())
}
