//! What io-trace and the tests that read its output share: cases, test data, names of errors.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use anyhow::{Context, Result};
use rustix::io::Errno;

/// Bytes of a block whose content is printed as one word.
pub const BLOCK: usize = 4096;

/// One run of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// A unique number, which is in the names of its files.
    pub id: u32,
    /// The script's name.
    pub script: String,
    /// Bytes of each transfer.
    pub block: usize,
    /// Bytes to read or write in total.
    pub size: usize,
}

impl Case {
    /// The file that is read or written.
    #[must_use]
    pub fn file(&self) -> String {
        format!("file-{}", self.id)
    }

    /// The file that the other is copied to.
    #[must_use]
    pub fn copy(&self) -> String {
        format!("copy-{}", self.id)
    }

    /// The directory that is listed.
    #[must_use]
    pub fn directory(&self) -> String {
        format!("directory-{}", self.id)
    }

    /// The name that is looked up before the script.
    #[must_use]
    pub fn begin(&self) -> String {
        format!(".trace-begin-{}", self.id)
    }

    /// The name that is looked up after the script.
    #[must_use]
    pub fn end(&self) -> String {
        format!(".trace-end-{}", self.id)
    }

    /// The name that is looked up after the file was read again.
    #[must_use]
    pub fn reread(&self) -> String {
        format!(".trace-reread-{}", self.id)
    }
}

impl Display for Case {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}:{}:{}",
            self.id, self.script, self.block, self.size
        )
    }
}

impl FromStr for Case {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split(':');
        let mut next = || parts.next().context("a case is ID:SCRIPT:BLOCK:SIZE");
        Ok(Self {
            id: next()?.parse()?,
            script: next()?.to_owned(),
            block: next()?.parse()?,
            size: next()?.parse()?,
        })
    }
}

/// A version of a file's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The data before the script.
    Old,
    /// The data that the script writes.
    New,
}

/// The bytes of a version at `offset`. They differ from place to place, so that a shifted or
/// repeated block shows.
#[must_use]
pub fn pattern(version: Version, offset: u64, length: usize) -> Vec<u8> {
    let salt = match version {
        Version::Old => 0x51,
        Version::New => 0xa7,
    };
    // Word by word, because tests make many megabytes of it.
    let skipped = usize::from(offset.to_le_bytes()[0] % 8);
    let mut bytes = Vec::with_capacity(skipped + length + 8);
    let mut word = offset / 8 + salt;
    while bytes.len() < skipped + length {
        bytes.extend(word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        word += 1;
    }
    bytes.truncate(skipped + length);
    bytes.drain(..skipped);
    bytes
}

/// The content of each block of a file: `old`, `new`, `zero`, or a checksum of anything else.
#[must_use]
pub fn describe(content: &[u8]) -> Vec<String> {
    let mut offset = 0;
    let mut described = Vec::new();
    for block in content.chunks(BLOCK) {
        described.push(if block == pattern(Version::Old, offset, block.len()) {
            "old".to_owned()
        } else if block == pattern(Version::New, offset, block.len()) {
            "new".to_owned()
        } else if block.iter().all(|byte| *byte == 0) {
            "zero".to_owned()
        } else {
            // FNV-1a.
            let sum = block.iter().fold(0x811c_9dc5_u32, |sum, byte| {
                (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
            });
            format!("{sum:08x}")
        });
        offset += block.len() as u64;
    }
    described
}

/// Joins equal consecutive lines: five times `read 1 = 1` becomes `read 1 = 1 x5`.
#[must_use]
pub fn folded(lines: &[String]) -> Vec<String> {
    lines
        .chunk_by(|one, other| one == other)
        .filter_map(|same| {
            let first = same.first()?;
            Some(match same.len() {
                1 => first.clone(),
                count => format!("{first} x{count}"),
            })
        })
        .collect()
}

/// The symbol of an errno that a test expects, or its number.
#[must_use]
pub fn errno_name(errno: Errno) -> String {
    let name = match errno {
        Errno::IO => "EIO",
        Errno::NOSPC => "ENOSPC",
        Errno::DQUOT => "EDQUOT",
        Errno::INTR => "EINTR",
        Errno::STALE => "ESTALE",
        Errno::FBIG => "EFBIG",
        Errno::NODEV => "ENODEV",
        Errno::INVAL => "EINVAL",
        Errno::NODATA => "ENODATA",
        Errno::NOENT => "ENOENT",
        Errno::OPNOTSUPP => "EOPNOTSUPP",
        Errno::XDEV => "EXDEV",
        _ => return format!("errno {}", errno.raw_os_error()),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_read_as_it_is_written() {
        let case = Case {
            id: 7,
            script: "read".to_owned(),
            block: 4096,
            size: 1 << 20,
        };
        assert_eq!(case.to_string().parse::<Case>().expect("parsed"), case);
        assert!("7:read:4096".parse::<Case>().is_err());
    }

    #[test]
    fn a_part_of_the_pattern_is_the_same_wherever_it_begins() {
        let whole = pattern(Version::New, 0, 100);
        for offset in 0..20 {
            let part = pattern(Version::New, offset as u64, 30);
            assert_eq!(part, whole[offset..offset + 30], "from {offset} on");
        }
    }

    #[test]
    fn blocks_are_told_apart() {
        let mut content = pattern(Version::Old, 0, 3 * BLOCK + 5);
        content[BLOCK..2 * BLOCK].copy_from_slice(&pattern(Version::New, 4096, BLOCK));
        content[2 * BLOCK..3 * BLOCK].fill(0);
        assert_eq!(describe(&content), ["old", "new", "zero", "old"]);
        content[0] ^= 1;
        assert_eq!(describe(&content)[0].len(), 8);
        let lines = ["a", "a", "b", "a"].map(str::to_owned);
        assert_eq!(folded(&lines), ["a x2", "b", "a"]);
    }
}
