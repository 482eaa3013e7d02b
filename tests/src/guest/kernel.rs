//! Stock Debian guest kernels and the modules a virtio-fs guest needs from them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::packages::{self, Arch};

/// The Debian kernel of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The release's own cloud kernel (bookworm: 6.1, one request queue in its virtio-fs driver).
    Stable,
    /// 6.12, which uses as many request queues as the device offers.
    Linux6_12,
    /// 6.12 with pages of 16 KiB (arm64 alone).
    Pages16K,
    /// The release's kernel for all machines, which has file systems that the cloud kernel lacks:
    /// 9P.
    General,
}

/// A kernel image with its modules.
pub struct Kernel {
    /// The image that the hypervisor loads, or the program itself for User Mode Linux.
    pub image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// A kernel of Debian's for `arch`.
    ///
    /// # Errors
    /// When the package cannot be had or holds no kernel.
    pub fn debian(arch: Arch, release: Release) -> Result<Self> {
        let meta = match release {
            Release::Stable => format!("linux-image-cloud-{}", arch.debian()),
            Release::Linux6_12 => format!("linux-image-6.12-cloud-{}", arch.debian()),
            Release::Pages16K => format!("linux-image-6.12-{}-16k", arch.debian()),
            Release::General => format!("linux-image-{}", arch.debian()),
        };
        let package = packages::first_dependency(&meta, arch)?;
        let tree = packages::unpacked(&package, arch)?;
        Ok(Self {
            image: find(&tree.join("boot"), "vmlinuz-")?,
            modules: find(&tree.join("lib/modules"), "")?,
        })
    }

    /// Debian's User Mode Linux.
    ///
    /// # Errors
    /// When the package cannot be had or holds no kernel.
    pub fn uml() -> Result<Self> {
        let tree = packages::unpacked("user-mode-linux", Arch::Amd64)?;
        Ok(Self {
            image: find(&tree.join("usr/bin"), "linux.uml")?,
            modules: find(&tree.join("usr/lib/uml/modules"), "")?,
        })
    }

    /// The kernel's release string, as `uname -r` prints it.
    #[must_use]
    pub fn release(&self) -> String {
        let name = self.modules.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The named modules with all they depend on, each after its dependencies, uncompressed.
    /// A name without a file is built into the kernel and left out.
    ///
    /// # Errors
    /// When a module cannot be read or decompressed.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = BTreeMap::new();
        index(&self.modules.join("kernel"), &mut files)?;
        let mut loaded = Vec::new();
        for name in names {
            load(name, &files, &mut loaded)?;
        }
        Ok(loaded)
    }
}

/// Appends `name`, after what it depends on, unless it is there already.
fn load(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    loaded: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    let name = name.replace('-', "_");
    if loaded.iter().any(|(other, _)| *other == name) {
        return Ok(());
    }
    let Some(path) = files.get(&name) else {
        return Ok(());
    };
    let content = read_module(path)?;
    for dependency in dependencies(&content) {
        load(&dependency, files, loaded)?;
    }
    loaded.push((name, content));
    Ok(())
}

/// The names in the module's `depends=` entry of its `.modinfo` section.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module.get(at + KEY.len()..).unwrap_or_default();
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(0);
    String::from_utf8_lossy(value.get(..end).unwrap_or_default())
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        let done = Command::new("xz")
            .arg("-dc")
            .arg(path)
            .output()
            .context("running xz")?;
        ensure!(
            done.status.success(),
            "xz could not read {}",
            path.display()
        );
        return Ok(done.stdout);
    }
    fs::read(path).with_context(|| format!("reading kernel module {}", path.display()))
}

/// Every module below `dir` by its name, dashes as underscores.
fn index(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            index(&path, files)?;
            continue;
        }
        let file_name = entry.file_name();
        let file_name = file_name.to_string_lossy();
        if let Some((name, "ko" | "ko.xz")) = file_name.split_once('.') {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// The entry of `dir` whose name starts with `prefix`.
fn find(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .with_context(|| format!("listing {}", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .collect();
    found.sort();
    found
        .pop()
        .with_context(|| format!("nothing named {prefix}* in {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let module = b"\x7fELF..\0license=GPL\0depends=fuse,virtio_ring\0retpoline=Y\0";
        assert_eq!(dependencies(module), ["fuse", "virtio_ring"]);
    }

    #[test]
    fn dependencies_of_a_module_that_needs_nothing_are_none() {
        assert!(dependencies(b"\0license=GPL\0depends=\0name=fuse\0").is_empty());
        assert!(dependencies(b"no module at all").is_empty());
    }
}
