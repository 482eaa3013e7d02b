//! git on a directory, independent of the host's configuration.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::packages;

/// Runs git in `path`. Returns its output.
///
/// # Errors
/// It cannot be run, or fails.
pub fn git(path: &Path, arguments: &[&str]) -> Result<String> {
    packages::output(
        Command::new("git")
            .arg("-C")
            .arg(path)
            .args(["-c", "user.name=g", "-c", "user.email=g@g"])
            .args(["-c", "safe.directory=*"])
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null"),
    )
}
