//! The text by which a guest reads changes: a line for each.

/// The first line: the version of the format.
pub(super) const HEADER: &[u8] = b"gangplank-events 1\n";

/// The line that ends a wait without a change.
pub(super) const IDLE: &[u8] = b"idle\n";

/// The line after which nothing that the reader knows may be believed.
pub(super) const RESCAN: &[u8] = b"rescan\n";

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
    const fn word(self) -> &'static [u8] {
        match self {
            Self::Created => b"created ",
            Self::Deleted => b"deleted ",
            Self::Modified => b"modified ",
            Self::Attributes => b"attributes ",
        }
    }
}

/// Adds the line of a change. Bytes of `path` other than visible ASCII, and the backslash, become
/// `\xNN`.
pub(super) fn push(line: &mut Vec<u8>, kind: Kind, path: &[u8]) {
    line.extend(kind.word());
    for byte in path {
        match byte {
            b'\\' => line.extend(b"\\x5c"),
            b'!'..=b'~' => line.push(*byte),
            _ => line.extend(format!("\\x{byte:02x}").as_bytes()),
        }
    }
    line.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut line = Vec::new();
        push(&mut line, Kind::Created, b"src/main.rs");
        push(&mut line, Kind::Deleted, b"a b\\/");
        assert_eq!(line, b"created src/main.rs\ndeleted a\\x20b\\x5c/\n");
    }
}
