//! A directory that workloads are timed on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// One file system's directory, and the system tree whose programs work on it.
pub(crate) struct WorkDir {
    name: String,
    directory: PathBuf,
    root: PathBuf,
    percent: u32,
    drop_caches: bool,
}

impl WorkDir {
    /// A directory whose workloads have `percent` of their usual size. `drop_caches` allows this
    /// program to drop the kernel's caches.
    pub(crate) const fn new(
        name: String,
        directory: PathBuf,
        root: PathBuf,
        percent: u32,
        drop_caches: bool,
    ) -> Self {
        Self {
            name,
            directory,
            root,
            percent,
            drop_caches,
        }
    }

    /// Its name in the results.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// `path` beneath the directory.
    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.directory.join(path)
    }

    /// The scaled number of repetitions, at least one.
    pub(crate) fn scaled(&self, usual: u32) -> u32 {
        (usual.saturating_mul(self.percent) / 100).max(1)
    }

    /// A path outside the directory, for a workload's input. Programs see it in `/tmp`.
    pub(crate) fn aside(&self, name: &str) -> PathBuf {
        self.root.join("tmp").join(name)
    }

    /// Removes everything in the directory.
    pub(crate) fn clear(&self) -> Result<()> {
        for entry in fs::read_dir(&self.directory)
            .with_context(|| format!("listing {}", self.directory.display()))?
        {
            let entry = entry?;
            let path = entry.path();
            let removed = if entry.file_type()?.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(())
    }

    /// Drops the kernel's caches of files, if this program may.
    pub(crate) fn forget_caches(&self) -> Result<()> {
        if self.drop_caches {
            fs::write("/proc/sys/vm/drop_caches", "3").context("dropping the kernel's caches")?;
        }
        Ok(())
    }

    /// Runs shell text with the programs of the system tree, in this directory.
    pub(crate) fn shell(&self, text: &str) -> Result<String> {
        let inside = self
            .directory
            .strip_prefix(&self.root)
            .context("the directory is not beneath the programs' tree")?;
        let text = format!("cd '/{}' && {text}", inside.display());
        let output = Command::new("/usr/sbin/chroot")
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/tmp")
            .env("LC_ALL", "C")
            .arg(&self.root)
            .args(["/bin/sh", "-c", &text])
            .output()
            .context("running chroot")?;
        ensure!(
            output.status.success(),
            "{text}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
