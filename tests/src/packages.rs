//! Debian packages for guests: downloaded and unpacked as any user, never installed.
//!
//! apt runs on a private state directory inside the guest cache. So an ordinary user can fetch
//! packages, of a foreign architecture too, with their whole dependency closure, because no package
//! counts as installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::cache;

/// A Debian architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// `amd64`, Rust's `x86_64`.
    Amd64,
    /// `arm64`, Rust's `aarch64`.
    Arm64,
}

impl Arch {
    /// Debian's name of it.
    #[must_use]
    pub const fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Rust's triple for static programs on it.
    #[must_use]
    pub const fn musl_target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-musl",
            Self::Arm64 => "aarch64-unknown-linux-musl",
        }
    }
}

/// Where packages come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// The host's sources.
    Host,
    /// Debian 12 and its backports, which come first.
    Backports,
}

impl Suite {
    /// The name of its state in the guest cache.
    const fn state(self) -> &'static str {
        match self {
            Self::Host => "apt",
            Self::Backports => "apt-backports",
        }
    }
}

/// The sources of [`Suite::Backports`].
const BACKPORTS: &str = "\
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm-backports main
";

/// Downloads one package without its dependencies; returns the `.deb`.
///
/// # Errors
/// When apt does not know the package or cannot fetch it.
pub fn fetch(package: &str, arch: Arch) -> Result<PathBuf> {
    let dir = cache::once(&format!("debs/{package}_{}", arch.debian()), |dir| {
        fs::create_dir_all(dir)?;
        let wanted = format!("{package}:{}", arch.debian());
        run(apt("apt-get", Suite::Host)?
            .args(["download", &wanted])
            .current_dir(dir))
    })?;
    only_deb_in(&dir)
}

/// Downloads one package and unpacks its files; returns the directory that holds them.
///
/// # Errors
/// As [`fetch`], or when unpacking fails.
pub fn unpacked(package: &str, arch: Arch) -> Result<PathBuf> {
    cache::once(&format!("unpacked/{package}_{}", arch.debian()), |dir| {
        let deb = fetch(package, arch)?;
        fs::create_dir_all(dir)?;
        run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(dir))
    })
}

/// The package that the meta-package `package` stands for: its first dependency.
///
/// # Errors
/// When apt does not know it or it depends on nothing.
pub fn first_dependency(package: &str, arch: Arch) -> Result<String> {
    let name = format!("{package}:{}", arch.debian());
    let listing = output(apt("apt-cache", Suite::Host)?.args(["depends", &name]))?;
    let dependency = listing
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .with_context(|| format!("package {name} has no dependency"))?;
    let bare = dependency.split(':').next().unwrap_or(dependency);
    Ok(bare.to_owned())
}

/// Unpacks `packages` with everything they depend on into `tree`, a new directory that then looks
/// like a small Debian system (merged `/usr`, no maintainer script run).
///
/// # Errors
/// When a download or an extraction fails.
pub fn unpack_closure(packages: &[&str], arch: Arch, tree: &Path) -> Result<()> {
    unpack_closure_of(Suite::Host, packages, arch, tree)
}

/// [`unpack_closure`] of packages from `suite`.
///
/// # Errors
/// As [`unpack_closure`].
pub fn unpack_closure_of(suite: Suite, packages: &[&str], arch: Arch, tree: &Path) -> Result<()> {
    let root = state_dir(suite)?;
    let archives = tempfile::Builder::new()
        .prefix("closure")
        .tempdir_in(&root)?;
    fs::create_dir(archives.path().join("partial"))?;
    run(apt("apt-get", suite)?
        .args([
            "install",
            "-y",
            "--download-only",
            "--no-install-recommends",
            "-o",
        ])
        .arg(format!(
            "Dir::Cache::archives={}",
            archives.path().display()
        ))
        .args(
            packages
                .iter()
                .map(|name| format!("{name}:{}", arch.debian())),
        ))?;

    // The links that the usrmerge set-up of a real installation makes before the first package.
    for name in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(tree.join("usr").join(name))?;
        std::os::unix::fs::symlink(format!("usr/{name}"), tree.join(name))?;
    }
    for entry in fs::read_dir(archives.path())? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "deb") {
            continue;
        }
        let mut unpacking = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(&path)
            .stdout(Stdio::piped())
            .spawn()
            .context("running dpkg-deb")?;
        let archive = unpacking.stdout.take().context("dpkg-deb without output")?;
        run(Command::new("tar")
            .args([
                "--extract",
                "--preserve-permissions",
                "--keep-directory-symlink",
            ])
            .arg("--directory")
            .arg(tree)
            .stdin(archive))?;
        ensure!(
            unpacking.wait()?.success(),
            "dpkg-deb could not read {}",
            path.display()
        );
    }
    Ok(())
}

/// The private state directory, with package lists fetched by this or an earlier run.
fn state_dir(suite: Suite) -> Result<PathBuf> {
    cache::once(suite.state(), |dir| {
        for name in ["lists/partial", "archives/partial", "log"] {
            fs::create_dir_all(dir.join(name))?;
        }
        fs::write(dir.join("status"), "")?;
        fs::write(dir.join("sources.list"), BACKPORTS)?;
        let mut update = Command::new("apt-get");
        run(update.arg("update").args(options(dir, suite)))
    })
}

/// `apt-get` or `apt-cache` on the private state.
fn apt(program: &str, suite: Suite) -> Result<Command> {
    let mut command = Command::new(program);
    command.args(options(&state_dir(suite)?, suite));
    Ok(command)
}

fn options(dir: &Path, suite: Suite) -> Vec<String> {
    let dir = dir.display();
    let mut arguments = vec!["-qq".to_owned()];
    if suite == Suite::Backports {
        for setting in [
            &format!("Dir::Etc::sourcelist={dir}/sources.list"),
            "Dir::Etc::sourceparts=-",
            "APT::Default-Release=bookworm-backports",
        ] {
            arguments.extend(["-o".to_owned(), setting.to_owned()]);
        }
    }
    for setting in [
        format!("Dir::State::lists={dir}/lists"),
        format!("Dir::State::status={dir}/status"),
        format!("Dir::Cache={dir}"),
        format!("Dir::Log={dir}/log"),
        "APT::Architecture=amd64".to_owned(),
        "APT::Architectures=amd64,arm64".to_owned(),
        // apt's own download user could not write below a private directory.
        "APT::Sandbox::User=root".to_owned(),
        "Dpkg::Use-Pty=0".to_owned(),
    ] {
        arguments.push("-o".to_owned());
        arguments.push(setting);
    }
    arguments
}

fn only_deb_in(dir: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            return Ok(path);
        }
    }
    bail!("no package in {}", dir.display())
}

/// Runs `command` to a successful end.
///
/// # Errors
/// With the command line and its standard error when it cannot run or fails.
pub fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs `command` to a successful end; returns its standard output.
///
/// # Errors
/// As [`run`].
pub fn output(command: &mut Command) -> Result<String> {
    let done = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .with_context(|| format!("running {command:?}"))?;
    ensure!(
        done.status.success(),
        "{command:?} failed ({}): {}",
        done.status,
        String::from_utf8_lossy(&done.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
