//! One directory and three guests: what each creates, renames and removes, by virtio-fs or as an
//! rhostfs over the network, the other two see. The network needs root.

use std::fs::{self, File};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::guest::Guest;
use gangplank_tests::packages;
use gangplank_tests::process::User;
use gangplank_tests::runner::{Runner, note};
use gangplank_tests::three_guests::ThreeGuests;
use tempfile::TempDir;

const TESTS: &[(&str, Test)] = &[
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

type Test = fn(&mut Fixture) -> Result<()>;

/// MiB that each guest writes.
const MIB: u32 = 4;

/// Limit until a change shows in another guest. Names are cached for a second.
const SHOWS: Duration = Duration::from_secs(20);

/// The guests, the share on the host and its daemon.
struct Fixture {
    guests: ThreeGuests,
    share: TempDir,
    daemon: Daemon,
}

impl Fixture {
    fn new() -> Result<Self> {
        let share = tempfile::Builder::new()
            .prefix("gangplank-share-")
            .tempdir()?;
        let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
        let mut guests = ThreeGuests::boot(&daemon)?;
        guests.mount()?;
        Ok(Self {
            guests,
            share,
            daemon,
        })
    }
}

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    let mut fixture = None;
    for (name, test) in TESTS {
        if !User::is_root() {
            runner.skip(name, "needs root");
            continue;
        }
        runner.run(name, || {
            let fixture = match &mut fixture {
                Some(fixture) => fixture,
                empty => empty.insert(Fixture::new()?),
            };
            test(fixture).map_err(|error| {
                let logs = format!("{}\n{}", fixture.daemon.log(), fixture.guests.server.log());
                error.context(logs)
            })
        });
    }
    runner.finish()
}

/// Each guest writes a file of random bytes. All three guests and the host read the same bytes.
fn files_of_each_are_read_by_all(fixture: &mut Fixture) -> Result<()> {
    let mut sums = Vec::new();
    for (name, guest) in fixture.guests.guests() {
        let started = Instant::now();
        guest.sh(&format!(
            "dd if=/dev/urandom of=/mnt/by-{name} bs=1M count={MIB} conv=fsync 2>/dev/null"
        ))?;
        let took = started.elapsed().as_secs_f64();
        note(&format!("{name} wrote {MIB} MiB in {took:.1} s"));
        sums.push((name, guest.sh(&format!("sha256sum </mnt/by-{name}"))?));
    }
    for (reader, guest) in fixture.guests.guests() {
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
        let file = File::open(fixture.share.path().join(format!("by-{writer}")))?;
        let read = packages::output(Command::new("sha256sum").stdin(file))?;
        ensure!(
            read == *sum,
            "the host reads other bytes than {writer} wrote"
        );
    }
    Ok(())
}

/// A file passes from guest to guest: the first makes it, the second renames and appends to it, the
/// third reads and removes it. Each guest is first once.
fn each_renames_and_removes_the_others(fixture: &mut Fixture) -> Result<()> {
    let mut guests = fixture.guests.guests();
    for first in 0..3 {
        let round = format!("/mnt/round-{first}");
        let steps = [
            format!("mkdir {round} && echo one >{round}/made && ln -s made {round}/link"),
            format!("mv {round}/made {round}/renamed && echo two >>{round}/renamed"),
            format!(
                "test \"$(cat {round}/renamed)\" = \"$(printf 'one\\ntwo')\" && test \"$(readlink \
                 {round}/link)\" = made && \
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

/// Unmounting ends the program, and a new mount works like the first.
fn the_far_guest_unmounts_and_mounts_again(fixture: &mut Fixture) -> Result<()> {
    fs::write(fixture.share.path().join("kept"), "kept\n")?;
    let command = fixture.guests.mount_command("");
    let far = &mut fixture.guests.far;
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

/// Runs `text` repeatedly until it succeeds or the limit is over.
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
