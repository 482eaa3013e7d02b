//! Manual pages, shell completions and the reference of the documentation, all generated from the
//! programs' command lines.

pub mod completions;
pub mod page;
pub mod programs;
pub mod reference;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Writes `text` into `directory`, which is created if it is missing.
fn write(directory: &Path, name: &str, text: &[u8]) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let path = directory.join(name);
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}
