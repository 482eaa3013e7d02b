//! Writes benchmark results into a document, between two marks, and describes the machine.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

const END: &str = "<!-- end of results -->";

/// Replaces the text between the mark `begin` and the next end mark in the document at `path` with
/// `results`.
///
/// # Errors
/// The document cannot be read or written, or lacks the mark.
pub fn put(path: &Path, begin: &str, results: &str) -> Result<()> {
    let document = fs::read_to_string(path);
    let document = document.with_context(|| format!("reading {}", path.display()))?;
    let filled = fill(&document, begin, results)
        .with_context(|| format!("{} lacks the mark for results: {begin}", path.display()))?;
    fs::write(path, filled).with_context(|| format!("writing {}", path.display()))
}

/// The path beside `path` with `suffix` appended to the file's stem.
#[must_use]
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default();
    path.with_file_name(format!("{stem}{suffix}"))
        .with_extension(extension)
}

fn fill(document: &str, begin: &str, results: &str) -> Option<String> {
    let (before, rest) = document.split_once(begin)?;
    let (_, after) = rest.split_once(END)?;
    let results = results.trim();
    Some(format!("{before}{begin}\n\n{results}\n\n{END}{after}"))
}

/// The machine that results depend on.
#[derive(Debug, Serialize)]
pub struct Machine {
    processor: String,
    processors: usize,
    kernel: String,
}

impl Machine {
    /// The machine that this program runs on.
    #[must_use]
    pub fn this() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find(|line| line.starts_with("model name"));
        let model = model.and_then(|line| line.split_once(": "));
        let uname = rustix::system::uname();
        Self {
            processor: model.map_or("unknown", |(_, model)| model).to_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: uname.release().to_string_lossy().into_owned(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            processor,
            processors,
            kernel,
        } = self;
        write!(f, "{processor}, {processors} processors, Linux {kernel}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_replace_results_of_their_mark_and_nothing_else() {
        let [one, other] = ["<!-- one -->", "<!-- other -->"];
        let document =
            format!("# Speed\n{one}\n\nold\n\n{END}\nmore\n{other}\n\nthat\n\n{END}\nand more\n");
        let filled = fill(&document, one, "new").unwrap();
        assert_eq!(filled, document.replace("old", "new"));
        assert_eq!(fill(&filled, one, "new").as_ref(), Some(&filled));
        let filled = fill(&document, other, "new").unwrap();
        assert_eq!(filled, document.replace("that", "new"));
        assert_eq!(fill("# Speed", one, "new"), None);
    }
}
