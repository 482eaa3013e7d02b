//! The cache of downloaded and built guest material.

use std::fs::{self, File};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;

/// The workspace's root directory.
#[must_use]
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// Cargo's target directory: `$CARGO_TARGET_DIR`, or `target` in the workspace.
#[must_use]
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}

/// The cache directory, `$GANGPLANK_CACHE` or `guest-cache` in the target directory, created.
///
/// # Errors
/// When it cannot be created.
pub fn dir() -> Result<PathBuf> {
    let dir = match std::env::var_os("GANGPLANK_CACHE") {
        Some(dir) => workspace().join(dir),
        None => target_dir().join("guest-cache"),
    };
    fs::create_dir_all(&dir)
        .with_context(|| format!("creating the guest cache {}", dir.display()))?;
    Ok(dir)
}

/// How somebody at a terminal is told what is made for the cache.
static TELL: OnceLock<fn(&str)> = OnceLock::new();

/// Has `tell` tell somebody at a terminal what is made for the cache, in place of a line on
/// standard error. The first call counts.
pub fn tell_by(tell: fn(&str)) {
    let _ = TELL.set(tell);
}

/// Makes `<cache>/<name>` by `make` unless an earlier run has already done so.
///
/// `make` gets a path that does not exist yet and leaves a file or directory there. It is moved
/// into place only when complete, so that an interrupted run leaves nothing half done. One process
/// at a time makes an entry.
///
/// # Errors
/// What `make` said, or why the result could not be put in place.
pub fn once(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let wanted = dir()?.join(name);
    if wanted.exists() {
        return Ok(wanted);
    }
    let parent = wanted.parent().unwrap_or(&wanted);
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    // A lock per entry: entries may be made out of other entries.
    let lock_path = beside(&wanted, "lock");
    let lock =
        File::create(&lock_path).with_context(|| format!("opening {}", lock_path.display()))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)
        .with_context(|| format!("locking {}", lock_path.display()))?;
    if wanted.exists() {
        return Ok(wanted);
    }
    let making = beside(&wanted, "part");
    if making.is_dir() {
        fs::remove_dir_all(&making)?;
    } else if making.exists() {
        fs::remove_file(&making)?;
    }
    // Downloads and builds take minutes, in which somebody at a terminal would see nothing.
    if std::io::stderr().is_terminal() {
        let text = format!("(once: making {name} for the guest cache)");
        TELL.get_or_init(|| |text| eprintln!("{text}"))(&text);
    }
    make(&making).with_context(|| format!("making {} for the guest cache", wanted.display()))?;
    fs::rename(&making, &wanted)
        .with_context(|| format!("putting {} in place", wanted.display()))?;
    Ok(wanted)
}

/// The path with `.<suffix>` appended to its last component.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}
