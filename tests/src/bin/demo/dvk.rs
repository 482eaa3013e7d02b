//! Three guests on one directory: two by virtio-fs, and one without it, by gangplank-dvk over its
//! network.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{Daemon, TAG};
use gangplank_tests::guest::Guest;
use gangplank_tests::packages;
use gangplank_tests::process::User;
use gangplank_tests::three_guests::ThreeGuests;

use crate::progress::during;
use crate::story::{heading, host, said, seconds};

/// Time after which a guest no longer uses cached names.
const SETTLED: Duration = Duration::from_millis(1200);

/// Shows every step. Fails at the first unexpected result.
pub(crate) fn tell(share: &Path, daemon: &Daemon) -> Result<()> {
    ensure!(
        User::is_root(),
        "the third guest's network takes root: sudo scripts/demo dvk"
    );
    heading(
        "gangplankd shares a directory, and gangplank-dvk serves it once more, as rhostfs over \
         DVK's messages",
    );
    host(&format!(
        "gangplankd --socket-path={} --shared-dir={} --tag={TAG}",
        daemon.socket().display(),
        share.display()
    ));
    host("gangplank-dvk serve --config rhostfs.cfg");

    heading(
        "Three of Debian's kernels, unmodified, boot: User Mode Linux, QEMU, and User Mode Linux \
         with nothing but a network card",
    );
    let started = Instant::now();
    let mut guests = during("the guests boot", || ThreeGuests::boot(daemon))?;
    said(&format!("up after {}", seconds(started.elapsed())));

    heading("The first two mount the directory by virtio-fs");
    for (name, guest) in [("uml", &mut guests.uml), ("qemu", &mut guests.qemu)] {
        typed(name, guest, &format!("mount -t virtiofs {TAG} /mnt"))?;
    }

    heading(
        "The third has no such device. One static program plays a DVS node there, and mounts the \
         same directory",
    );
    typed("far", &mut guests.far, &ThreeGuests::address_command())?;
    let command = guests.mount_command("");
    typed("far", &mut guests.far, &command).with_context(|| guests.server.log())?;
    typed("far", &mut guests.far, "grep ' /mnt ' /proc/mounts")?;

    heading("Each writes a line; each, and the host, reads all");
    for (name, guest) in guests.guests() {
        typed(
            name,
            guest,
            &format!("echo 'Ahoy from {name}!' >/mnt/{name}.txt"),
        )?;
    }
    let expected = "Ahoy from far!\nAhoy from qemu!\nAhoy from uml!\n";
    std::thread::sleep(SETTLED);
    for (name, guest) in guests.guests() {
        let read = typed(name, guest, "cat /mnt/*.txt")?;
        ensure!(read == expected, "{name} read: {read}");
    }
    host(&format!("cat {}/*.txt", share.display()));
    let mut read = String::new();
    for name in ["far", "qemu", "uml"] {
        read += &fs::read_to_string(share.join(format!("{name}.txt")))?;
    }
    said(&read);
    ensure!(read == expected, "the host read: {read}");

    heading("What one renames and another removes is so for the third");
    typed(
        "far",
        &mut guests.far,
        "mv /mnt/uml.txt /mnt/taken-by-far.txt && rm /mnt/qemu.txt",
    )?;
    std::thread::sleep(SETTLED);
    typed(
        "uml",
        &mut guests.uml,
        "ls /mnt && mv /mnt/far.txt /mnt/taken-by-uml.txt",
    )?;
    std::thread::sleep(SETTLED);
    let left = typed("qemu", &mut guests.qemu, "ls /mnt")?;
    ensure!(
        left == "taken-by-far.txt\ntaken-by-uml.txt\n",
        "left: {left}"
    );

    heading("4 MiB from the third guest have the same checksum everywhere");
    typed(
        "far",
        &mut guests.far,
        "dd if=/dev/urandom of=/mnt/bulk bs=1M count=4 conv=fsync 2>/dev/null",
    )?;
    let mut sums = Vec::new();
    for (name, guest) in guests.guests() {
        sums.push(typed(name, guest, "sha256sum </mnt/bulk")?);
    }
    host(&format!("sha256sum <{}/bulk", share.display()));
    let file = fs::File::open(share.join("bulk"))?;
    let sum = packages::output(std::process::Command::new("sha256sum").stdin(file))?;
    said(&sum);
    ensure!(
        sums.iter().all(|other| *other == sum),
        "the sums differ: {sums:?}"
    );

    heading("All unmount and power off");
    for (name, guest) in guests.guests() {
        typed(name, guest, "umount /mnt")?;
    }
    let ThreeGuests { uml, qemu, far, .. } = guests;
    for guest in [uml, qemu, far] {
        guest.power_off()?;
    }
    println!();
    Ok(())
}

/// Runs `command` in the guest called `name` and shows it with what it printed.
fn typed(name: &str, guest: &mut Guest, command: &str) -> Result<String> {
    println!("   {:<6} {command}", format!("{name}#"));
    let output = during("the guest works", || guest.sh(command))?;
    said(&output);
    Ok(output)
}
