//! Patterns for names of the share.

use std::collections::HashSet;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};
use rustix::fs::FileType;

use super::copy::host_path;
use super::error::{Error, Result};
use super::path::{LastLink, Share, components, join, text};

/// Which words of a command are patterns if they have one of `*?[{`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Patterns {
    /// All.
    All,
    /// None.
    None,
    /// Those that are not quoted.
    Words(HashSet<Vec<u8>>),
}

/// Whether a word has a character that makes it a pattern.
pub(super) fn is_pattern(word: &[u8]) -> bool {
    word.iter().any(|byte| b"*?[{".contains(byte))
}

/// The pattern of one name.
///
/// # Errors
/// What is wrong with it.
pub(super) fn matcher(pattern: &str) -> Result<GlobMatcher> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    let glob = glob.map_err(|source| Error::Pattern {
        pattern: pattern.to_owned(),
        why: source.kind().to_string(),
    })?;
    Ok(glob.compile_matcher())
}

impl Share {
    /// The paths that a word of the command line means: itself, or those that it matches as a
    /// pattern, in the order of their bytes. A path that exists is no pattern. A pattern that
    /// matches nothing stays as it is. A colon at its beginning stays in front of each.
    pub(super) fn expand(&self, word: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (colon, path) = match word.strip_prefix(b":") {
            Some(path) => (&b":"[..], path),
            None => (&b""[..], word),
        };
        let is_there = |path: &[u8]| self.find(path, LastLink::Keep).is_ok();
        if !self.is_asked(word) || !is_pattern(path) || is_there(path) {
            return Ok(vec![word.to_vec()]);
        }
        let found = matching(path, is_there, |directory| {
            let Ok(node) = self.find(directory, LastLink::Follow) else {
                return Ok(Vec::new());
            };
            if node.kind() != FileType::Directory {
                return Ok(Vec::new());
            }
            let entries = self.entries(&node, &text(directory))?.into_iter();
            Ok(entries.map(|(name, _)| name).collect())
        })?;
        match found.is_empty() {
            true => Ok(vec![word.to_vec()]),
            false => Ok(found.iter().map(|path| [colon, path].concat()).collect()),
        }
    }

    /// As [`Share::expand`] for a path of the host, in a shell. Elsewhere the user's own shell has
    /// done it.
    pub(super) fn expand_on_host(&self, word: &[u8]) -> Result<Vec<Vec<u8>>> {
        let is_there = |path: &[u8]| host_path(path).symlink_metadata().is_ok();
        let is_in_shell = matches!(&*self.patterns.borrow(), Patterns::Words(_));
        if !is_in_shell || !self.is_asked(word) || is_there(word) {
            return Ok(vec![word.to_vec()]);
        }
        let found = matching(word, is_there, |directory| {
            let directory = match directory {
                b"" => Path::new("."),
                path => host_path(path),
            };
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            Ok(entries.map(|entry| entry.file_name().into_vec()).collect())
        })?;
        match found.is_empty() {
            true => Ok(vec![word.to_vec()]),
            false => Ok(found),
        }
    }

    fn is_asked(&self, word: &[u8]) -> bool {
        match &*self.patterns.borrow() {
            Patterns::All => true,
            Patterns::None => false,
            Patterns::Words(words) => words.contains(word),
        }
    }

    /// All words, expanded.
    pub(super) fn expand_all<'w>(
        &self,
        words: impl IntoIterator<Item = &'w [u8]>,
    ) -> Result<Vec<Vec<u8>>> {
        let mut paths = Vec::new();
        for word in words {
            paths.extend(self.expand(word)?);
        }
        Ok(paths)
    }
}

/// The paths that match a pattern, in the order of their bytes. `names` lists a directory: none if
/// it is no directory.
fn matching(
    path: &[u8],
    is_there: impl Fn(&[u8]) -> bool,
    names: impl Fn(&[u8]) -> Result<Vec<Vec<u8>>>,
) -> Result<Vec<Vec<u8>>> {
    let start = match path.starts_with(b"/") {
        true => b"/".to_vec(),
        false => Vec::new(),
    };
    let mut found = vec![start];
    for name in components(path) {
        let mut below = Vec::new();
        for directory in &found {
            if !is_pattern(&name) {
                let path = join(directory, &name);
                if is_there(&path) {
                    below.push(path);
                }
                continue;
            }
            // Bytes that are no UTF-8 match any character.
            let pattern = String::from_utf8_lossy(&name).replace(char::REPLACEMENT_CHARACTER, "?");
            let matcher = matcher(&pattern)?;
            for there in names(directory)? {
                let is_hidden = there.starts_with(b".") && !name.starts_with(b".");
                if !is_hidden && matcher.is_match(host_path(&there)) {
                    below.push(join(directory, &there));
                }
            }
        }
        found = below;
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_name_by_name() {
        let tree: [(&[u8], &[&[u8]]); 3] = [
            (b"", &[b"a", b"b", b".hidden", b"c.txt"]),
            (b"a", &[b"x.c", b"y.c", b"\xff.c"]),
            (b"b", &[b"x.c", b"z"]),
        ];
        let names = |directory: &[u8]| {
            let found = tree.iter().find(|(path, _)| *path == directory);
            let names = found.map_or(&[][..], |(_, names)| names).iter();
            Ok(names.map(|name| name.to_vec()).collect())
        };
        let is_there =
            |path: &[u8]| tree.iter().any(|(_, names)| names.contains(&path)) || path == b"b/z";
        for (pattern, expected) in [
            (&b"*"[..], &[&b"a"[..], b"b", b"c.txt"][..]),
            (b".*", &[b".hidden"]),
            (b"*/x.[a-c]", &[b"a/x.c", b"b/x.c"]),
            (b"a/{x,y}.c", &[b"a/x.c", b"a/y.c"]),
            (b"a/?.c", &[b"a/x.c", b"a/y.c", b"a/\xff.c"]),
            (b"*/z", &[b"b/z"]),
            (b"[!ab]", &[]),
        ] {
            let found = matching(pattern, is_there, names).unwrap();
            assert_eq!(found, expected, "{}", text(pattern));
        }
        assert!(matching(b"[a", is_there, names).is_err());
    }
}
