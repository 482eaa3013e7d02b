//! git on a directory, independent of the host's configuration.

use std::fs;
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

/// Makes a repository of two commits with this many files in `path`, which is made as well.
///
/// # Errors
/// git fails, or the files cannot be written.
pub fn make_repository(path: &Path, files: usize) -> Result<()> {
    fs::create_dir_all(path)?;
    git(path, &["init", "--quiet"])?;
    for round in 0..2 {
        for number in 0..files {
            let dir = path.join(format!("dir-{}", number % 20));
            fs::create_dir_all(&dir)?;
            let content = format!("round {round} of file {number}\n").repeat(number + 1);
            fs::write(dir.join(format!("file-{number}")), content)?;
        }
        git(path, &["add", "."])?;
        git(path, &["commit", "--quiet", "-m", "round"])?;
    }
    Ok(())
}

/// The shell commands by which a guest clones `work/source` of the Debian tree at `tree` to
/// `work/clone`, checks every object, and goes on with the lines `then` in the clone.
#[must_use]
pub fn clone_in_guest(tree: &str, then: &[&str]) -> String {
    let then = then.join("\n");
    format!(
        "cat >{tree}/work/script <<'END'\n\
         set -e\n\
         export HOME=/work GIT_AUTHOR_NAME=g GIT_AUTHOR_EMAIL=g@g GIT_COMMITTER_NAME=g \
         GIT_COMMITTER_EMAIL=g@g\n\
         cd /work\n\
         git clone --quiet --no-local source clone\n\
         cd clone\n\
         git fsck --full --strict\n\
         {then}\n\
         END\n\
         chroot {tree} /bin/bash /work/script"
    )
}
