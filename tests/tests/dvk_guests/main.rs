//! One directory, three guests: what each creates, renames and removes, by virtio-fs or over the network as an rhostfs, is so
//! for the other two. Needs root, for the network.

use std::fs::{self, File};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::dvk_scene::Scene;
use gangplank_tests::guest::Guest;
use gangplank_tests::packages;
use gangplank_tests::process::User;
use gangplank_tests::trials::{Trials, note};
use tempfile::TempDir;

const TRIALS: &[(&str, Trial)] = &[
    (
        "files_of_each_are_read_by_all",
        files_of_each_are_read_by_all,
    ),
    (
        "each_renames_and_removes_the_others",
        each_renames_and_removes_the_others,
    ),
    (
        "the_far_guest_unmounts_and_mounts_again",
        the_far_guest_unmounts_and_mounts_again,
    ),
];

type Trial = fn(&mut Stage) -> Result<()>;

/// What each guest writes.
const MIB: u32 = 4;

/// How long what one has done may take to show elsewhere: names are believed for a second.
const SHOWS: Duration = Duration::from_secs(20);

/// The guests, the share on the host and its daemon.
struct Stage {
    scene: Scene,
    share: TempDir,
    daemon: Daemon,
}

impl Stage {
    fn new() -> Result<Self> {
        let share = tempfile::Builder::new()
            .prefix("gangplank-share-")
            .tempdir()?;
        let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
        let mut scene = Scene::boot(&daemon)?;
        scene.mount()?;
        Ok(Self {
            scene,
            share,
            daemon,
        })
    }
}

fn main() -> ExitCode {
    let mut trials = Trials::from_arguments();
    let mut stage = None;
    for (name, trial) in TRIALS {
        if !User::is_root() {
            trials.skip(name, "needs root");
            continue;
        }
        trials.run(name, || {
            let stage = match &mut stage {
                Some(stage) => stage,
                empty => empty.insert(Stage::new()?),
            };
            trial(stage).map_err(|error| {
                let logs = format!("{}\n{}", stage.daemon.log(), stage.scene.server.log());
                error.context(logs)
            })
        });
    }
    trials.finish()
}

/// Each writes a file of random bytes; all three, and the host, read the same.
fn files_of_each_are_read_by_all(stage: &mut Stage) -> Result<()> {
    let mut sums = Vec::new();
    for (name, guest) in stage.scene.guests() {
        let started = Instant::now();
        guest.sh(&format!(
            "dd if=/dev/urandom of=/mnt/by-{name} bs=1M count={MIB} conv=fsync 2>/dev/null"
        ))?;
        let took = started.elapsed().as_secs_f64();
        note(&format!("{name} wrote {MIB} MiB in {took:.1} s"));
        sums.push((name, guest.sh(&format!("sha256sum </mnt/by-{name}"))?));
    }
    for (reader, guest) in stage.scene.guests() {
        guest.sh("echo 3 >/proc/sys/vm/drop_caches")?;
        let started = Instant::now();
        for (writer, sum) in &sums {
            let read = guest.sh(&format!("sha256sum </mnt/by-{writer}"))?;
            ensure!(
                read == *sum,
                "{reader} reads other bytes than {writer} wrote"
            );
        }
        let took = started.elapsed().as_secs_f64();
        note(&format!("{reader} read {} MiB in {took:.1} s", 3 * MIB));
    }
    for (writer, sum) in &sums {
        let file = File::open(stage.share.path().join(format!("by-{writer}")))?;
        let read = packages::output(Command::new("sha256sum").stdin(file))?;
        ensure!(
            read == *sum,
            "the host reads other bytes than {writer} wrote"
        );
    }
    Ok(())
}

/// A file goes round: made by one, renamed and appended to by the next, read and removed by the one after; each begins once.
fn each_renames_and_removes_the_others(stage: &mut Stage) -> Result<()> {
    let mut guests = stage.scene.guests();
    for first in 0..3 {
        let round = format!("/mnt/round-{first}");
        let steps = [
            format!("mkdir {round} && echo one >{round}/made && ln -s made {round}/link"),
            format!("mv {round}/made {round}/renamed && echo two >>{round}/renamed"),
            format!(
                "test \"$(cat {round}/renamed)\" = \"$(printf 'one\\ntwo')\" && test \"$(readlink {round}/link)\" = made && \
                 ! test -e {round}/made && rm {round}/renamed {round}/link"
            ),
            format!("! test -e {round}/renamed && rmdir {round}"),
            format!("! test -e {round}"),
            format!("! test -e {round}"),
        ];
        for (turn, step) in steps.iter().enumerate() {
            let (name, guest) = guests.get_mut((first + turn) % 3).context("three guests")?;
            succeeds(guest, step).with_context(|| format!("{name}, step {turn}: {step}"))?;
        }
    }
    Ok(())
}

/// Unmounting ends the program; the next mount is served as the first was.
fn the_far_guest_unmounts_and_mounts_again(stage: &mut Stage) -> Result<()> {
    fs::write(stage.share.path().join("kept"), "kept\n")?;
    let command = stage.scene.mount_command("");
    let far = &mut stage.scene.far;
    far.sh("umount /mnt && ! test -e /mnt/kept")?;
    succeeds(far, "! pidof gangplank-dvk")?;
    far.sh(&command)?;
    let read = far.sh("cat /mnt/kept /proc/mounts")?;
    ensure!(
        read.starts_with("kept\n") && read.contains(" /mnt fuse.rhostfs "),
        "{read}"
    );
    Ok(())
}

/// Runs `text`, whose first condition may take a moment to become true.
fn succeeds(guest: &mut Guest, text: &str) -> Result<()> {
    let deadline = Instant::now() + SHOWS;
    loop {
        let output = guest.run(text, Duration::from_secs(60))?;
        if output.status == 0 {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "status {}: {}",
            output.status,
            output.text
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}
