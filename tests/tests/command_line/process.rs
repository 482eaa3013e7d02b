//! A process of the daemon as `/proc` shows it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A process, read from /proc.
pub(crate) struct Process(pub(crate) u32);

impl Process {
    pub(crate) fn read(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.0);
        fs::read_to_string(&path).with_context(|| format!("reading {path}"))
    }

    /// A field of its status, without the space around it.
    pub(crate) fn status(&self, field: &str) -> Result<String> {
        let status = self.read("status")?;
        status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .map(|value| value.trim().to_owned())
            .with_context(|| format!("no {field} in {status}"))
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.status("State")
            .is_ok_and(|state| !state.starts_with('Z'))
    }

    pub(crate) fn capabilities(&self, set: &str) -> Result<u64> {
        Ok(u64::from_str_radix(&self.status(set)?, 16)?)
    }

    pub(crate) fn namespace(&self, kind: &str) -> Result<PathBuf> {
        Ok(fs::read_link(format!("/proc/{}/ns/{kind}", self.0))?)
    }

    /// Its mount points, as it sees them.
    pub(crate) fn mounts(&self) -> Result<Vec<String>> {
        let mounts = self.read("mountinfo")?;
        Ok(mounts
            .lines()
            .filter_map(|line| line.split_whitespace().nth(4))
            .map(str::to_owned)
            .collect())
    }

    /// Its mount points as it sees them, with the options of each.
    pub(crate) fn mount_options(&self) -> Result<Vec<(String, Vec<String>)>> {
        let mounts = self.read("mountinfo")?;
        let mounts = mounts.lines().filter_map(|line| {
            let mut fields = line.split_whitespace().skip(4);
            let (point, options) = (fields.next()?, fields.next()?);
            Some((
                point.to_owned(),
                options.split(',').map(str::to_owned).collect(),
            ))
        });
        Ok(mounts.collect())
    }

    /// Whom the kernel ends first when memory runs out (proc(5)).
    pub(crate) fn oom_score_adj(&self) -> Result<i32> {
        Ok(self.read("oom_score_adj")?.trim().parse()?)
    }

    /// Whether this directory is its root.
    pub(crate) fn has_root(&self, directory: &Path) -> Result<bool> {
        let root = fs::metadata(format!("/proc/{}/root/.", self.0))?;
        let directory = fs::metadata(directory)?;
        Ok((root.dev(), root.ino()) == (directory.dev(), directory.ino()))
    }
}
