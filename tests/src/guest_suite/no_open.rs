//! A share that no process changes, used without OPEN requests.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::daemon::{Daemon, Options as DaemonOptions, TAG};
use crate::guest::{Guest, Machine, Options, USUAL};

/// Large enough for several reads.
const LARGE: usize = 3 << 20;

/// A guest of a daemon with `--readonly --cache=always` reads, lists and runs the files. Its
/// changes are refused and have no effect.
pub(super) fn serves_what_is_not_opened(machine: Machine) -> Result<()> {
    let dir = tempfile::tempdir()?;
    fill(dir.path())?;
    let arguments = ["--readonly", "--cache=always", "--log-level=debug"];
    let daemon = Daemon::start(&DaemonOptions::new(dir.path()).arguments(&arguments))?;
    let mut guest = Guest::boot(&Options::new(machine).share(daemon.socket(), TAG))?;
    guest.mount(TAG, "/mnt")?;
    // Twice: from the daemon, and from the guest's cache.
    for _ in 0..2 {
        let listed =
            guest.sh("cd /mnt && find . | wc -l && cat small/* | wc -c && wc -c <large")?;
        let words: Vec<&str> = listed.split_whitespace().collect();
        // The root, a directory, two files beside it, a script.
        let [entries, bytes, length] = words[..] else {
            anyhow::bail!("the guest told {listed}");
        };
        ensure!((entries, bytes) == ("405", "2400"), "{listed}");
        ensure!(length == LARGE.to_string(), "{listed}");
    }
    let told = guest.sh(
        "cmp /mnt/large /mnt/twin && sh /mnt/script && dd if=/mnt/large bs=1 \
        skip=3000000 count=4 2>/dev/null | od -An -tu1",
    )?;
    let tail: Vec<u8> = (3_000_000..3_000_004).map(pattern).collect();
    let tail: Vec<String> = tail.iter().map(u8::to_string).collect();
    let words: Vec<&str> = told.split_whitespace().collect();
    ensure!(words.first() == Some(&"ran"), "{told}");
    ensure!(words[1..] == tail[..], "{told}");
    for change in [
        "echo x >/mnt/small/f1",
        "echo x >>/mnt/small/f1",
        "rm /mnt/small/f1",
        "echo x >/mnt/new",
        ": >/mnt/large",
    ] {
        let tried = guest.run(&format!("({change}) 2>&1"), USUAL)?;
        ensure!(tried.status != 0, "{change} went through");
    }
    let told = guest.sh("cat /mnt/small/f1; cmp /mnt/large /mnt/twin && ls /mnt | wc -l")?;
    ensure!(told.split_whitespace().eq(["12345", "4"]), "{told}");
    ensure!(fs::metadata(dir.path().join("large"))?.len() == LARGE as u64);
    guest.sh("umount /mnt")?;
    guest.power_off()?;
    // The guest sends each request once, and then knows that the daemon does not need it.
    let log = daemon.log();
    for message in ["OPEN of", "OPENDIR of", "FLUSH of"] {
        let asked = log.matches(message).count();
        ensure!(asked == 1, "{asked} times {message}");
    }
    for message in ["RELEASE of", "RELEASEDIR of"] {
        ensure!(!log.contains(message), "{message} what was not opened");
    }
    ensure!(log.contains("READ of"), "nothing was read: {log}");
    Ok(())
}

fn fill(share: &Path) -> Result<()> {
    let small = share.join("small");
    fs::create_dir(&small)?;
    for number in 0..400 {
        fs::write(small.join(format!("f{number}")), "12345\n")?;
    }
    let large: Vec<u8> = (0..LARGE).map(pattern).collect();
    fs::write(share.join("large"), &large)?;
    fs::write(share.join("twin"), &large)?;
    fs::write(share.join("script"), "echo ran\n")?;
    Ok(())
}

/// The byte at an offset.
fn pattern(at: usize) -> u8 {
    let [low, middle, high, ..] = at.to_le_bytes();
    low ^ middle.rotate_left(3) ^ high
}
