//! The guest's first file system: busybox, kernel modules, an init that serves the host.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::kernel::Kernel;
use crate::packages::{self, Arch};

/// Modules that some kernel builds in and another does not.
const MODULES: [&str; 6] = [
    "virtio_pci",
    "virtio_mmio",
    "fuse",
    "virtiofs",
    "9pnet_virtio",
    "9p",
];

/// Serves commands on the console; also put into a root file system on the share.
pub const AGENT: &str = include_str!("agent.sh");
const INIT: &str = include_str!("init.sh");

/// Accounts that guest programs look up; the ids are Debian's.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
     daemon:x:1:1:daemon:/:/bin/sh\n\
     bin:x:2:2:bin:/:/bin/sh\n\
     games:x:5:60:games:/:/bin/sh\n\
     nobody:x:65534:65534:nobody:/:/bin/sh\n";
const GROUP: &str =
    "root:x:0:\ndaemon:x:1:\nbin:x:2:\ngames:x:60:\nusers:x:100:\nnogroup:x:65534:\n";

/// A file put into the initramfs besides the usual ones.
#[derive(Clone, Debug)]
pub struct Extra {
    /// Path in the guest, without leading slash, in a directory that exists (`bin`, `etc`, or the
    /// root).
    pub guest: String,
    /// The file on the host.
    pub host: PathBuf,
    /// Permission bits.
    pub mode: u32,
}

/// Writes an uncompressed initramfs for `kernel` to `path`, with `modules` beside the usual ones.
///
/// # Errors
/// When busybox or a module cannot be had, or writing fails.
pub fn write(
    path: &Path,
    kernel: &Kernel,
    arch: Arch,
    modules: &[&str],
    extras: &[Extra],
) -> Result<()> {
    let busybox = packages::unpacked("busybox-static", arch)?.join("bin/busybox");
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    for (name, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("mnt", 0o755),
        ("modules", 0o755),
        ("newroot", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("run", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("var", 0o755),
    ] {
        archive.directory(name, mode)?;
    }
    // The kernel opens the console for init before devtmpfs is mounted.
    archive.character("dev/console", 0o600, (5, 1))?;
    archive.symlink("sbin", "bin")?;
    archive.symlink("usr/bin", "../bin")?;
    archive.symlink("usr/sbin", "../bin")?;
    archive.file("bin/busybox", 0o755, &read(&busybox)?)?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    archive.file("agent", 0o755, AGENT.as_bytes())?;
    archive.file("etc/passwd", 0o644, PASSWD.as_bytes())?;
    archive.file("etc/group", 0o644, GROUP.as_bytes())?;
    let modules = [&MODULES, modules].concat();
    for (order, (name, content)) in kernel.modules(&modules)?.iter().enumerate() {
        archive.file(&format!("modules/{order:02}-{name}.ko"), 0o644, content)?;
    }
    for extra in extras {
        archive.file(&extra.guest, extra.mode, &read(&extra.host)?)?;
    }
    archive
        .finish()
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}
