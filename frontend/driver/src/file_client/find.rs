//! `find`: files by name, type, size and time.

use std::io::{IsTerminal, Write};

use gangplank_service::output::Output;
use globset::{GlobBuilder, GlobMatcher};
use rustix::fs::FileType;

use super::copy::host_path;
use super::error::{Error, Failures, Result};
use super::listing::{Entries, MAX_DEPTH};
use super::path::{LastLink, Node, Share, join, split, text};

/// What `find` is asked for.
#[derive(Debug)]
struct Search {
    paths: Vec<Vec<u8>>,
    tests: Vec<(bool, Test)>,
    min_depth: usize,
    max_depth: usize,
    /// The end of a path's line.
    end: &'static [u8],
}

/// One condition.
#[derive(Debug)]
enum Test {
    Name(GlobMatcher),
    Path(GlobMatcher),
    Type(FileType),
    Size(Compare, u64, u64),
    /// Modified after this: seconds and nanoseconds.
    Newer(i64, u32),
    Empty,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compare {
    Less,
    Equal,
    More,
}

fn wrong(word: &[u8], why: &'static str) -> Error {
    Error::Word {
        word: text(word),
        why,
    }
}

fn pattern(bytes: &[u8], ignores_case: bool) -> Result<GlobMatcher> {
    let pattern = str::from_utf8(bytes).map_err(|_| wrong(bytes, "a pattern is UTF-8"))?;
    let glob = GlobBuilder::new(pattern)
        .case_insensitive(ignores_case)
        .build();
    let glob = glob.map_err(|source| Error::Pattern {
        pattern: pattern.to_owned(),
        why: source.kind().to_string(),
    })?;
    Ok(glob.compile_matcher())
}

fn number(word: &[u8]) -> Result<usize> {
    let text = str::from_utf8(word).ok();
    let number = text.and_then(|text| text.parse().ok());
    number.ok_or_else(|| wrong(word, "not a number"))
}

fn kind(word: &[u8]) -> Result<FileType> {
    Ok(match word {
        b"f" => FileType::RegularFile,
        b"d" => FileType::Directory,
        b"l" => FileType::Symlink,
        b"p" => FileType::Fifo,
        b"s" => FileType::Socket,
        b"c" => FileType::CharacterDevice,
        b"b" => FileType::BlockDevice,
        _ => return Err(wrong(word, "a type is one of f, d, l, p, s, c, b")),
    })
}

fn size(word: &[u8]) -> Result<Test> {
    let (compare, rest) = match word {
        [b'+', rest @ ..] => (Compare::More, rest),
        [b'-', rest @ ..] => (Compare::Less, rest),
        rest => (Compare::Equal, rest),
    };
    let (digits, unit) = match rest {
        [digits @ .., b'c'] => (digits, 1),
        [digits @ .., b'k'] => (digits, 1 << 10),
        [digits @ .., b'M'] => (digits, 1 << 20),
        [digits @ .., b'G'] => (digits, 1 << 30),
        [digits @ .., b'b'] => (digits, 512),
        digits => (digits, 512),
    };
    let count = number(digits).map_err(|_| wrong(word, "a size is a number, such as +10M"))?;
    Ok(Test::Size(compare, count as u64, unit))
}

impl Search {
    fn parse(share: &Share, words: &[Vec<u8>]) -> Result<Self> {
        let is_test = |word: &&Vec<u8>| word.starts_with(b"-") || *word == b"!";
        let paths = words.iter().take_while(|word| !is_test(word)).count();
        let (paths, tests) = words.split_at(paths);
        let mut search = Self {
            paths: share.expand_all(paths.iter().map(Vec::as_slice))?,
            tests: Vec::new(),
            min_depth: 0,
            max_depth: MAX_DEPTH,
            end: b"\n",
        };
        if search.paths.is_empty() {
            search.paths.push(b".".to_vec());
        }
        let mut tests = tests.iter().map(Vec::as_slice);
        let mut is_wanted = true;
        while let Some(word) = tests.next() {
            let mut value = || {
                tests
                    .next()
                    .ok_or_else(|| wrong(word, "its value is missing"))
            };
            let test = match word {
                b"!" | b"-not" => {
                    is_wanted = !is_wanted;
                    continue;
                }
                b"-name" => Test::Name(pattern(value()?, false)?),
                b"-iname" => Test::Name(pattern(value()?, true)?),
                b"-path" => Test::Path(pattern(value()?, false)?),
                b"-type" => Test::Type(kind(value()?)?),
                b"-size" => size(value()?)?,
                b"-newer" => {
                    let attr = share.find(value()?, LastLink::Follow)?.attr;
                    Test::Newer(attr.mtime.cast_signed(), attr.mtimensec)
                }
                b"-empty" => Test::Empty,
                b"-maxdepth" => {
                    search.max_depth = number(value()?)?.min(MAX_DEPTH);
                    continue;
                }
                b"-mindepth" => {
                    search.min_depth = number(value()?)?;
                    continue;
                }
                b"-print" => continue,
                b"-print0" => {
                    search.end = b"\0";
                    continue;
                }
                _ => return Err(wrong(word, "no such test; find --help shows them")),
            };
            search.tests.push((is_wanted, test));
            is_wanted = true;
        }
        Ok(search)
    }
}

impl Share {
    /// Shows the paths of the files that pass all tests.
    pub(super) fn find_files(&self, words: &[Vec<u8>], out: &mut Output) -> Result<()> {
        let search = Search::parse(self, words)?;
        // For a terminal only: other programs get the names as they are.
        let is_shown = search.end == b"\n" && out.file().is_terminal();
        let mut failures = Failures::default();
        for path in &search.paths {
            let found = self.find(path, LastLink::Follow);
            let walked =
                found.and_then(|node| self.search_below(&search, path, &node, 0, is_shown, out));
            failures.note(walked)?;
        }
        failures.into_result()
    }

    fn search_below(
        &self,
        search: &Search,
        path: &[u8],
        node: &Node,
        depth: usize,
        is_shown: bool,
        out: &mut Output,
    ) -> Result<()> {
        let entries = match node.kind() {
            FileType::Directory => Some(self.entries(node, &text(path))),
            _ => None,
        };
        if depth >= search.min_depth && search.passes(path, node, entries.as_ref()) {
            match is_shown {
                true => out.write_all(text(path).as_bytes())?,
                false => out.write_all(path)?,
            }
            out.write_all(search.end)?;
        }
        let Some(entries) = entries else {
            return Ok(());
        };
        if depth >= search.max_depth {
            return match depth >= MAX_DEPTH && search.max_depth >= MAX_DEPTH {
                true => Err(Error::Path {
                    path: text(path),
                    why: "directories are too deep within one another",
                }),
                false => Ok(()),
            };
        }
        let mut failures = Failures::default();
        for (name, child) in entries? {
            let below = join(path, &name);
            failures.note(self.search_below(search, &below, &child, depth + 1, is_shown, out))?;
        }
        failures.into_result()
    }
}

impl Search {
    fn passes(&self, path: &[u8], node: &Node, entries: Option<&Result<Entries>>) -> bool {
        let attr = &node.attr;
        self.tests.iter().all(|(is_wanted, test)| {
            let passes = match test {
                Test::Name(glob) => glob.is_match(host_path(split(path).1)),
                Test::Path(glob) => glob.is_match(host_path(path)),
                Test::Type(kind) => node.kind() == *kind,
                Test::Size(compare, count, unit) => {
                    let units = attr.size.div_ceil(*unit);
                    match compare {
                        Compare::Less => units < *count,
                        Compare::Equal => units == *count,
                        Compare::More => units > *count,
                    }
                }
                Test::Newer(seconds, nanoseconds) => {
                    (attr.mtime.cast_signed(), attr.mtimensec) > (*seconds, *nanoseconds)
                }
                Test::Empty => match entries {
                    Some(Ok(entries)) => entries.is_empty(),
                    Some(Err(_)) => false,
                    None => node.kind() == FileType::RegularFile && attr.size == 0,
                },
            };
            passes == *is_wanted
        })
    }
}
