//! A machine whose first process is systemd, for what services and their manager do together: a
//! small Debian system on a disk, emulated by QEMU.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::guest::{Guest, Machine, Options, Role, initramfs};
use crate::packages::{self, Suite};
use crate::{cache, disk};

/// The packages of the system. Their dependencies are added. No D-Bus: systemctl has a socket of
/// systemd's own.
const PACKAGES: [&str; 16] = [
    "base-files",
    "coreutils",
    "dash",
    "diffutils",
    "dpkg",
    "findutils",
    "grep",
    // For ldconfig, which dpkg looks for.
    "libc-bin",
    "mount",
    "procps",
    "sed",
    "systemd",
    "systemd-sysv",
    "tar",
    // In place of usrmerge, which needs Perl.
    "usr-is-merged",
    "util-linux",
];

/// The accounts that no package of systemd makes.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n";
const GROUP: &str = "root:x:0:\n";

/// The unit that serves the host's commands.
const AGENT_UNIT: &str = "[Unit]\n\
    Description=Commands of the host\n\
    [Service]\n\
    ExecStart=/bin/sh /gangplank-agent\n\
    Environment=HOME=/root\n\
    StandardInput=tty-force\n\
    StandardOutput=tty\n\
    TTYPath=/dev/ttyS0\n";

/// Units that take time, or need programs that the system lacks.
const MASKED: [&str; 14] = [
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "getty.target",
    "ldconfig.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-logind.service",
    "systemd-random-seed.service",
    "systemd-update-utmp.service",
    "systemd-user-sessions.service",
];

/// A link to no file.
const NOTHING: &str = "/dev/null";

/// Bytes of the disk.
const DISK: u64 = 768 << 20;

/// Bytes of the disk with files of the test.
const FILES: u64 = 192 << 20;

/// Where the machine has the files of the test.
pub const MOUNT: &str = "/mnt";

/// A running machine.
pub struct SystemdHost {
    /// What serves its commands.
    pub guest: Guest,
    /// Its disks.
    _directory: TempDir,
}

impl SystemdHost {
    /// Boots it with systemd of `suite`, and `files` in [`MOUNT`]. Needs root.
    ///
    /// # Errors
    /// Packages cannot be had, or it does not boot.
    pub fn boot(suite: Suite, files: &[(&str, &Path)]) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("gangplank-systemd-")
            .tempdir()?;
        let root = directory.path().join("root");
        packages::run(
            Command::new("cp")
                .args(["--sparse=always", "--reflink=auto"])
                .arg(image(suite)?)
                .arg(&root),
        )?;
        let source = directory.path().join("files");
        fs::create_dir(&source)?;
        for (name, path) in files {
            fs::copy(path, source.join(name)).with_context(|| path.display().to_string())?;
        }
        let second = directory.path().join("disk");
        make_disk(&second, FILES, &source)?;
        let mut guest = Guest::boot(&Options {
            role: Role::Systemd,
            disks: vec![root, second],
            memory_mib: 1024,
            processors: 2,
            modules: vec!["virtio_blk", "crc32c_generic", "ext4"],
            kernel_words: vec!["systemd.show_status=no"],
            ..Options::new(Machine::QemuX86_64)
        })?;
        guest.sh(&format!("mount -o ro /dev/vdb {MOUNT}"))?;
        Ok(Self {
            guest,
            _directory: directory,
        })
    }
}

/// Makes a disk with the files of a directory.
fn make_disk(image: &Path, bytes: u64, directory: &Path) -> Result<()> {
    let directory = directory.to_str().context("a path that is no text")?;
    let arguments = ["-q", "-m", "0", "-O", "^has_journal", "-d", directory];
    disk::make(image, bytes, "mkfs.ext4", &arguments)
}

/// The disk of a system that was never booted.
fn image(suite: Suite) -> Result<PathBuf> {
    let arch = Machine::QemuX86_64.arch();
    let mut recipe = DefaultHasher::new();
    (PACKAGES, PASSWD, GROUP, AGENT_UNIT, MASKED, DISK).hash(&mut recipe);
    initramfs::AGENT.hash(&mut recipe);
    let name = format!("systemd-{suite:?}-{:016x}", recipe.finish()).to_lowercase();
    cache::once(&name, |image| {
        let parent = tempfile::tempdir()?;
        let tree = parent.path();
        packages::unpack_closure_of(suite, &PACKAGES, arch, tree)?;
        for name in ["share/doc", "share/man", "share/locale"] {
            let path = tree.join("usr").join(name);
            fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        }
        set_up(tree)?;
        make_disk(image, DISK, tree)
    })
}

/// Does the work of maintainer scripts.
fn set_up(tree: &Path) -> Result<()> {
    let units = tree.join("etc/systemd/system");
    let wanted = units.join("multi-user.target.wants");
    for name in ["dev", "proc", "sys", "run", "tmp", "root", "srv", "mnt"] {
        fs::create_dir_all(tree.join(name))?;
    }
    for name in ["info", "updates", "triggers"] {
        fs::create_dir_all(tree.join("var/lib/dpkg").join(name))?;
    }
    fs::create_dir_all(&wanted)?;
    for (name, text) in [
        ("var/lib/dpkg/status", ""),
        ("etc/passwd", PASSWD),
        ("etc/group", GROUP),
        ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
        ("gangplank-agent", initramfs::AGENT),
        ("etc/systemd/system/agent.service", AGENT_UNIT),
    ] {
        let path = tree.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    symlink("../agent.service", wanted.join("agent.service"))?;
    symlink(
        "/lib/systemd/system/multi-user.target",
        units.join("default.target"),
    )?;
    for name in MASKED {
        symlink(NOTHING, units.join(name))?;
    }
    let shell = tree.join("usr/bin/sh");
    if fs::symlink_metadata(&shell).is_err() {
        symlink("dash", shell)?;
    }
    packages::run(Command::new("systemd-sysusers").arg(format!("--root={}", tree.display())))?;
    // Newer than /usr, so that no unit brings /etc and /var up to date.
    for name in ["etc/.updated", "var/.updated"] {
        fs::write(tree.join(name), "")?;
    }
    Ok(())
}
