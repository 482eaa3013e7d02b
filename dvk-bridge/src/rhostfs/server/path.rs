//! A client's path name: checked, and resolved as far as that takes no look at the share.

use std::ffi::CString;

use rustix::io::Errno;

/// Longest path name with its NUL, in bytes (Linux: `PATH_MAX`).
pub(super) const LONGEST: usize = 4096;

/// How a path ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum End {
    /// In a name.
    Name,
    /// In a name and a slash: a directory is meant.
    Slash,
    /// In `.` or `..`, or in nothing: a directory is meant, and none of its names.
    Dot,
}

/// A path beneath the root: names without `.` and `..`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Path {
    names: Vec<CString>,
    end: End,
}

impl Path {
    /// Reads a path as the client sends it, with the NUL that ends it. `..` takes away the name before it, and at the root
    /// nothing: there is no way out.
    ///
    /// # Errors
    /// EINVAL unless the only NUL is at the end, ENOENT for a path of nothing.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Errno> {
        let [path @ .., 0] = bytes else {
            return Err(Errno::INVAL);
        };
        if path.is_empty() {
            return Err(Errno::NOENT);
        }
        let mut names = Vec::new();
        let mut end = End::Dot;
        for name in path.split(|byte| *byte == b'/') {
            match name {
                b"" => {
                    if end == End::Name {
                        end = End::Slash;
                    }
                }
                b"." => end = End::Dot,
                b".." => {
                    names.pop();
                    end = End::Dot;
                }
                name => {
                    names.push(CString::new(name).map_err(|_| Errno::INVAL)?);
                    end = End::Name;
                }
            }
        }
        Ok(Self { names, end })
    }

    /// The names, from the root on.
    pub(super) fn names(&self) -> &[CString] {
        &self.names
    }

    /// Whether only a directory can be meant.
    pub(super) const fn means_directory(&self) -> bool {
        !matches!(self.end, End::Name)
    }

    /// The last name and those before it, for calls that are about a name; none if the path ends in no name.
    pub(super) fn split_last(&self) -> Option<(&[CString], &CString)> {
        match (self.names.split_last(), self.end) {
            (Some((last, before)), End::Name | End::Slash) => Some((before, last)),
            _ => None,
        }
    }

    /// The same with what `from` is replaced by `to`; none if it does not lead through `from`.
    pub(super) fn moved(&self, from: &Self, to: &Self) -> Option<Self> {
        let rest = self.names.strip_prefix(from.names.as_slice())?;
        Some(Self {
            names: [to.names.as_slice(), rest].concat(),
            end: self.end,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(path: &str) -> (Vec<String>, End) {
        let path = Path::parse(format!("{path}\0").as_bytes()).unwrap();
        let names = path.names.iter();
        let names = names.map(|name| name.to_str().unwrap().to_owned());
        (names.collect(), path.end)
    }

    fn parts(names: &[&str], end: End) -> (Vec<String>, End) {
        (names.iter().map(|name| (*name).to_owned()).collect(), end)
    }

    #[test]
    fn paths_are_resolved_by_their_text_and_never_above_the_root() {
        assert_eq!(names("//a/b"), parts(&["a", "b"], End::Name));
        assert_eq!(names("/a//./b/"), parts(&["a", "b"], End::Slash));
        assert_eq!(names("//"), parts(&[], End::Dot));
        assert_eq!(
            names("//../../etc/passwd"),
            parts(&["etc", "passwd"], End::Name)
        );
        assert_eq!(names("//a/../../b/.."), parts(&[], End::Dot));
        assert_eq!(names("a/."), parts(&["a"], End::Dot));
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
        let (before, last) = (path(b"//a/b/\0"), c"b");
        assert_eq!(before.split_last().unwrap().1.as_c_str(), last);
        for text in [&b"//\0"[..], b"//a/.\0", b"//a/b/..\0"] {
            assert_eq!(path(text).split_last(), None);
        }
    }

    #[test]
    fn a_path_moves_with_what_it_leads_through() {
        let path = |text: &[u8]| Path::parse(text).unwrap();
        let file = path(b"/a/b/c\0");
        assert_eq!(
            file.moved(&path(b"/a/b\0"), &path(b"/x\0")),
            Some(path(b"/x/c\0"))
        );
        assert_eq!(file.moved(&path(b"/a/bb\0"), &path(b"/x\0")), None);
    }

    proptest! {
        #[test]
        fn any_bytes_give_names_that_lead_down_or_an_error(bytes: Vec<u8>) {
            if let Ok(path) = Path::parse(&bytes) {
                for name in path.names() {
                    let name = name.to_bytes();
                    prop_assert!(!matches!(name, b"" | b"." | b".."));
                    prop_assert!(!name.contains(&b'/'));
                }
            }
        }
    }
}
