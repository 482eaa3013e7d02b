//! A small Debian system as a directory tree, for programs that the initramfs lacks, and as a root
//! file system.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache;
use crate::guest::initramfs;
use crate::packages::{self, Arch};

/// The packages of the tree. Their dependencies are added.
const PACKAGES: [&str; 20] = [
    "base-files",
    "bash",
    "busybox",
    "coreutils",
    "dash",
    "debianutils",
    "diffutils",
    "findutils",
    "fio",
    "git",
    "grep",
    "gzip",
    "libc6-dev",
    "mount",
    "procps",
    "sed",
    "sqlite3",
    "tar",
    "tcc",
    "util-linux",
];

/// Accounts that programs look up; the ids are Debian's.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
    games:x:5:60:games:/:/bin/sh\n\
    nobody:x:65534:65534:nobody:/:/bin/sh\n";
const GROUP: &str = "root:x:0:\ngames:x:60:\nnogroup:x:65534:\n";

/// Accounts of rpcbind and rpc.statd.
const NFS_PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    _rpc:x:106:65534::/run/rpcbind:/usr/sbin/nologin\n\
    statd:x:107:65534::/var/lib/nfs:/usr/sbin/nologin\n\
    nobody:x:65534:65534:nobody:/:/bin/sh\n";

/// Commands that maintainer scripts choose a program for.
const LINKS: [(&str, &str); 2] = [("sh", "dash"), ("which", "which.debianutils")];

/// The agent's name in the tree.
const AGENT: &str = "gangplank-agent";

/// Copies the tree for `arch` to `destination`, which must not exist yet. As root its files belong
/// to whom Debian gives them.
///
/// # Errors
/// When packages cannot be had or the copy fails.
pub fn copy_to(destination: &Path, arch: Arch) -> Result<()> {
    copy_with(destination, arch, &[])
}

/// [`copy_to`], with the packages `more` and their dependencies in the tree.
///
/// # Errors
/// As [`copy_to`].
pub fn copy_with(destination: &Path, arch: Arch, more: &[&str]) -> Result<()> {
    packages::run(
        Command::new("cp")
            .args(["-a", "--reflink=auto"])
            .arg(tree(arch, more)?)
            .arg(destination),
    )
}

/// The tree for `arch` itself, which nobody may change: for a share that guests can only read.
///
/// # Errors
/// When packages cannot be had.
pub fn read_only(arch: Arch) -> Result<PathBuf> {
    tree(arch, &[])
}

/// The packages of an NFS client's lock manager, and of programs that ask servers.
const NFS_CLIENT: [&str; 3] = ["netbase", "nfs-common", "rpcbind"];

/// Copies a tree with rpcbind, rpc.statd, sm-notify, showmount and rpcinfo to `destination`, which
/// must not exist yet.
///
/// # Errors
/// As [`copy_to`].
pub fn copy_nfs_client(destination: &Path, arch: Arch) -> Result<()> {
    packages::run(
        Command::new("cp")
            .args(["-a", "--reflink=auto"])
            .arg(nfs_client(arch)?)
            .arg(destination),
    )
}

/// The tree of [`copy_nfs_client`].
///
/// # Errors
/// When packages cannot be had.
pub fn nfs_client(arch: Arch) -> Result<PathBuf> {
    let mut recipe = DefaultHasher::new();
    (&NFS_CLIENT, NFS_PASSWD, GROUP).hash(&mut recipe);
    let name = format!("nfs-client-{}-{:016x}", arch.debian(), recipe.finish());
    cache::once(&name, |root| {
        packages::unpack_closure(&NFS_CLIENT, arch, root)?;
        // The following does the work of maintainer scripts.
        for name in ["dev", "proc", "sys", "run", "tmp", "root"] {
            fs::create_dir_all(root.join(name))?;
        }
        fs::write(root.join("etc/passwd"), NFS_PASSWD)?;
        fs::write(root.join("etc/group"), GROUP)?;
        Ok(())
    })
}

fn tree(arch: Arch, more: &[&str]) -> Result<PathBuf> {
    let packages = [&PACKAGES, more].concat();
    // The cache key changes with everything that makes the tree.
    let mut recipe = DefaultHasher::new();
    (&packages, PASSWD, GROUP, LINKS, initramfs::AGENT).hash(&mut recipe);
    let name = format!("debian-{}-{:016x}", arch.debian(), recipe.finish());
    cache::once(&name, |root| {
        packages::unpack_closure(&packages, arch, root)?;
        // The following does the work of maintainer scripts.
        for name in ["dev", "proc", "sys", "run", "tmp", "root"] {
            fs::create_dir_all(root.join(name))?;
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        for (name, target) in LINKS {
            let link = root.join("usr/bin").join(name);
            if fs::symlink_metadata(&link).is_err() {
                symlink(target, link)?;
            }
        }
        fs::write(root.join("etc/passwd"), PASSWD)?;
        fs::write(root.join("etc/group"), GROUP)?;
        fs::write(root.join(AGENT), initramfs::AGENT)
            .with_context(|| format!("writing the agent into {}", root.display()))?;
        Ok(())
    })
}
