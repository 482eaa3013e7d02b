//! Linux boots with the device trees, on a machine with the devices that they name.
//!
//! QEMU replaces Bao here: it has the same interrupt controller and timer at the same addresses,
//! takes PSCI calls by `smc` as Bao does, and has the UART and the virtio slots themselves. Only
//! the memory differs.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_tests::guest::cpio::Archive;
use gangplank_tests::guest::kernel::{Kernel, Release};
use gangplank_tests::packages::{self, Arch};
use gangplank_tests::{cache, process};

use crate::device_tree;

/// Limit for an emulated machine on a busy host.
const LIMIT: Duration = Duration::from_secs(180);

/// Loads the drivers, finds the console of the tree, and prints what Linux found.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod $module; done
console=/dev/$(sed 's/.*console=\\([^ ]*\\).*/\\1/' /proc/cmdline)
until (: >$console) 2>/dev/null; do sleep 0.1; done
exec >$console
echo model $(cat /proc/device-tree/model)
ls -1 /sys/bus/platform/devices
cat /proc/interrupts
echo told all
sleep 1
poweroff -f
";

/// Boots a machine with `source` as its device tree. Returns the console's output.
fn boot(source: &str) -> Result<String> {
    let place = tempfile::tempdir()?;
    let file = |name: &str| place.path().join(name);
    let kernel = Kernel::debian(Arch::Arm64, Release::Stable)?;
    write_initramfs(&file("initrd"), &kernel)?;
    let source = cache::workspace().join("configs/bao").join(source);
    fs::write(file("dtb"), device_tree::compile(&source)?)?;

    let mut command = process::tied("qemu-system-aarch64", None);
    command
        .current_dir(place.path())
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-machine", "virt,accel=tcg,virtualization=on,gic-version=3"])
        .args(["-cpu", "cortex-a53", "-m", "512M", "-no-reboot"])
        .args(["-serial", "file:uart", "-chardev", "file,id=hvc,path=hvc"])
        .args(["-device", "virtio-serial-device"])
        .args(["-device", "virtconsole,chardev=hvc"])
        .args(["-dtb", "dtb", "-initrd", "initrd", "-kernel"])
        .arg(&kernel.image);
    let mut machine = process::spawn(command)?;
    let status = process::wait_within(&mut machine, LIMIT);
    process::kill_group(&mut machine);
    let read =
        |name| fs::read(file(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let told = read("hvc")? + &read("uart")?;
    let status = status.with_context(|| told.clone())?;
    ensure!(status.success() && told.contains("told all"), "{told}");
    Ok(told)
}

fn write_initramfs(path: &Path, kernel: &Kernel) -> Result<()> {
    let busybox = packages::unpacked("busybox-static", Arch::Arm64)?.join("bin/busybox");
    let mut archive = Archive::new(BufWriter::new(File::create(path)?));
    for name in ["bin", "dev", "modules", "proc", "sys"] {
        archive.directory(name, 0o755)?;
    }
    archive.character("dev/console", 0o600, (5, 1))?;
    archive.file("bin/busybox", 0o755, &fs::read(busybox)?)?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    let modules = kernel.modules(&["virtio_mmio", "virtio_console"])?;
    for (order, (name, content)) in modules.iter().enumerate() {
        archive.file(&format!("modules/{order}-{name}"), 0o644, content)?;
    }
    archive.finish()?;
    Ok(())
}

/// The number of interrupts of a device, if it has that interrupt of the GIC.
fn interrupts(told: &str, intid: &str, device: &str) -> Option<u64> {
    let line = told.lines().find(|line| line.ends_with(device))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    words
        .get(1)?
        .parse()
        .ok()
        .filter(|_| words.contains(&intid))
}

#[test]
fn linux_runs_with_the_backend_vms_tree_and_finds_baos_driver_a_device() -> Result<()> {
    for (source, node) in [
        ("linux-backend.dts", "\n10000000.bao-io-dispatcher"),
        ("linux-backend-a.dts", "\nbao-virtio-intc"),
    ] {
        let told = boot(source)?.replace('\r', "");
        ensure!(told.contains("model Bao backend VM"), "{told}");
        ensure!(told.contains(node), "{told}");
        ensure!(told.contains("\na003000.virtio_mmio\n"), "{told}");
        ensure!(interrupts(&told, "79", "virtio0") > Some(0), "{told}");
    }
    Ok(())
}

/// QEMU has a virtio device where Bao has the file system.
#[test]
fn linux_runs_with_the_frontend_vms_tree_and_finds_the_virtio_device() -> Result<()> {
    let told = boot("linux-frontend.dts")?.replace('\r', "");
    ensure!(told.contains("model Bao frontend VM"), "{told}");
    ensure!(interrupts(&told, "79", "virtio0") > Some(0), "{told}");
    ensure!(interrupts(&told, "33", "uart-pl011").is_some(), "{told}");
    Ok(())
}
