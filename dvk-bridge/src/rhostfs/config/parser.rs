//! Parses tokens into lines and blocks, and includes other files.
//!
//! A line ends at `;`, at the `}` around it or at the end of the file. A newline does not end it.
//! `include FILE;` stands for the lines of another file, whose path is relative to the including
//! file. A missing file has no lines.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::fault::{ConfigError, Fault, Location};
use super::tokenizer::{Kind, Token, split};

/// Size limit of a file in bytes.
const MAX_FILE_SIZE: u64 = 1 << 20;

/// Limit of nested includes, so that no file includes itself.
const MAX_INCLUDE_DEPTH: usize = 8;

/// Limit of nested blocks.
const MAX_BLOCK_DEPTH: usize = 8;

/// Limit of included files.
const MAX_FILES: usize = 64;

/// A line, identified by its first word.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) items: Vec<Item>,
    pub(super) at: Location,
}

/// A part of a line.
#[derive(Clone, Debug)]
pub(super) enum Item {
    /// A word or a string.
    Word(Token),
    /// Lines in braces.
    Block(Vec<Line>, Location),
}

impl Item {
    pub(super) const fn at(&self) -> &Location {
        match self {
            Self::Word(token) => &token.at,
            Self::Block(_, at) => at,
        }
    }

    /// The text as written, for messages.
    pub(super) fn written(&self) -> String {
        match self {
            Self::Word(token) => token.kind.written(),
            Self::Block(..) => "{".to_owned(),
        }
    }
}

/// The parsed lines and what is wrong with them.
#[derive(Debug, Default)]
pub(super) struct ParsedFiles {
    pub(super) lines: Vec<Line>,
    pub(super) faults: Vec<Fault>,
    /// Included files that do not exist.
    pub(super) missing: Vec<Fault>,
}

/// Reads `file` and the files that it includes.
pub(super) fn read(file: &Path) -> Result<ParsedFiles, ConfigError> {
    let bytes = bytes_of(file).map_err(|source| ConfigError::Read {
        file: file.to_owned(),
        source,
    })?;
    let mut reader = Reader {
        parser: ParsedFiles::default(),
        files: 1,
    };
    let lines = reader.file(file, &bytes, 0);
    Ok(ParsedFiles {
        lines,
        ..reader.parser
    })
}

struct Reader {
    parser: ParsedFiles,
    files: usize,
}

impl Reader {
    fn file(&mut self, file: &Path, bytes: &[u8], depth: usize) -> Vec<Line> {
        let name: Arc<Path> = file.into();
        let mut tokens = split(&name, bytes, &mut self.parser.faults).into();
        let lines = self.lines(&mut tokens, depth, 0);
        if let Some(Token { kind, at }) = tokens.front() {
            let what = "it ends no block";
            self.fault(at, kind.written(), what);
        }
        lines
    }

    /// Parses lines up to a `}`, which stays in the queue, or up to the end.
    fn lines(&mut self, tokens: &mut VecDeque<Token>, depth: usize, nested: usize) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut items = Vec::new();
        loop {
            let ends = match tokens.front().map(|token| &token.kind) {
                None | Some(Kind::Close) => true,
                Some(Kind::End) => {
                    tokens.pop_front();
                    self.line(&mut lines, &mut items, depth);
                    continue;
                }
                Some(_) => false,
            };
            if ends {
                self.line(&mut lines, &mut items, depth);
                return lines;
            }
            let Some(token) = tokens.pop_front() else {
                return lines;
            };
            if token.kind != Kind::Open {
                items.push(Item::Word(token));
                continue;
            }
            if nested >= MAX_BLOCK_DEPTH {
                self.fault(&token.at, "{", "blocks are nested too deep");
                tokens.clear();
                return lines;
            }
            let block = self.lines(tokens, depth, nested + 1);
            if tokens.pop_front().is_none() {
                self.fault(&token.at, "{", "the block has no end: a } is missing");
            }
            items.push(Item::Block(block, token.at));
        }
    }

    /// Ends a line: adds the line, or the lines of the file that it includes.
    fn line(&mut self, lines: &mut Vec<Line>, items: &mut Vec<Item>, depth: usize) {
        let items = std::mem::take(items);
        let Some(first) = items.first() else {
            return;
        };
        let at = first.at().clone();
        let includes =
            matches!(first, Item::Word(token) if token.kind == Kind::Word("include".to_owned()));
        if !includes {
            lines.push(Line { items, at });
            return;
        }
        match items.as_slice() {
            [
                _,
                Item::Word(Token {
                    kind: Kind::Word(file) | Kind::Text(file),
                    ..
                }),
            ] => {
                lines.extend(self.include(&at, file, depth));
            }
            _ => self.fault(&at, "include", "expected one file: include FILE;"),
        }
    }

    fn include(&mut self, at: &Location, file: &str, depth: usize) -> Vec<Line> {
        if depth >= MAX_INCLUDE_DEPTH || self.files >= MAX_FILES {
            self.fault(at, file, "too many files include one another");
            return Vec::new();
        }
        self.files += 1;
        let path = relative_to(&at.file, file);
        match bytes_of(&path) {
            Ok(bytes) => self.file(&path, &bytes, depth + 1),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let what = "the file does not exist and counts as empty";
                self.parser.missing.push(Fault::new(at, file, what));
                Vec::new()
            }
            Err(error) => {
                self.fault(at, file, format!("the file cannot be read: {error}"));
                Vec::new()
            }
        }
    }

    fn fault(&mut self, at: &Location, token: impl Into<String>, what: impl Into<String>) {
        self.parser.faults.push(Fault::new(at, token, what));
    }
}

fn relative_to(from: &Path, file: &str) -> PathBuf {
    from.parent().unwrap_or(Path::new("")).join(file)
}

fn bytes_of(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?
        .take(MAX_FILE_SIZE + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_SIZE {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it is too long for a configuration",
        ));
    }
    Ok(bytes)
}
