//! The text in which the daemon tells a guest of changes, for both ends: a line for each.
//! `docs/events.md` describes it.
#![forbid(unsafe_code)]

use thiserror::Error;

/// The first line: the version of the format.
pub const HEADER: &[u8] = b"gangplank-events 1\n";

/// The line that ends a wait without a change.
pub const IDLE: &[u8] = b"idle\n";

/// The line after which nothing that the reader knows may be believed.
pub const RESCAN: &[u8] = b"rescan\n";

/// What has happened to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The name is new, or leads to another inode.
    Created,
    /// The name is gone.
    Deleted,
    /// The content has changed.
    Modified,
    /// The attributes have changed.
    Attributes,
}

impl Kind {
    const ALL: [Self; 4] = [
        Self::Created,
        Self::Deleted,
        Self::Modified,
        Self::Attributes,
    ];

    const fn word(self) -> &'static [u8] {
        match self {
            Self::Created => b"created",
            Self::Deleted => b"deleted",
            Self::Modified => b"modified",
            Self::Attributes => b"attributes",
        }
    }
}

/// Adds the line of a change to `lines`. `path` is relative to the share, and ends in a slash if it
/// is, or was, a directory. Its bytes other than visible ASCII, and the backslash, become `\xNN`.
pub fn push(lines: &mut Vec<u8>, kind: Kind, path: &[u8]) {
    lines.extend(kind.word());
    lines.push(b' ');
    for byte in path {
        match byte {
            b'\\' => lines.extend(b"\\x5c"),
            b'!'..=b'~' => lines.push(*byte),
            _ => lines.extend(format!("\\x{byte:02x}").as_bytes()),
        }
    }
    lines.push(b'\n');
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// The format's version ([`HEADER`]).
    Header,
    /// Nothing has happened for a while ([`IDLE`]).
    Idle,
    /// Changes were lost ([`RESCAN`]).
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
        let fixed = [
            (HEADER, Self::Header),
            (IDLE, Self::Idle),
            (RESCAN, Self::Rescan),
        ];
        for (text, meaning) in fixed {
            if text.strip_suffix(b"\n") == Some(line) {
                return Ok(meaning);
            }
        }
        let (word, path) = split_at_space(line).ok_or_else(unknown)?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.word() == word);
        let kind = kind.ok_or_else(unknown)?;
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
    use proptest::prelude::*;

    use super::*;

    fn change(kind: Kind, path: &[u8], is_directory: bool) -> Result<Line, UnknownLine> {
        Ok(Line::Change {
            kind,
            path: path.into(),
            is_directory,
        })
    }

    #[test]
    fn a_line_has_no_byte_that_ends_it_early_or_is_not_ascii() {
        let every: Vec<u8> = (1..=u8::MAX).collect();
        let mut line = Vec::new();
        push(&mut line, Kind::Modified, &every);
        let text = String::from_utf8(line).expect("ASCII");
        assert_eq!(text.matches('\n').count(), 1);
        assert_eq!(text.matches(' ').count(), 1);
        assert!(text.starts_with("modified \\x01\\x02"), "{text}");
        assert!(text.ends_with("\\xff\n"), "{text}");
    }

    #[test]
    fn usual_names_stay_readable() {
        let mut lines = Vec::new();
        push(&mut lines, Kind::Created, b"src/main.rs");
        push(&mut lines, Kind::Deleted, b"a b\\/");
        assert_eq!(lines, b"created src/main.rs\ndeleted a\\x20b\\x5c/\n");
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

    proptest! {
        #[test]
        fn what_is_written_is_read(
            kind in prop::sample::select(&Kind::ALL[..]),
            path in prop::collection::vec(1..=u8::MAX, 1..64),
            is_directory: bool,
        ) {
            prop_assume!(path.last() != Some(&b'/'));
            let mut written = path.clone();
            written.extend(is_directory.then_some(b'/'));
            let mut line = Vec::new();
            push(&mut line, kind, &written);
            let line = line.strip_suffix(b"\n").expect("a line has an end");
            prop_assert_eq!(Line::parse(line), change(kind, &path, is_directory));
        }
    }
}
