//! Small file systems of the host's kernel, for tests that fill them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

use crate::packages;

/// The kind of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Memory, 8 MiB.
    Tmpfs,
    /// ext4 on a loop device, 32 MiB.
    Ext4,
    /// XFS on a loop device, 300 MiB, its minimum.
    Xfs,
    /// ext4 of 64 MiB on a loop device whose image has 12 MiB of space. It accepts more than it can
    /// store, and fails at write-back.
    Thin,
}

/// A mounted file system, unmounted when dropped. Mounting needs root.
pub struct Disk {
    mount: PathBuf,
    /// The disk that holds the image, if it has one of its own.
    below: Option<Box<Disk>>,
    /// Where the mount point is, if it was made for the file system.
    dir: Option<TempDir>,
}

impl Disk {
    /// Makes a file system and mounts it.
    ///
    /// # Errors
    /// When the programs that do so are missing or fail.
    pub fn new(kind: Kind) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-disk-")
            .tempdir()?;
        let mut below = None;
        let (mount, mut image) = (dir.path().join("mnt"), dir.path().join("image"));
        std::fs::create_dir(&mount)?;
        let mut command = Command::new("mount");
        match kind {
            Kind::Tmpfs => return Self::tmpfs(8),
            Kind::Ext4 => {
                // No reserved blocks for root, who runs the daemon.
                make(&image, 32 << 20, "mkfs.ext4", &["-q", "-m", "0"])?;
                command.args(["-o", "loop"]).arg(&image)
            }
            Kind::Xfs => {
                make(&image, 300 << 20, "mkfs.xfs", &["-q"])?;
                command.args(["-o", "loop"]).arg(&image)
            }
            Kind::Thin => {
                let store = below.insert(Box::new(Self::tmpfs(12)?));
                image = store.path().join("image");
                // A journal without space would end the whole file system.
                let options = ["-q", "-m", "0", "-O", "^has_journal"];
                make(&image, 64 << 20, "mkfs.ext4", &options)?;
                command.args(["-o", "loop"]).arg(&image)
            }
        };
        packages::run(command.arg(&mount)).context("mounting a file system")?;
        Ok(Self {
            mount,
            below,
            dir: Some(dir),
        })
    }

    fn tmpfs(mebibytes: u32) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-disk-")
            .tempdir()?;
        let mount = dir.path().join("mnt");
        std::fs::create_dir(&mount)?;
        let mut disk = Self::tmpfs_at(&mount, mebibytes)?;
        disk.dir = Some(dir);
        Ok(disk)
    }

    /// Mounts memory of `mebibytes` MiB on the directory `mount`, which must outlive it.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn tmpfs_at(mount: &Path, mebibytes: u32) -> Result<Self> {
        let size = format!("size={mebibytes}M");
        let mut command = Command::new("mount");
        command
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(mount);
        packages::run(&mut command).context("mounting a tmpfs")?;
        Ok(Self {
            mount: mount.to_owned(),
            below: None,
            dir: None,
        })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A daemon that still uses the mount keeps it, but not the directory.
        let _ = unmount(&self.mount, UnmountFlags::DETACH);
        drop(self.below.take());
    }
}

/// Makes a file system of `bytes` in a new image.
///
/// # Errors
/// When `program` is missing or fails.
pub fn make(image: &Path, bytes: u64, program: &str, arguments: &[&str]) -> Result<()> {
    let file = std::fs::File::create(image)?;
    file.set_len(bytes)?;
    packages::run(Command::new(program).args(arguments).arg(image))
        .with_context(|| format!("{program} on an empty image"))
}
