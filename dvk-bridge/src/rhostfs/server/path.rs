//! A client's path name, checked and normalised without looking at the share.
//!
//! A component may have any length: the daemon refuses more than 255 bytes.

use std::ffi::CStr;
use std::fmt;
use std::sync::Arc;

use rustix::io::Errno;

/// Longest path name with its NUL, in bytes (`PATH_MAX` of Linux).
pub(super) const PATH_MAX: usize = 4096;

/// The end of a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum PathEnd {
    /// A name.
    Name,
    /// A name and a slash, which must be a directory.
    Slash,
    /// `.` or `..` or nothing, which must be a directory and has no name.
    Dot,
}

/// A path beneath the root without `.` and `..`. Copies share its memory.
#[derive(Clone, Eq, PartialEq)]
pub(super) struct Path {
    /// The names, each with its NUL.
    names: Arc<[u8]>,
    end: PathEnd,
}

/// A sequence of names.
#[derive(Clone, Copy)]
pub(super) struct Names<'a>(&'a [u8]);

impl<'a> Names<'a> {
    pub(super) const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(self) -> impl Iterator<Item = &'a CStr> {
        let names = self.0.split_inclusive(|byte| *byte == 0);
        names.filter_map(|name| CStr::from_bytes_with_nul(name).ok())
    }
}

impl Path {
    /// Parses a path that the client sends with its NUL. `..` removes the name before it, and
    /// nothing at the root, so no path leads out of the root.
    ///
    /// # Errors
    ///
    /// EINVAL unless the only NUL is at the end, ENOENT for an empty path.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Errno> {
        let [path @ .., 0] = bytes else {
            return Err(Errno::INVAL);
        };
        if path.is_empty() {
            return Err(Errno::NOENT);
        }
        if path.contains(&0) {
            return Err(Errno::INVAL);
        }
        let mut names = Vec::with_capacity(bytes.len());
        let mut end = PathEnd::Dot;
        for name in path.split(|byte| *byte == b'/') {
            match name {
                b"" => {
                    if end == PathEnd::Name {
                        end = PathEnd::Slash;
                    }
                }
                b"." => end = PathEnd::Dot,
                b".." => {
                    names.truncate(split(&names).map_or(0, |(before, _)| before.len()));
                    end = PathEnd::Dot;
                }
                name => {
                    names.extend_from_slice(name);
                    names.push(0);
                    end = PathEnd::Name;
                }
            }
        }
        Ok(Self {
            names: names.into(),
            end,
        })
    }

    /// The names from the root on.
    pub(super) fn names(&self) -> Names<'_> {
        Names(&self.names)
    }

    /// Bytes that the names occupy.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether the path must be a directory.
    pub(super) const fn means_directory(&self) -> bool {
        !matches!(self.end, PathEnd::Name)
    }

    /// The last name and the names before it, for calls about a name. `None` if the path does not
    /// end in a name.
    pub(super) fn split_last(&self) -> Option<(Names<'_>, &CStr)> {
        match self.end {
            PathEnd::Name | PathEnd::Slash => {
                let (before, last) = split(&self.names)?;
                let last = CStr::from_bytes_with_nul(last).ok()?;
                Some((Names(before), last))
            }
            PathEnd::Dot => None,
        }
    }

    /// The path after a rename of `from` to `to`. `None` if it does not lead through `from`.
    pub(super) fn moved(&self, from: &Self, to: &Self) -> Option<Self> {
        // Each name ends in a NUL, so no name matches the beginning of another.
        let rest = self.names.strip_prefix(&*from.names)?;
        Some(Self {
            names: [&to.names, rest].concat().into(),
            end: self.end,
        })
    }
}

/// The names before the last, and the last name with its NUL.
fn split(names: &[u8]) -> Option<(&[u8], &[u8])> {
    let (_, without_nul) = names.split_last()?;
    let before = without_nul.iter().rposition(|byte| *byte == 0);
    names.split_at_checked(before.map_or(0, |at| at + 1))
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names().iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(path: &str) -> (Vec<String>, PathEnd) {
        let path = Path::parse(format!("{path}\0").as_bytes()).unwrap();
        let names = path.names().iter();
        let names = names.map(|name| name.to_str().unwrap().to_owned());
        (names.collect(), path.end)
    }

    fn parts(names: &[&str], end: PathEnd) -> (Vec<String>, PathEnd) {
        (names.iter().map(|name| (*name).to_owned()).collect(), end)
    }

    #[test]
    fn paths_are_resolved_as_text_and_never_above_the_root() {
        assert_eq!(names("//a/b"), parts(&["a", "b"], PathEnd::Name));
        assert_eq!(names("/a//./b/"), parts(&["a", "b"], PathEnd::Slash));
        assert_eq!(names("//"), parts(&[], PathEnd::Dot));
        assert_eq!(
            names("//../../etc/passwd"),
            parts(&["etc", "passwd"], PathEnd::Name)
        );
        assert_eq!(names("//a/../../b/.."), parts(&[], PathEnd::Dot));
        assert_eq!(names("a/."), parts(&["a"], PathEnd::Dot));
    }

    #[test]
    fn only_the_last_byte_is_a_nul() {
        for bytes in [&b""[..], b"/a", b"/a\0b\0", b"\0\0"] {
            assert_eq!(Path::parse(bytes), Err(Errno::INVAL), "{bytes:?}");
        }
        assert_eq!(Path::parse(b"\0"), Err(Errno::NOENT));
    }

    #[test]
    fn calls_about_a_name_need_one() {
        let path = |text: &[u8]| Path::parse(text).unwrap();
        for (text, before, last) in [
            (&b"//a/b/\0"[..], vec![c"a"], c"b"),
            (b"b\0", vec![], c"b"),
            (b"/long/er/b\0", vec![c"long", c"er"], c"b"),
        ] {
            let path = path(text);
            let (names, name) = path.split_last().unwrap();
            assert_eq!((names.iter().collect(), name), (before, last));
        }
        for text in [&b"//\0"[..], b"//a/.\0", b"//a/b/..\0"] {
            assert!(path(text).split_last().is_none());
        }
    }

    #[test]
    fn a_path_moves_with_its_directories() {
        let path = |text: &[u8]| Path::parse(text).unwrap();
        let file = path(b"/a/b/c\0");
        assert_eq!(
            file.moved(&path(b"/a/b\0"), &path(b"/x\0")),
            Some(path(b"/x/c\0"))
        );
        assert_eq!(file.moved(&path(b"/a/bb\0"), &path(b"/x\0")), None);
        assert_eq!(
            path(b"/a/bb\0").moved(&path(b"/a/b\0"), &path(b"/x\0")),
            None
        );
    }

    proptest! {
        #[test]
        fn any_bytes_give_names_that_lead_down_or_an_error(bytes: Vec<u8>) {
            if let Ok(path) = Path::parse(&bytes) {
                for name in path.names().iter() {
                    let name = name.to_bytes();
                    prop_assert!(!matches!(name, b"" | b"." | b".."));
                    prop_assert!(!name.contains(&b'/'));
                }
            }
        }
    }
}
