//! A small Debian system as a directory tree: for programs that no initramfs holds, and to boot
//! from.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache;
use crate::guest::initramfs;
use crate::packages::{self, Arch};

/// What the tree is for; dependencies come along.
const PACKAGES: [&str; 9] = [
    "base-files",
    "bash",
    "coreutils",
    "dash",
    "diffutils",
    "fio",
    "git",
    "mount",
    "procps",
];

/// Where the tree keeps the agent that serves the host's commands.
const AGENT: &str = "gangplank-agent";

/// Copies the tree for `arch` to `destination`, which must not exist yet. As root its files belong
/// to whom Debian gives them.
///
/// # Errors
/// When packages cannot be had or the copy fails.
pub fn copy_to(destination: &Path, arch: Arch) -> Result<()> {
    packages::run(
        Command::new("cp")
            .args(["-a", "--reflink=auto"])
            .arg(tree(arch)?)
            .arg(destination),
    )
}

fn tree(arch: Arch) -> Result<PathBuf> {
    cache::once(&format!("debian-{}", arch.debian()), |root| {
        packages::unpack_closure(&PACKAGES, arch, root)?;
        // The rest is what maintainer scripts would have done.
        for name in ["dev", "proc", "sys", "run", "tmp", "root"] {
            fs::create_dir_all(root.join(name))?;
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        let shell = root.join("usr/bin/sh");
        if fs::symlink_metadata(&shell).is_err() {
            symlink("dash", &shell)?;
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
        )?;
        fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
        fs::write(root.join(AGENT), initramfs::AGENT)
            .with_context(|| format!("writing the agent into {}", root.display()))?;
        Ok(())
    })
}
