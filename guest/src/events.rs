//! The text in which the daemon tells changes: `docs/events.md` describes it.

use thiserror::Error;

/// The first line of the version that is understood.
const HEADER: &[u8] = b"gangplank-events 1";

/// What has happened to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is new, or leads to another file.
    Created,
    /// It is gone.
    Deleted,
    /// Its content has changed.
    Modified,
    /// Its attributes have changed.
    Attributes,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// The format's version.
    Header,
    /// Nothing has happened for a while.
    Idle,
    /// Changes were lost.
    Rescan,
    /// Something has happened to a path, relative to the share.
    Change {
        /// What.
        kind: Kind,
        /// Without a slash at its end.
        path: Vec<u8>,
        /// Whether it is, or was, a directory.
        is_directory: bool,
    },
}

/// A line that is not understood.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the daemon tells changes in another format than this program reads: '{0}'")]
pub struct UnknownLine(String);

impl Line {
    /// Reads a line, without its end.
    ///
    /// # Errors
    /// The format does not have it.
    pub fn parse(line: &[u8]) -> Result<Self, UnknownLine> {
        let unknown = || UnknownLine(String::from_utf8_lossy(line).into_owned());
        match line {
            HEADER => return Ok(Self::Header),
            b"idle" => return Ok(Self::Idle),
            b"rescan" => return Ok(Self::Rescan),
            _ => {}
        }
        let (word, path) = split_at_space(line).ok_or_else(unknown)?;
        let kind = match word {
            b"created" => Kind::Created,
            b"deleted" => Kind::Deleted,
            b"modified" => Kind::Modified,
            b"attributes" => Kind::Attributes,
            _ => return Err(unknown()),
        };
        let mut path = unescape(path).ok_or_else(unknown)?;
        let is_directory = path.ends_with(b"/");
        path.truncate(path.len() - usize::from(is_directory));
        if path.is_empty() || path.contains(&0) {
            return Err(unknown());
        }
        Ok(Self::Change {
            kind,
            path,
            is_directory,
        })
    }
}

fn split_at_space(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = line.iter().position(|byte| *byte == b' ')?;
    Some((line.get(..at)?, line.get(at + 1..)?))
}

/// Undoes `\xNN`.
fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.strip_prefix(b"x")?.split_at_checked(2)?;
        let digits = str::from_utf8(digits).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = after;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: Kind, path: &[u8], is_directory: bool) -> Result<Line, UnknownLine> {
        Ok(Line::Change {
            kind,
            path: path.into(),
            is_directory,
        })
    }

    #[test]
    fn each_line_of_the_format_is_read() {
        assert_eq!(Line::parse(b"gangplank-events 1"), Ok(Line::Header));
        assert_eq!(Line::parse(b"idle"), Ok(Line::Idle));
        assert_eq!(Line::parse(b"rescan"), Ok(Line::Rescan));
        assert_eq!(
            Line::parse(b"created a\\x20b\\x5c/"),
            change(Kind::Created, b"a b\\", true)
        );
        assert_eq!(
            Line::parse(b"deleted d/\\xff"),
            change(Kind::Deleted, b"d/\xff", false)
        );
        assert_eq!(
            Line::parse(b"modified ./"),
            change(Kind::Modified, b".", true)
        );
    }

    #[test]
    fn other_lines_are_refused_and_named() {
        for line in [
            "",
            "gangplank-events 2",
            "moved a",
            "created",
            "created ",
            "created /",
            "created \\x",
            "created \\x0",
            "created \\x00",
            "created \\n",
        ] {
            let refused = Line::parse(line.as_bytes());
            assert_eq!(refused, Err(UnknownLine(line.into())), "{line:?}");
        }
    }
}
